"""Role embeddings: a vector per role, added to the residual stream.

At the input this is ISE (Instructional Segment Embedding, arXiv 2410.09102), before every layer it is AIR (Augmented
Intermediate Representations, arXiv 2505.18907), which adds one more after the last layer. Every token gets the vector
of its own role, generated ones included; in public code of both, generated tokens inherit the last role of the prompt.

Legend: B batch, T tokens, d hidden size, R roles.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from rolesafe.attention.problem import is_privileged as is_among
from rolesafe.mechanisms.part import RolePart


class RoleEmbedding(RolePart):
    """Compute ``x + weight[role]``.

    Args:
        num_roles: R.
        dim: d.
        roles: Ids of the roles that have a vector; the tokens of others are not changed. None: all.
        std: Standard deviation of the initial vectors. 0: zeros, the model is unchanged.
        dtype, device: Of `weight`.

    Attributes:
        weight: (R, d), fp32 or wider. Rows of roles without a vector are not read.
    """

    def __init__(
        self,
        num_roles: int,
        dim: int,
        *,
        roles: tuple[int, ...] | None = None,
        std: float = 0.0,
        dtype: torch.dtype | None = None,
        device: torch.device | None = None,
    ) -> None:
        super().__init__()
        self.roles = roles
        self.std = std
        self._rows: Tensor | None = None
        self.weight = nn.Parameter(torch.empty(num_roles, dim, dtype=dtype, device=device))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the initial vectors again."""
        nn.init.normal_(self.weight, std=self.std) if self.std else nn.init.zeros_(self.weight)

    def forward(self, hidden_states: Tensor, roles: Tensor) -> Tensor:
        """Return `hidden_states` (B, T, d) plus the vectors of `roles` (B, T)."""
        if self.strength == 0:
            return hidden_states
        weight: Tensor = self.weight
        device = weight.device
        if hidden_states.device != device or roles.device != device:
            hidden_states, roles = hidden_states.to(device), roles.to(device)
        if self.roles is not None:
            weight = torch.where(self._read(self.roles, device), weight, 0.0)
        vectors = nn.functional.embedding(roles, weight).to(hidden_states.dtype)
        return hidden_states + (vectors if self.strength == 1 else self.strength * vectors)

    def _read(self, roles: tuple[int, ...], device: torch.device) -> Tensor:
        """Return (R, 1) bool, True for `roles`; kept for the next call."""
        # Compiled code makes its own: a change of `_rows` would recompile it.
        kept = None if torch.compiler.is_compiling() else self._rows
        if kept is not None and kept.device == device:
            return kept
        with torch.inference_mode(False):  # it outlives this call
            rows = is_among(torch.arange(self.weight.shape[0], device=device), roles).unsqueeze(-1)
        if not torch.compiler.is_compiling():
            self._rows = rows
        return rows
