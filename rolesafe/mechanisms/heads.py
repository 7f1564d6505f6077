"""Role parts of one attention layer: bias table, reserved share, dedicated heads, steering without training.

Steering by a factor on the attention weights, renormalised, is its logarithm on the scores: InstABoost multiplies the
weights of the instruction's keys by M, PASTA (arXiv 2311.02262) those of all other keys by 0.01. Both are constants in
the bias table.

Legend: H query heads, R roles.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from rolesafe.config import RoleConfig
from rolesafe.mechanisms.part import RolePart


class _Clamp(torch.autograd.Function):
    """Clamp to [floor, 1] with the gradient of the identity.

    With a floor > 0, at and below it, gradients that would lower the share are zeroed: an optimizer that prefers less
    than the floor would otherwise move ever further away from it.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, floor: float) -> Tensor:
        ctx.floor = floor
        ctx.save_for_backward(x)
        return x.clamp(floor, 1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        if not ctx.floor:
            return grads[0], None
        (x,) = ctx.saved_tensors
        return grads[0].masked_fill((x <= ctx.floor) & (grads[0] > 0), 0.0), None


class RoleHeads(RolePart):
    """Hold the parameters and settings of role-aware attention in one layer.

    Args:
        config: The model's role configuration.
        heads: H.
        active: False for a layer outside ``config.layers``, whose attention is that of the base.
        layer: Index of the layer, for pairs (layer, head) of the configuration.
        dtype, device: Of the parameters.

    Attributes:
        bias: (H, R, R) added to the scores, [head, query role, key role]; None without a bias.
        share: (H,) reserved share of every head before clamping to [share_floor, 1]; None without a share.
        dedicated: Number of dedicated heads, the first of the layer; a patch moves listed ones there.
        integrity: True if privileged queries read the privileged channel alone.
        learns_share: True if `share` is learned, False if it is constant.
        share_floor: Least reserved share.
        mass_target: Lower attention mass on privileged keys is raised to this; 0: not raised.
    """

    bias: nn.Parameter | None
    share: nn.Parameter | None

    def __init__(
        self,
        config: RoleConfig,
        heads: int,
        *,
        active: bool = True,
        layer: int = 0,
        dtype: torch.dtype | None = None,
        device: torch.device | None = None,
    ) -> None:
        super().__init__()
        self.heads = heads
        self.dedicated = config.count_dedicated(heads, layer) if active else 0
        self.integrity = config.integrity and active
        self.mass_target = config.mass_target if active else 0.0
        self._boost, self._dampen = math.log(config.boost), math.log(config.dampen)
        self._privileged = config.privileged_ids
        chosen = config.steered_heads
        steered = range(heads) if chosen is None else sorted(head for i, head in chosen if i == layer)
        steers = active and (self._boost != 0.0 or self._dampen != 0.0)
        self.steered = tuple(head for head in steered if head >= self.dedicated) if steers else ()
        self._num_roles = len(config.roles)
        self._constants: Tensor | None = None
        self._share_at_start, self.learns_share = config.share, config.learn_share
        self.share_floor = config.share_floor
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
        """Set the bias to zero and the share to that of the configuration."""
        if self.bias is not None:
            nn.init.zeros_(self.bias)
        if self.share is not None:
            nn.init.constant_(self.share, self._share_at_start)

    @property
    def changes_scores_only(self) -> bool:
        """True if this layer is plain attention as long as its bias is zero."""
        return self.share is None and not self.dedicated and not self.integrity and not self.mass_target

    @property
    def changes_share_only(self) -> bool:
        """True if this layer is plain attention but for its reserved share."""
        scores = self.bias is not None or bool(self.steered)
        return self.share is not None and not (scores or self.dedicated or self.integrity or self.mass_target)

    def reserved_share(self) -> Tensor | None:
        """Return the share clamped to [share_floor, 1], (H,); None without a share.

        The clamp has the gradient of the identity, so an optimizer that leaves [0, 1] can return. At a positive floor
        it has no gradient that would lower the share.
        """
        share: Tensor | None = self.share
        if share is None:
            return None
        if torch.is_grad_enabled() and share.requires_grad:
            if self.learns_share:
                clamped: Tensor = _Clamp.apply(share, self.share_floor)  # type: ignore[no-untyped-call]
                return clamped
            share = share.detach()  # PEFT sets `requires_grad` of all that it saves; a constant share gets no gradient
        return share.clamp(self.share_floor, 1)

    def steering(self, device: torch.device | None = None) -> Tensor | None:
        """Return the constants of `boost` and `dampen`, (H, R, R) in fp32; None without any."""
        if not self.steered:
            return None
        device = torch.device("cpu") if device is None else device
        # Compiled code makes its own: a change of `_constants` would recompile it.
        kept = None if torch.compiler.is_compiling() else self._constants
        if kept is not None and kept.device == device:
            return kept
        with torch.inference_mode(False):  # it outlives this call
            of_key = torch.full((self._num_roles,), self._dampen, device=device)
            of_key[list(self._privileged)] = self._boost
            table = torch.zeros(self.heads, self._num_roles, self._num_roles, device=device)
            table[list(self.steered)] = of_key
        if not torch.compiler.is_compiling():
            self._constants = table
        return table

    def forward(self, device: torch.device | None = None) -> tuple[Tensor | None, Tensor | None]:
        """Return bias table (H, R, R) and share (H,) at full strength; constants are put on `device`.

        This is `forward`, so hooks that move parameters (offloading) run.
        """
        # A copy: hooks that moved the parameter (offloading, fully_shard of the part) free it after this call.
        table: Tensor | None = self.bias
        if table is not None and (torch.is_grad_enabled() or self._has_hooks()):
            table = table.clone()
        if self.steered and (constants := self.steering(device)) is not None:
            # fp32 wins over a table in half precision, which would round log M to 8 bits
            table = constants if table is None else table + constants
        return table, self.reserved_share()

    def _has_hooks(self) -> bool:
        """Return True where something runs around `forward`: hooks, or a `forward` that accelerate replaced."""
        return bool(self._forward_hooks or self._forward_pre_hooks or "forward" in self.__dict__)

    def extra_repr(self) -> str:
        parts = f"heads={self.heads}, dedicated={self.dedicated}, integrity={self.integrity}"
        return f"{parts}, steered={len(self.steered)}, mass_target={self.mass_target}"
