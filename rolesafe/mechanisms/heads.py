"""The learned parts of one attention layer: bias table, reserved share, dedicated heads."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from rolesafe.config import RoleConfig


class _Clamp(torch.autograd.Function):
    """Clamp to [0, 1] whose gradient is that of the identity."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clamp(0, 1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return grads[0]


class RoleHeads(nn.Module):
    """What role-aware attention needs to know of one layer (H query heads, R roles).

    Attributes:
        bias: (H, R, R) added to the scores of query role x key role; absent where the configuration has no bias.
        share: (H,) reserved share of every head before clamping to [0, 1]; absent where the configuration has none.
        dedicated: Number of dedicated heads, the first of the layer.
        integrity: Whether privileged queries read the privileged channel alone.
    """

    bias: nn.Parameter | None
    share: nn.Parameter | None

    def __init__(
        self,
        config: RoleConfig,
        heads: int,
        *,
        active: bool = True,
        dtype: torch.dtype | None = None,
        device: torch.device | None = None,
    ) -> None:
        """`active=False`: a layer outside ``config.layers``, which attends as its base does."""
        super().__init__()
        self.heads = heads
        self.dedicated = config.count_dedicated(heads) if active else 0
        self.integrity = config.integrity and active
        self._share_at_start = config.share
        roles = len(config.roles)
        has_bias = active and config.bias
        has_share = active and config.share > 0.0 and self.dedicated < heads
        self.bias = nn.Parameter(torch.empty(heads, roles, roles, dtype=dtype, device=device)) if has_bias else None
        self.share = (
            nn.Parameter(torch.empty(heads, dtype=dtype, device=device), requires_grad=config.learn_share)
            if has_share
            else None
        )
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Back to the start: a zero table, the configured share."""
        if self.bias is not None:
            nn.init.zeros_(self.bias)
        if self.share is not None:
            nn.init.constant_(self.share, self._share_at_start)

    @property
    def changes_scores_only(self) -> bool:
        """Whether this layer is plain attention as long as its bias is zero."""
        return self.share is None and not self.dedicated and not self.integrity

    def reserved_share(self) -> Tensor | None:
        """The share in force, (H,) in [0, 1].

        The clamp passes its gradient on unchanged: an optimizer that steps over the edge can come back.
        """
        if self.share is None:
            return None
        clamped: Tensor = _Clamp.apply(self.share)  # type: ignore[no-untyped-call]
        return clamped

    def forward(self) -> tuple[Tensor | None, Tensor | None]:
        """Table and share in force. A call, so that hooks which bring parameters from elsewhere (offloading) run."""
        return self.bias, self.reserved_share()

    def extra_repr(self) -> str:
        return f"heads={self.heads}, dedicated={self.dedicated}, integrity={self.integrity}"
