"""Attention of few queries on a CPU: two products, without a copy of keys or values.

Legend: B batch, H query heads, G key/value heads, T queries, S keys, D head dim, R roles, P privileged keys of a row.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from rolesafe.attention.problem import PrivilegedKeys, Problem

FEW = 16
"""Number of queries up to which scores are computed in full: enough for assisted decoding."""


@dataclass(frozen=True)
class FewQueries:
    """Tokens of a call with few queries.

    Attributes:
        q: (B, H, T, D). `k`: (B, G, S, D). `v`: (B, G, S, Dv).
        rows: Bias of every pair, (B, H, T, S) in fp32 or wider; None: no bias.
        scale: Factor of the products.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    rows: Tensor | None
    scale: float

    @classmethod
    def of(cls, p: Problem) -> FewQueries:
        """Return the tokens of a problem with its bias by pairs."""
        if p.bias is None:
            return cls(p.q, p.k, p.v, None, p.scale)
        index = p.roles.keep("k index", lambda: p.roles.k_roles.long()[:, None, None, :])
        table = p.bias.to(torch.promote_types(p.q.dtype, torch.float32))
        rows = table[:, p.roles.q_roles.long()].transpose(0, 1)  # (B, H, T, R)
        return cls(p.q, p.k, p.v, rows.gather(3, index.expand(*rows.shape[:3], -1)), p.scale)

    def at(self, keys: PrivilegedKeys, k: Tensor, v: Tensor) -> FewQueries:
        """Return the same queries before the privileged keys `k`, `v` (B, G, P, D) alone."""
        rows = self.rows
        if rows is not None and keys.span is not None:
            rows = rows[..., slice(*keys.span)]
        elif rows is not None:
            rows = rows.gather(3, keys.index[:, None, None, :].expand(*rows.shape[:3], -1))
        return replace(self, k=k, v=v, rows=rows)

    def attend(self, first: int, last: int, mask: Tensor | None, counted: Tensor | None = None) -> Tensor:
        """Return the attention of the heads from `first` to `last`, (B, last - first, T, Dv) in the dtype of `v`.

        Softmax in fp32 or wider. Rows that see nothing are 0.

        Args:
            mask: (B | 1, H | 1, T, S) bool, False hides a key.
            counted: (B, 1, 1, S) bool; the mass on these keys becomes one more column of the output.
        """
        q, k, v, rows = self.q, self.k, self.v, self.rows
        group = q.shape[1] // k.shape[1]
        if first > 0 or last < q.shape[1]:
            q, rows = q[:, first:last], None if rows is None else rows[:, first:last]
            mask = mask if mask is None or mask.shape[1] == 1 else mask[:, first:last]
            if first % group or last % group:
                k, v = (x.repeat_interleave(group, dim=1)[:, first:last] for x in (k, v))
                group = 1
            else:
                k, v = (x[:, first // group : last // group] for x in (k, v))
        batch, heads, length, dim = q.shape
        by_group = (batch, heads // group, group * length)  # the query heads of a key head as more queries of it
        before = self.scale if q.dtype == torch.float16 else 1.0  # an unscaled product can be too large for fp16
        scores = torch.matmul((q * before if before != 1.0 else q).reshape(*by_group, dim), k.transpose(2, 3))
        scores = scores.view(batch, heads, length, -1).to(torch.promote_types(q.dtype, torch.float32))
        scale = self.scale / before
        scores = scores * scale if rows is None else torch.add(rows, scores, alpha=scale)
        if mask is not None:
            scores = scores.masked_fill(~mask, -torch.inf)
        empty = None
        if (mask is not None or rows is not None) and scores.shape[-1]:
            empty = torch.isneginf(scores.detach().amax(-1, keepdim=True))
            empty = empty if bool(empty.any()) else None
        mass = torch.softmax(scores if empty is None else scores.masked_fill(empty, 0.0), dim=-1)
        mass = mass if empty is None else mass.masked_fill(empty, 0.0)
        out = torch.matmul(mass.to(v.dtype).reshape(*by_group, -1), v).view(batch, heads, length, -1)
        if counted is None:
            return out
        return torch.cat([out, (mass * counted).sum(-1, keepdim=True).to(out.dtype)], dim=-1)
