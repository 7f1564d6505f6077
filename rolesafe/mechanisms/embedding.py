"""Role embeddings: a vector per role, added to the residual stream.

At the input this is ISE (Instructional Segment Embedding, arXiv 2410.09102), before every layer it is AIR (Augmented
Intermediate Representations, arXiv 2505.18907), which adds one more after the last layer. Both give every
token its own role's vector, the generated ones included; public code of both lets generated tokens inherit the last
prompt role.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from rolesafe.mechanisms.part import RolePart


class RoleEmbedding(RolePart):
    """``x + weight[role]``.

    Attributes:
        weight: (R, d), fp32 at least; drawn with `std` at the start (0: the model is unchanged).
    """

    def __init__(
        self,
        num_roles: int,
        dim: int,
        *,
        std: float = 0.0,
        dtype: torch.dtype | None = None,
        device: torch.device | None = None,
    ) -> None:
        super().__init__()
        self.std = std
        self.weight = nn.Parameter(torch.empty(num_roles, dim, dtype=dtype, device=device))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Back to the start."""
        nn.init.normal_(self.weight, std=self.std) if self.std else nn.init.zeros_(self.weight)

    def forward(self, hidden_states: Tensor, roles: Tensor) -> Tensor:
        """Add to `hidden_states` (B, T, d) the vectors of `roles` (B, T)."""
        if self.strength == 0:
            return hidden_states
        hidden_states, roles = (x.to(self.weight.device) for x in (hidden_states, roles))
        vectors = nn.functional.embedding(roles, self.weight).to(hidden_states.dtype)
        return hidden_states + (vectors if self.strength == 1 else self.strength * vectors)
