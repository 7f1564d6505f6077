"""The parts of one attention layer: bias table, reserved share, dedicated heads, steering without training.

Steering by a factor on the attention weights, renormalised, is its logarithm on the scores: InstABoost multiplies the
weights of the instruction's keys by M, PASTA (arXiv 2311.02262) those of all other keys by 0.01. Both are constants in
the table of the bias.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from rolesafe.config import RoleConfig
from rolesafe.mechanisms.part import RolePart


class _Clamp(torch.autograd.Function):
    """Clamp to [0, 1] whose gradient is that of the identity."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clamp(0, 1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return grads[0]


class RoleHeads(RolePart):
    """What role-aware attention needs to know of one layer (H query heads, R roles).

    Attributes:
        bias: (H, R, R) added to the scores of query role x key role; absent where the configuration has no bias.
        share: (H,) reserved share of every head before clamping to [0, 1]; absent where the configuration has none.
        dedicated: Number of dedicated heads, the first of the layer.
        integrity: Whether privileged queries read the privileged channel alone.
        learns_share: Whether `share` is learned or a constant.
        mass_target: What the attention mass on privileged keys is raised to where it is lower; 0: nothing.
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
        """`active=False`: a layer outside ``config.layers``, which attends as its base does. `layer`: its index."""
        super().__init__()
        self.heads = heads
        self.dedicated = config.count_dedicated(heads) if active else 0
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
        return self.share is None and not self.dedicated and not self.integrity and not self.mass_target

    def reserved_share(self) -> Tensor | None:
        """The share in force, (H,) in [0, 1].

        The clamp passes its gradient on unchanged: an optimizer that steps over the edge can come back.
        """
        if self.share is None:
            return None
        # a constant has no gradient, whoever sets `requires_grad` (PEFT does, for all it saves)
        share = self.share if self.learns_share else self.share.detach()
        clamped: Tensor = _Clamp.apply(share)  # type: ignore[no-untyped-call]
        return clamped

    def steering(self, device: torch.device | None = None) -> Tensor | None:
        """The constants that `boost` and `dampen` add to the table, (H, R, R) in fp32; None where there are none."""
        if not self.steered:
            return None
        device = torch.device("cpu") if device is None else device
        # Compiled code makes its own: whether one is kept changes later, and it would be compiled anew.
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
        """Table and share as they are at full strength; `device` is where the constants in the table are needed.

        A call, so that hooks which bring parameters from elsewhere (offloading) run.
        """
        # A copy: hooks that brought the parameter (offloading, fully_shard of the part) free it after this call.
        table = None if self.bias is None else self.bias.clone()
        constants = self.steering(device)
        if constants is not None:
            # fp32 wins over a table in half precision, which would round log M to 8 bits
            table = constants if table is None else table + constants
        return table, self.reserved_share()

    def extra_repr(self) -> str:
        parts = f"heads={self.heads}, dedicated={self.dedicated}, integrity={self.integrity}"
        return f"{parts}, steered={len(self.steered)}, mass_target={self.mass_target}"
