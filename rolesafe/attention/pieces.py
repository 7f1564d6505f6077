"""Prefill and training on a CPU: flash attention of pieces, views of q, k and v, without folding and without a mask.

Legend: B batch, H query heads, G key/value heads, T queries, S keys, D head dim, R roles; N heads of a key head.

Between queries of one role and keys of one role the bias is one number per head, b_n, so PyTorch's flash attention is
called on views and the number is added to its log-sum-exp l_n. Over the pieces n of a query i:

    L_i = log sum_n exp(l_n,i + b_n)      o_i = sum_n exp(l_n,i + b_n - L_i) o_n,i

The privileged channel p_i, with M_i for L_i, is the same sum over the pieces of privileged keys: it costs no second
product. Backward, a piece is given the L_i and o_i of the whole row instead of its own, which makes its gradients those
of the whole (FlashAttention-2, Dao 2023, section 3.1). With out = (1 - w) o + w p and m = exp(M - L):

    pieces of other keys:        L - log(1 - w)   and  o
    pieces of privileged keys:   M - log g        and  p + (1 - w) m / g (o - p),     g = (1 - w) m + w

The gradient of the table needs no further product: sum_ij dS_ij = <V, dV> - sum_i exp(l_i + b - L_i) do_i.o_i.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from rolesafe.attention.channels import Buffers, Part, Whole
from rolesafe.attention.problem import Problem
from rolesafe.attention.stretches import Piece, RowPlan, Stretch

_flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default
_flash_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward.default


def pieces_attention(p: Problem, bias: Tensor | None, plan: tuple[RowPlan, ...]) -> Tensor:
    """Compute role-aware attention in pieces: (B, H, T, D) in the dtype of q.

    Args:
        bias: Table of the problem, None where it is known to be zero and to need no gradient.
        plan: From :func:`rolesafe.attention.stretches.stretches_of`.
    """
    q, k, v = (x if x.stride(-1) == 1 else x.contiguous() for x in (p.q, p.k, p.v))
    heads = q.shape[1] // k.shape[1]
    if p.dedicated % heads:  # the dedicated heads end between heads of one key head
        k, v = (x.repeat_interleave(heads, dim=1) for x in (k, v))
    out: Tensor = _Pieces.apply(q, k, v, bias, p.share, _Settings.of(p, bias, plan))  # type: ignore[no-untyped-call]
    return out


class _Settings(NamedTuple):
    plan: tuple[RowPlan, ...]
    k_roles: Tensor  # (B, S)
    scale: float
    dedicated: int
    integrity: bool
    alone_at_one: bool  # heads with a fixed share of 1 read the privileged channel alone
    keeps: bool  # for the backward pass

    @classmethod
    def of(cls, p: Problem, bias: Tensor | None, plan: tuple[RowPlan, ...]) -> _Settings:
        fixed_at_one = p.share is not None and p.share_is_fixed and bool((p.share == 1).any())
        k_roles = p.roles.keep("k index long", lambda: p.roles.k_roles.long())
        learns = any(x is not None and x.requires_grad for x in (p.q, p.k, p.v, bias, p.share))
        keeps = torch.is_grad_enabled() and learns
        return cls(plan, k_roles, p.scale, p.dedicated, p.integrity, fixed_at_one, keeps)


class _Row:
    """Tokens of one batch row by key heads: q (G, N, T, D), k and v (G, N, S, D) that repeat without a copy."""

    def __init__(
        self,
        index: int,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        bias: Tensor | None,
        share: Tensor | None,
        settings: _Settings,
    ) -> None:
        self.index, self.settings = index, settings
        self.order = settings.plan[index].order
        self.groups, self.heads = k.shape[1], q.shape[1] // k.shape[1]
        wide = torch.promote_types(q.dtype, torch.float32)
        self.q = self.of(q)
        self.k, self.v = (self.sorted(x[index]).unsqueeze(1).expand(-1, self.heads, -1, -1) for x in (k, v))
        self.table = None if bias is None else self.by_group(bias.detach().to(wide))  # (G, N, R, R)
        self.share = None if share is None else self.by_group(share.detach().to(wide)).unsqueeze(-1)  # (G, N, 1)
        self._by_key: dict[int, Tensor] = {}

    def by_group(self, x: Tensor) -> Tensor:
        """Return (H, ...) as (G, N, ...), a view."""
        return x.view(self.groups, self.heads, *x.shape[1:])

    def sorted(self, x: Tensor) -> Tensor:
        """Return keys or values (G, S, D) in the order of the plan."""
        return x if self.order is None else x.index_select(1, self.order)

    def of(self, x: Tensor) -> Tensor:
        """Return the view (G, N, T, ...) of this row in (B, H, T, ...)."""
        return self.by_group(x[self.index])

    def by_key(self, role: int) -> Tensor:
        """Return the bias of every key for queries of a role, (G, N, 1, S)."""
        if role not in self._by_key:
            assert self.table is not None
            self._by_key[role] = self.table[:, :, role, self.settings.k_roles[self.index]].unsqueeze(2)
        return self._by_key[role]


class _Queries:
    """Queries of one stretch and what they read.

    Attributes:
        alone: Number of key heads, the first ones, whose queries read the privileged channel alone.
        mixes: True where the other heads read two channels that differ.
        pieces: Keys that any head reads.
    """

    def __init__(self, row: _Row, stretch: Stretch) -> None:
        self.row, self.stretch = row, stretch
        settings = row.settings
        self.alone = row.groups if settings.integrity and stretch.privileged else settings.dedicated // row.heads
        self.pieces = [piece for piece in stretch.pieces if piece.privileged or self.alone < row.groups]
        kinds = {piece.privileged for piece in self.pieces}
        self.mixes = row.share is not None and self.alone < row.groups and len(kinds) == 2

    def first(self, piece: Piece) -> int:
        """Return the first key head whose queries read a piece."""
        return 0 if piece.privileged else self.alone

    def of(self, x: Tensor) -> Tensor:
        """Return these queries (G, N, t, ...) of a row (G, N, T, ...)."""
        return x[:, :, self.stretch.start : self.stretch.stop]

    def tokens(self, piece: Piece) -> tuple[Tensor, Tensor, Tensor]:
        """Return q (G', N, t, D), k and v (G', N, s, D) of a piece."""
        row, first, keys = self.row, self.first(piece), slice(piece.start, piece.stop)
        return self.of(row.q)[first:], row.k[first:, :, keys], row.v[first:, :, keys]

    def bias(self, piece: Piece) -> tuple[Tensor | None, Tensor | None]:
        """Return the bias of a piece as one number per head (G', N, 1), or key by key (G', N, t, s)."""
        row, first, role = self.row, self.first(piece), self.stretch.role
        if row.table is None:
            return None, None
        if piece.role is not None:
            return row.table[first:, :, role, piece.role, None], None
        by_key = row.by_key(role)[first:, :, :, piece.start : piece.stop]
        return None, by_key.expand(-1, -1, self.stretch.stop - self.stretch.start, -1)

    def attend(self, piece: Piece) -> Part:
        number, by_key = self.bias(piece)
        q, k, v = self.tokens(piece)
        out, lse = _flash(q, k, v, 0.0, piece.diagonal, attn_mask=by_key, scale=self.row.settings.scale)
        return out, lse if number is None else lse + number

    def forward(self, row_buffers: Buffers) -> list[Tensor]:
        """Write the output into the buffers of the row; return the log-sum-exp of each piece."""
        alone, share = self.alone, self.row.share
        found = [(piece, self.attend(piece)) for piece in self.pieces]
        special = [part for piece, part in found if piece.privileged]
        others = [part for piece, part in found if not piece.privileged]
        target = row_buffers.map(self.of)
        if alone or self.mixes:
            if alone:
                target.map(lambda x: x[:alone]).fill([(out[:alone], lse[:alone]) for out, lse in special])
            special = special[:0] if alone == self.row.groups else [(out[alone:], lse[alone:]) for out, lse in special]
        if alone < self.row.groups:
            target = target.map(lambda x: x[alone:]) if alone else target
            if self.mixes:
                assert share is not None
                target.mix(special, others, share[alone:], self.row.settings.alone_at_one)
            else:
                target.fill(special + others)
        return [lse for _, (_, lse) in found]

    def wholes(self, kept: Buffers) -> tuple[Whole, Whole]:
        """Return the whole rows for pieces of privileged keys (G heads) and of other keys (those after `alone`)."""
        alone, own = self.alone, kept.map(self.of)
        assert own.lse is not None
        whole = Whole(own.out, own.lse)
        if not self.mixes:
            return whole, Whole(*(x[alone:] for x in whole))
        assert self.row.share is not None
        privileged, others = own.map(lambda x: x[alone:]).mixed(self.row.share[alone:])
        if alone:
            privileged = Whole(*(torch.cat([x[:alone], y]) for x, y in zip(whole, privileged, strict=True)))
        return privileged, others

    def backward(self, kept: Buffers, grad: Tensor, lse_of: Iterator[Tensor], sums: _Gradients) -> None:
        """Add the gradients of these queries to the sums of the row.

        Args:
            grad: Gradient of the output of the row (G, N, T, D).
            lse_of: Log-sum-exp of each piece, read where the table has a gradient.
        """
        grad, dq_sum = self.of(grad), self.of(sums.q)
        privileged, others = self.wholes(kept)
        if self.mixes and sums.share is not None:
            own = kept.map(lambda x: self.of(x)[self.alone :])
            assert own.ordinary is not None
            assert own.privileged is not None
            by_head = (grad[self.alone :] * (own.privileged - own.ordinary)).sum((2, 3), dtype=sums.share.dtype)
            sums.share[self.alone :].add_(by_head)
        products: dict[bool, Tensor] = {}  # do.o of each query, (G', N, t)
        for piece in self.pieces:
            first, keys = self.first(piece), slice(piece.start, piece.stop)
            whole = privileged if piece.privileged else others
            number, by_key = self.bias(piece)
            lse = whole.lse if number is None else whole.lse - number
            q, k, v = self.tokens(piece)
            dq, dk, dv = _flash_backward(
                grad[first:], q, k, v, whole.out, lse, 0.0, piece.diagonal, attn_mask=by_key,
                scale=self.row.settings.scale,
            )  # fmt: skip
            dq_sum[first:].add_(dq)
            for total, part in ((sums.k, dk), (sums.v, dv)):
                total[first:, keys].add_(part[:, 0] if self.row.heads == 1 else part.sum(1, dtype=total.dtype))
            if sums.bias is not None:
                assert piece.role is not None
                if piece.privileged not in products:
                    products[piece.privileged] = (grad[first:] * whole.out).sum(-1, dtype=lse.dtype)
                fixed = (torch.exp(next(lse_of) - whole.lse) * products[piece.privileged]).sum(-1)
                own_bias = sums.bias[first:, :, self.stretch.role, piece.role]
                own_bias.add_((dv * v).sum((2, 3), dtype=fixed.dtype)).sub_(fixed)


class _Gradients(NamedTuple):
    """Sums of the gradients, in fp32 or wider: of one batch or of one row, as q, k, v, bias and share are there."""

    q: Tensor
    k: Tensor
    v: Tensor
    bias: Tensor | None
    share: Tensor | None

    @classmethod
    def like(cls, *of: Tensor | None) -> _Gradients:
        """Return zeros in the shapes of a batch."""
        wide = (x if x is None else torch.zeros_like(x, dtype=torch.promote_types(x.dtype, torch.float32)) for x in of)
        return cls(*wide)  # type: ignore[arg-type]

    def begin(self, row: _Row) -> _Gradients:
        """Return the sums of one row: q (G, N, T, D), k, v (G, S, D) as sorted, bias (G, N, R, R) and share (G, N)."""
        k, v = (x[row.index] if row.order is None else torch.zeros_like(x[row.index]) for x in (self.k, self.v))
        bias, share = (None if x is None else row.by_group(x) for x in (self.bias, self.share))
        return _Gradients(row.of(self.q), k, v, bias, share)

    def end(self, row: _Row, own: _Gradients) -> None:
        """Take over the sums of one row."""
        if row.order is not None:
            for whole, part in ((self.k, own.k), (self.v, own.v)):
                whole[row.index].index_copy_(1, row.order, part[:, : row.order.shape[0]])


class _Pieces(torch.autograd.Function):
    """Arguments q (B, H, T, D), k, v (B, G, S, D), bias (H, R, R), share (H,)."""

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, share: Tensor | None, settings: _Settings
    ) -> Tensor:
        buffers = Buffers.like(q, settings.keeps, share is not None)
        pieces: list[Tensor] = []
        for index, plan in enumerate(settings.plan):
            row = _Row(index, q, k, v, bias, share, settings)
            own = buffers.map(row.of)
            for stretch in plan.stretches:
                pieces += _Queries(row, stretch).forward(own)
        if settings.keeps:
            ctx.settings = settings
            ctx.save_for_backward(q, k, v, bias, share, *buffers, *(pieces if ctx.needs_input_grad[3] else ()))
        return buffers.out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, bias, share, *rest = ctx.saved_tensors
        kept, pieces = Buffers(*rest[:5]), iter(rest[5:])
        needs = ctx.needs_input_grad
        sums = _Gradients.like(q, k, v, bias if needs[3] else None, share if needs[4] else None)
        grad = grad if grad.stride(-1) == 1 else grad.contiguous()
        for index, plan in enumerate(ctx.settings.plan):
            row = _Row(index, q, k, v, bias, share, ctx.settings)
            own, own_grad, own_sums = kept.map(row.of), row.of(grad), sums.begin(row)
            for stretch in plan.stretches:
                _Queries(row, stretch).backward(own, own_grad, pieces, own_sums)
            sums.end(row, own_sums)
        given = (q, k, v, bias, share)
        found = zip(given, sums, needs, strict=False)
        return *(None if y is None or not need else y.to(x.dtype) for x, y, need in found), None
