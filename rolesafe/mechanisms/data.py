"""Transforms of data tokens at the input: a fixed rotation, a learned shift.

The rotation is that of ASIDE (arXiv 2503.10566, section 3: an isoclinic rotation, which turns the dimensions (0, 1),
(2, 3), ... by the same angle). The shift is the token-wise one of DRIP (arXiv 2511.00447). Public code of both
finds the data tokens in the text, so text decides; here roles do.

Legend: B batch, T tokens, d hidden size.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from rolesafe.attention.problem import is_privileged as is_among
from rolesafe.mechanisms.part import RolePart


class DataTransform(RolePart):
    """Compute ``x -> R x``, then ``x -> x + W x + b``, at the tokens of some roles only.

    Args:
        roles: Ids of these roles.
        dim: d.
        rotation: Angle in radians.
        shift: Add the learned shift.
        dtype, device: Of the parameters.

    Attributes:
        shift_weight, shift_bias: W (d, d) and b (d,), initially zero; None without `shift`.

    Raises:
        ValueError: A rotation with odd `dim`.
    """

    shift_weight: nn.Parameter | None
    shift_bias: nn.Parameter | None

    def __init__(
        self,
        roles: tuple[int, ...],
        dim: int,
        *,
        rotation: float = 0.0,
        shift: bool = False,
        dtype: torch.dtype | None = None,
        device: torch.device | None = None,
    ) -> None:
        super().__init__()
        if rotation and dim % 2:
            raise ValueError(f"`rotation`: expected an even hidden size (it turns pairs of dimensions), got {dim}")
        self.roles = roles
        self.rotation = rotation
        self.shift_weight = nn.Parameter(torch.empty(dim, dim, dtype=dtype, device=device)) if shift else None
        self.shift_bias = nn.Parameter(torch.empty(dim, dtype=dtype, device=device)) if shift else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set the shift to zero."""
        if self.shift_weight is not None and self.shift_bias is not None:
            nn.init.zeros_(self.shift_weight)
            nn.init.zeros_(self.shift_bias)

    def forward(self, hidden_states: Tensor, roles: Tensor) -> Tensor:
        """Return `hidden_states` (..., B, T, d), transformed where `roles` (B, T) are among :attr:`roles`."""
        if self.strength == 0:
            return hidden_states
        changed = hidden_states
        if self.rotation:
            changed = rotate(changed, self.rotation * self.strength)
        if self.shift_weight is not None:
            changed, hidden_states, roles = (x.to(self.shift_weight.device) for x in (changed, hidden_states, roles))
            weight, bias = self.shift_weight.to(changed.dtype), self.shift_bias
            shift = nn.functional.linear(changed, weight, None if bias is None else bias.to(changed.dtype))
            changed = changed + (shift if self.strength == 1 else self.strength * shift)
        return torch.where(is_among(roles, self.roles).unsqueeze(-1), changed, hidden_states)

    def extra_repr(self) -> str:
        return f"roles={self.roles}, rotation={self.rotation}, shift={self.shift_weight is not None}"


def rotate(x: Tensor, angle: float) -> Tensor:
    """Return `x` (..., d) with each pair of dimensions (2i, 2i + 1) rotated by `angle` radians; d is even."""
    even, odd = x[..., 0::2], x[..., 1::2]
    cos, sin = math.cos(angle), math.sin(angle)
    return torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1).flatten(-2)
