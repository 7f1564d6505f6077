"""Outputs over sets of keys, put together by their log-sum-exp.

Legend: H query heads as A x C, T queries, t queries of a part, D head dim.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor


@dataclass(frozen=True)
class Part:
    """Attention over some keys, of the queries from `start` to `stop`.

    Attributes:
        out: Output (A, C, t, D). `lse`: log-sum-exp (A, C, t) in fp32 or wider.
        shared: True where `out` is in use elsewhere and must stay as it is.
        holes: True where some queries may see none of the keys: their output is 0, their log-sum-exp -inf.
    """

    out: Tensor
    lse: Tensor
    start: int
    stop: int
    shared: bool = False
    holes: bool = False

    def of(self, start: int, stop: int) -> Part:
        """Return the queries from `start` to `stop`, views."""
        rows = slice(start - self.start, stop - self.start)
        return Part(self.out[:, :, rows], self.lse[:, :, rows], start, stop, self.shared, self.holes)

    def sees(self) -> Tensor:
        """Return (A, C, t) bool, True for queries that see any of the keys."""
        return ~torch.isneginf(self.lse)

    def weight_against(self, other: Part) -> Tensor:
        """Return the weight of this part in the attention over its keys and those of `other`, (A, C, t, 1)."""
        weight = torch.sigmoid(self.lse - other.lse)
        if self.holes:  # -inf less -inf is NaN
            weight = torch.where(self.sees(), weight, 0.0)
        return weight.unsqueeze(-1)

    def plus(self, other: Part) -> Part:
        """Return the attention over the keys of both parts, in place of this one where it is not shared."""
        start, stop = min(self.start, other.start), max(self.stop, other.stop)
        if (start, stop) != (self.start, self.stop):
            target = self._blank(start, stop)
            whole = target.of(self.start, self.stop)
            whole.out.copy_(self.out)
            whole.lse.copy_(self.lse)
            before = target
        elif self.shared:
            before, target = self, Part(torch.empty_like(self.out), self.lse.clone(), start, stop, False, self.holes)
            for rows in (slice(0, other.start - start), slice(other.stop - start, None)):
                target.out[:, :, rows] = self.out[:, :, rows]
        else:
            before = target = self
        own, into = before.of(other.start, other.stop), target.of(other.start, other.stop)
        torch.lerp(own.out, other.out, other.weight_against(own), out=into.out)
        torch.logaddexp(own.lse, other.lse, out=into.lse)
        return target

    def _blank(self, start: int, stop: int) -> Part:
        """Return the attention over no keys, laid out in memory by queries."""
        a, c, _, dim = self.out.shape
        out = self.out.new_zeros(a, stop - start, c, dim).transpose(1, 2)
        lse = self.lse.new_full((a, c, stop - start), -torch.inf)
        return Part(out, lse, start, stop, holes=True)


def spans(length: int, *parts: Part | None) -> list[tuple[int, int, list[Part | None]]]:
    """Cut `length` queries where parts start or stop: first query, end, and the parts, None where one has no query."""
    cuts = sorted({0, length, *(x for part in parts if part is not None for x in (part.start, part.stop))})
    return [
        (a, b, [None if x is None or x.start > a or x.stop < b else x.of(a, b) for x in parts])
        for a, b in pairwise(cuts)
    ]
