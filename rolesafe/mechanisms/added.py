"""Attention heads that are added to a layer and read privileged keys only.

Legend: B batch, T tokens, H query heads, G key/value heads, D head dim, d hidden size, A added heads.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rolesafe.mechanisms.part import RolePart


class AddedHeads(RolePart):
    """Add A heads to an attention layer, each with a key/value head of its own.

    They start as copies of heads of the base and with an output projection of zero, so that nothing changes before they
    are trained, and nothing is taken from the base.

    Args:
        heads: A.
        hidden: d.
        dim: D of queries and keys. `value_dim`: that of values.
        biased: True where the base's projection to queries, keys, values has a bias.

    Attributes:
        q_weight: (A D, d). `k_weight`: (A D, d). `v_weight`: (A Dv, d). `o_weight`: (d, A Dv).
        q_bias: (A D,); None without `biased`. `k_bias`, `v_bias`: likewise.
    """

    def __init__(
        self,
        heads: int,
        hidden: int,
        dim: int,
        value_dim: int,
        biased: tuple[bool, bool, bool] = (False, False, False),
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | None = None,
    ) -> None:
        super().__init__()
        self.heads = heads
        for which, width, has_bias in zip("qkv", (dim, dim, value_dim), biased, strict=True):
            weight = nn.Parameter(torch.empty(heads * width, hidden, dtype=dtype, device=device))
            bias = nn.Parameter(torch.empty(heads * width, dtype=dtype, device=device)) if has_bias else None
            self.register_parameter(f"{which}_weight", weight)
            self.register_parameter(f"{which}_bias", bias)
        self.o_weight = nn.Parameter(torch.zeros(hidden, heads * value_dim, dtype=dtype, device=device))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw queries, keys and values as `nn.Linear` does, and zero the output projection."""
        for which in "qkv":
            weight, bias = getattr(self, f"{which}_weight"), getattr(self, f"{which}_bias")
            nn.init.kaiming_uniform_(weight, a=5**0.5)
            if bias is not None:
                nn.init.zeros_(bias)
        nn.init.zeros_(self.o_weight)

    @torch.no_grad()
    def copy_heads(self, q: nn.Linear, k: nn.Linear, v: nn.Linear, *, heads: int) -> None:
        """Copy A of the `heads` query heads of the base, evenly spaced, and the key/value heads that they use."""
        chosen = torch.arange(self.heads) * heads // self.heads
        for which, source in zip("qkv", (q, k, v), strict=True):
            width = getattr(self, f"{which}_weight").shape[0] // self.heads
            count = source.weight.shape[0] // width
            index = (chosen * count // heads).to(source.weight.device)
            for name in ("weight", "bias"):
                own, base = getattr(self, f"{which}_{name}"), getattr(source, name)
                if own is not None:
                    own.copy_(base.unflatten(0, (count, width))[index].flatten(0, 1))

    def forward(self, which: str, x: Tensor) -> Tensor:
        """Project `x` (B, T, d) to the added heads' queries, keys or values, or (B, T, A Dv) back to (B, T, d).

        Args:
            which: ``"q"``, ``"k"``, ``"v"`` or ``"o"``.
        """
        weight: Tensor = getattr(self, f"{which}_weight")
        bias: Any = None if which == "o" else getattr(self, f"{which}_bias")
        return F.linear(x, weight.to(x.dtype), None if bias is None else bias.to(x.dtype))

    def extra_repr(self) -> str:
        return f"heads={self.heads}"
