"""Outputs over sets of keys, put together by their log-sum-exp, and the two channels of one call.

Legend: B batch, H query heads, T queries, D head dim; G key/value heads, N query heads of each; t queries of a stretch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

Part = tuple[Tensor, Tensor]
"""Output (G', N, t, D) and log-sum-exp (G', N, t) over some keys."""


def merge(parts: list[Part], out: Tensor | None = None) -> Part:
    """Return output and log-sum-exp over several sets of keys, in fp32 or wider where there are several.

    Args:
        out: Written with the output too, in its own dtype.
    """
    whole, lse = parts[0]
    for index, (part, other) in enumerate(parts[1:], 2):
        whole = _mixed(whole, part, torch.sigmoid(other - lse), out if index == len(parts) else None)
        lse = torch.logaddexp(lse, other)
    if out is not None and len(parts) == 1:
        out.copy_(whole)
    return whole, lse


def _mixed(a: Tensor, b: Tensor, weight: Tensor, out: Tensor | None) -> Tensor:
    """Return (1 - weight) a + weight b in the dtype of `weight` (G', N, t), written to `out` too."""
    weight = weight.unsqueeze(-1)
    a, b = a.to(weight.dtype), b.to(weight.dtype)
    if out is None or out.dtype == weight.dtype:
        return torch.lerp(a, b, weight, out=out)
    mixed = torch.lerp(a, b, weight)
    out.copy_(mixed)
    return mixed


class Whole(NamedTuple):
    """Output (G', N, t, D) and log-sum-exp (G', N, t) of whole rows, which the gradients of their pieces depend on."""

    out: Tensor
    lse: Tensor


class Buffers(NamedTuple):
    """Results, (B, H, T, D) and (B, H, T), or views of them. All but `out` are None where there is no backward pass.

    Attributes:
        lse: Of the ordinary channel, or of the privileged one where that is read alone.
        ordinary, privileged, privileged_lse: Both channels where they are mixed; None without a share.
    """

    out: Tensor
    lse: Tensor | None = None
    ordinary: Tensor | None = None
    privileged: Tensor | None = None
    privileged_lse: Tensor | None = None

    @classmethod
    def like(cls, q: Tensor, keeps: bool, mixes: bool) -> Buffers:
        batch, heads, length, dim = q.shape

        def tokens() -> Tensor:
            return q.new_empty(batch, length, heads, dim).transpose(1, 2)

        def lse() -> Tensor:
            return q.new_empty(batch, heads, length, dtype=torch.promote_types(q.dtype, torch.float32))

        if not keeps:
            return cls(tokens())
        return cls(tokens(), lse(), tokens(), tokens(), lse()) if mixes else cls(tokens(), lse())

    def map(self, view: Callable[[Tensor], Tensor]) -> Buffers:
        return Buffers(*(None if x is None else view(x) for x in self))  # type: ignore[arg-type]

    def fill(self, parts: list[Part]) -> None:
        """Write one channel; 0 for queries that see nothing."""
        if not parts:
            self.out.zero_()
            return
        _, lse = merge(parts, self.out)
        if self.lse is not None:
            self.lse.copy_(lse)

    def mix(self, special: list[Part], others: list[Part], share: Tensor, alone_at_one: bool) -> None:
        """Write privileged keys and the others in two channels, mixed by `share` (G', N, 1)."""
        p, p_lse = merge(special, self.privileged)
        rest, rest_lse = merge(others)
        weight = torch.sigmoid(p_lse - rest_lse)  # of p in the ordinary channel
        if self.ordinary is None:
            weight = torch.lerp(weight, torch.ones_like(weight), share)
        else:
            assert self.lse is not None
            assert self.privileged_lse is not None
            torch.logaddexp(p_lse, rest_lse, out=self.lse)
            self.privileged_lse.copy_(p_lse)
            rest = _mixed(rest, p, weight, self.ordinary)
            weight = share.expand_as(weight)
        _mixed(rest, p, weight, self.out)
        if alone_at_one:  # 0 * NaN is NaN, and unread keys must have no effect
            self.out.copy_(torch.where(share.unsqueeze(-1) == 1, p, self.out))

    def mixed(self, share: Tensor) -> tuple[Whole, Whole]:
        """Return the rows for pieces of privileged keys and of other keys, where `share` (G', N, 1) mixes them."""
        o, p, lse, privileged_lse = self.ordinary, self.privileged, self.lse, self.privileged_lse
        assert o is not None
        assert p is not None
        assert lse is not None
        assert privileged_lse is not None
        through_ordinary = (1 - share) * torch.exp(privileged_lse - lse)
        weight = through_ordinary + share  # of p in the output
        part = torch.where(weight > 0, through_ordinary / weight, 0.0).unsqueeze(-1)
        privileged = Whole(torch.lerp(p, o, part.to(p.dtype)), privileged_lse - torch.log(weight))
        return privileged, Whole(o, lse - torch.log1p(-share))
