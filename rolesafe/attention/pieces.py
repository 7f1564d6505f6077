"""Prefill and training on a CPU: flash attention over blocks of keys of one role, without folding and without a mask.

Legend: B batch, H query heads, G key/value heads, T queries, S keys, D head dim, R roles; H = A x C, with A x C = 1 x H
or G x (H / G).

Between a query of role r and keys of role c the bias is one number per head, so PyTorch's flash attention is called on
the keys of c alone and the number is added to its log-sum-exp l_c. With b_c = bias[h, r_i, c]:

    L_i = log sum_c exp(l_c,i + b_c)      o_i = sum_c exp(l_c,i + b_c - L_i) o_c,i

The privileged channel p_i, with M_i for L_i, is the same sum over privileged roles: it costs no second product.
Backward, a call is given the L_i and o_i of the whole row instead of its own, which makes its gradients those of the
whole (FlashAttention-2, Dao 2023, section 3.1). With out = (1 - w) o + w p and m = exp(M - L):

    other keys:        L - log(1 - w)   and  o
    privileged keys:   M - log g        and  p + (1 - w) m / g (o - p),     g = (1 - w) m + w

The gradient of the table follows from the outputs by role, without a product: with L and o of the line that applies,
sum_j dS_ij over the keys of c is exp(l_c,i + b_c - L_i) do_i.(o_c,i - o_i).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from rolesafe.attention.channels import Part, spans
from rolesafe.attention.problem import Problem
from rolesafe.attention.rows import Row, Settings
from rolesafe.attention.stretches import Block, Plan

_flash_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward.default

_CHUNK = 128
"""Queries whose products are taken at once."""


def pieces_attention(p: Problem, bias: Tensor | None, plan: Plan) -> Tensor:
    """Compute role-aware attention block by block: (B, H, T, D) in the dtype of q.

    Args:
        bias: Table of the problem, None where it is known to be zero and to need no gradient.
        plan: From :func:`rolesafe.attention.stretches.stretches_of`.
    """
    q, k, v = (x if x.stride(-1) == 1 else x.contiguous() for x in (p.q, p.k, p.v))
    heads = q.shape[1] // k.shape[1]
    if p.dedicated % heads:  # the dedicated heads end between heads of one key head
        k, v = (x.repeat_interleave(heads, dim=1) for x in (k, v))
    out: Tensor = _Pieces.apply(q, k, v, bias, p.share, Settings.of(p, bias, plan))  # type: ignore[no-untyped-call]
    return out


class _Kept(NamedTuple):
    """Results of one row that its backward pass needs.

    Attributes:
        whole: Output and log-sum-exp of all heads; where channels are mixed, the ordinary channel of the heads after
            the dedicated ones.
        privileged: Privileged channel of all heads where channels are mixed.
        by_role: Attention over the keys of each role, where the table has a gradient.
    """

    whole: Part
    privileged: Part | None
    by_role: list[Part]


def _forward(row: Row, out: Tensor, keeps: bool, learns: bool) -> _Kept | None:
    """Write the output of a row, (A, C, T, D)."""
    channels: dict[bool, list[Part]] = {True: [], False: []}
    by_role = []
    for blocks in row.by_role():
        part = row.attend(blocks)
        if learns:
            by_role.append(part)
        bias = row.bias(blocks[0], part.start, part.stop)
        part = Part(part.out, part.lse if bias is None else part.lse + bias, part.start, part.stop, learns, part.holes)
        own = channels[blocks[0].privileged]
        if len(own) == 2:
            own[:] = [own[0].plus(own[1])]
        own.append(part)
    mixes = row.share is not None and bool(channels[True] and channels[False])
    alone = channels[True] or channels[False]
    sums: tuple[Part | None, Part | None]
    if len(alone) == 2 and not row.first and not (channels[True] and channels[False]):
        sums = alone[0], alone[1]  # two parts of one channel: their sum is written to its place
    else:
        sums = _sum(channels[True]), _sum(channels[False])
    privileged, others = sums
    length = out.shape[2]
    lse = row.q.new_full((*out.shape[:2], length), -torch.inf, dtype=row.wide) if keeps else None
    if row.settings.dedicated:
        dedicated, dedicated_lse = row.before(out), None if lse is None else row.before(lse)
        for start, stop, (only,) in spans(length, _sub(privileged, row.before)):
            rows_lse = None if dedicated_lse is None else dedicated_lse[:, :, start:stop]
            _fill(dedicated[:, :, start:stop], rows_lse, only)
    shared = _sub(privileged, row.after)
    ordinary = None
    if mixes and keeps:
        a, c, _, dim = row.after(out).shape
        ordinary = out.new_empty(a, length, c, dim).transpose(1, 2)
    target, target_lse = row.after(out), None if lse is None else row.after(lse)
    for start, stop, (p, o) in spans(length, shared, others):
        rows = target[:, :, start:stop]
        rows_lse = None if target_lse is None else target_lse[:, :, start:stop]
        if p is None or o is None:
            _fill(rows, rows_lse, p if o is None else o)
            if ordinary is not None:
                ordinary[:, :, start:stop] = rows
            continue
        weight = p.weight_against(o)
        if rows_lse is not None:
            torch.logaddexp(p.lse, o.lse, out=rows_lse)
        if mixes:
            share = _share(row, p).unsqueeze(-1)
            if ordinary is None:
                weight = torch.lerp(weight, torch.ones_like(weight), share)
            else:
                whole = _lerp(o.out, p.out, weight, ordinary[:, :, start:stop])
                o, weight = Part(whole, o.lse, start, stop), share
        _lerp(o.out, p.out, weight, rows)
        if mixes and row.settings.alone:  # 0 * NaN is NaN, and unread keys must have no effect
            _read_alone(row, rows, p)
    if not keeps:
        return None
    if not mixes:
        assert lse is not None
        return _Kept(Part(out, lse, 0, length), None, by_role)
    assert ordinary is not None
    assert target_lse is not None
    assert privileged is not None
    return _Kept(Part(ordinary, target_lse, 0, length), privileged, by_role)


def _sum(parts: list[Part]) -> Part | None:
    return parts[0].plus(parts[1]) if len(parts) == 2 else parts[0] if parts else None


def _sub(part: Part | None, heads: Callable[[Tensor], Tensor]) -> Part | None:
    if part is None:
        return None
    return Part(heads(part.out), heads(part.lse), part.start, part.stop, part.shared, part.holes)


def _fill(out: Tensor, lse: Tensor | None, part: Part | None) -> None:
    """Write one channel; 0 for queries that see nothing."""
    if part is None:
        out.zero_()
        return
    out.copy_(part.out)
    if lse is not None:
        lse.copy_(part.lse)


def _lerp(a: Tensor, b: Tensor, weight: Tensor, out: Tensor) -> Tensor:
    """Return (1 - weight) a + weight b, written to `out` too."""
    if out.dtype == a.dtype:
        return torch.lerp(a, b, weight, out=out)
    mixed = torch.lerp(a, b, weight)
    out.copy_(mixed)
    return mixed


def _share(row: Row, privileged: Part) -> Tensor:
    """Return the share of the privileged channel, (A, C', t | 1); 0 for queries that see no privileged key."""
    assert row.share is not None
    return row.share * privileged.sees() if privileged.holes else row.share


def _read_alone(row: Row, out: Tensor, privileged: Part) -> None:
    """Write the privileged channel alone to the heads that read no other."""
    for head in row.settings.alone:
        at = (0, head) if row.own_keys else (head // row.q.shape[1], head % row.q.shape[1])
        own = privileged.out[at].to(out.dtype)
        out[at] = torch.where(privileged.sees()[at].unsqueeze(-1), own, out[at]) if privileged.holes else own


class _Gradients(NamedTuple):
    """Gradients of one row: q (A, C, T, D) in fp32 or wider, k, v (G, S, D), bias (A, C, R, R) and share (A, C)."""

    q: Tensor
    k: Tensor
    v: Tensor
    bias: Tensor | None
    share: Tensor | None


def _wholes(row: Row, kept: _Kept) -> tuple[Part, Part]:
    """Return output and log-sum-exp of whole rows for privileged keys (all heads) and for other keys."""
    whole, privileged = kept.whole, kept.privileged
    if privileged is None:
        after = _sub(whole, row.after)
        assert after is not None
        return whole, after
    p, o = _sub(privileged, row.after), whole.of(privileged.start, privileged.stop)
    assert p is not None
    share = _share(row, p)
    through_ordinary = (1 - share) * torch.exp(p.lse - o.lse)
    weight = through_ordinary + share  # of p in the output
    part = torch.where(weight > 0, through_ordinary / weight, 0.0).unsqueeze(-1)
    out, lse = torch.lerp(p.out, o.out.to(p.out.dtype), part.to(p.out.dtype)), p.lse - torch.log(weight)
    if row.settings.dedicated:
        out = torch.cat([row.before(privileged.out), out], row.axis)
        lse = torch.cat([row.before(privileged.lse), lse], row.axis)
    lessened = whole.lse.clone()
    lessened[:, :, p.start : p.stop].sub_(torch.log1p(-share))
    return Part(out, lse, p.start, p.stop), Part(whole.out, lessened, whole.start, whole.stop)


def _backward(row: Row, kept: _Kept, grad: Tensor, sums: _Gradients) -> None:
    """Add the gradients of a row, given that of its output (A, C, T, D)."""
    wholes = dict(zip((True, False), _wholes(row, kept), strict=True))
    # by queries in memory, as PyTorch's kernel wants it: the queries of a call are then a view
    grads = {True: _by_query(grad)}
    grads[False] = _by_query(row.after(grad)) if row.settings.dedicated else grads[True]
    wholes = {at: Part(x.out.to(grad.dtype), x.lse, x.start, x.stop) for at, x in wholes.items()}
    dots: dict[bool, Tensor] = {}  # do.o of each query, (A, C', T)
    for index, blocks in enumerate(row.by_role()):
        at = blocks[0].privileged
        whole, by_head = wholes[at], grads[at]
        bias = row.bias(blocks[0], whole.start, whole.stop)
        if bias is not None:
            whole = Part(whole.out, whole.lse - bias, whole.start, whole.stop)
        for block in blocks:
            k, v, mask = row.keys(block)
            dk = dv = None
            for start, stop, diagonal in block.calls:
                q, own = row.reads(row.q, block)[:, :, start:stop], whole.of(start, stop)
                dq, more_k, more_v = _flash_backward(
                    by_head[:, :, start:stop], q, k, v, own.out, own.lse, 0.0, diagonal, attn_mask=mask,
                    scale=row.settings.scale,
                )  # fmt: skip
                row.reads(sums.q, block)[:, :, start:stop].add_(dq)
                dk, dv = (more_k, more_v) if dk is None or dv is None else (dk + more_k, dv + more_v)
            assert dk is not None
            assert dv is not None
            _put(row, block, sums.k, dk)
            _put(row, block, sums.v, dv)
        if sums.bias is not None:
            if at not in dots:
                covered = slice(whole.start, whole.stop)
                dots[at] = _products(by_head[:, :, covered], whole.out, row.wide)
            _add_to_table(row, blocks[0], kept.by_role[index], whole, by_head, dots[at], sums.bias)
    if sums.share is not None and kept.privileged is not None:
        p = _sub(kept.privileged, row.after)
        assert p is not None
        o, own_grad = kept.whole.of(p.start, p.stop), row.after(grad)[:, :, p.start : p.stop]
        by_query = (own_grad * (p.out - o.out)).sum(-1, dtype=row.wide)
        if p.holes:
            by_query = torch.where(p.sees(), by_query, 0.0)
        row.after(sums.share).add_(by_query.sum(-1))


def _by_query(grad: Tensor) -> Tensor:
    """Return (A, C, T, D) laid out in memory as (A, T, C, D)."""
    return grad.transpose(1, 2).contiguous().transpose(1, 2)


def _products(a: Tensor, b: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the inner products of the rows of two tensors (A, C, t, D): (A, C, t)."""
    found = a.new_empty(a.shape[:3], dtype=dtype)
    # few queries at a time: a product as large as the tokens is slower to allocate than to compute
    for start in range(0, a.shape[2], _CHUNK):
        rows = slice(start, start + _CHUNK)
        torch.sum(a[:, :, rows] * b[:, :, rows], -1, dtype=dtype, out=found[:, :, rows])
    return found


def _put(row: Row, block: Block, into: Tensor, grad: Tensor) -> None:
    """Write the gradient of the keys or values of a block, (A, C', s, D), into that of a row (G, S, D)."""
    by_key = grad[0] if row.own_keys else grad.sum(1, dtype=row.wide)
    into, at = into[into.shape[0] - by_key.shape[0] :], 0
    for start, stop in block.runs:
        into[:, start:stop] = by_key[:, at : at + stop - start]
        at += stop - start


def _add_to_table(row: Row, block: Block, part: Part, whole: Part, grad: Tensor, dots: Tensor, into: Tensor) -> None:
    """Add the sum of the gradients of all scores between each role of queries and the role of a block."""
    assert block.role is not None
    rows = slice(part.start - whole.start, part.stop - whole.start)
    own = _products(grad[:, :, part.start : part.stop], part.out, row.wide) - dots[:, :, rows]
    mass = torch.exp(part.lse - whole.lse[:, :, rows])  # `whole` is less the bias
    by_query = own * mass
    if part.holes:
        by_query = torch.where(part.sees(), by_query, 0.0)
    onehot = torch.nn.functional.one_hot(row.roles[part.start : part.stop], into.shape[2]).to(row.wide)
    row.reads(into, block)[:, :, :, block.role].add_(by_query @ onehot)


def _flat(rows: list[_Kept | None]) -> tuple[list[Tensor], list[list[tuple[int, int, bool] | None]]]:
    """Return the tensors of what is kept, and the rest of it."""
    tensors: list[Tensor] = []
    about: list[list[tuple[int, int, bool] | None]] = []
    for kept in rows:
        assert kept is not None
        parts = [kept.whole, kept.privileged, *kept.by_role]
        tensors += [x for part in parts if part is not None for x in (part.out, part.lse)]
        about.append([None if part is None else (part.start, part.stop, part.holes) for part in parts])
    return tensors, about


def _unflat(tensors: list[Tensor], about: list[list[tuple[int, int, bool] | None]]) -> Iterator[_Kept]:
    left = iter(tensors)
    for row in about:
        parts = [None if x is None else Part(next(left), next(left), x[0], x[1], holes=x[2]) for x in row]
        whole, privileged, *by_role = parts
        assert whole is not None
        yield _Kept(whole, privileged, [x for x in by_role if x is not None])


class _Pieces(torch.autograd.Function):
    """Arguments q (B, H, T, D), k, v (B, G, S, D), bias (H, R, R), share (H,)."""

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, share: Tensor | None, settings: Settings
    ) -> Tensor:
        batch, heads, length, dim = q.shape
        out = q.new_empty(batch, length, heads, dim).transpose(1, 2)
        kept = []
        for index in range(batch):
            row = Row(index, q, k, v, bias, share, settings)
            for stretch in settings.plan[index]:
                rows = row.heads(out[index])[:, :, stretch.start : stretch.stop]
                kept.append(_forward(row.of(stretch), rows, settings.keeps, ctx.needs_input_grad[3]))
        if settings.keeps:
            ctx.settings = settings
            tensors, ctx.kept = _flat(kept)
            ctx.save_for_backward(q, k, v, bias, share, *tensors)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, bias, share, *tensors = ctx.saved_tensors
        needs = ctx.needs_input_grad
        wide = torch.promote_types(q.dtype, torch.float32)
        batch, heads, length, dim = q.shape
        dq = q.new_zeros(batch, length, heads, dim, dtype=wide).transpose(1, 2)
        dk, dv = torch.zeros_like(k), torch.zeros_like(v)
        dbias, dshare = (
            torch.zeros_like(x, dtype=wide) if x is not None and need else None
            for x, need in ((bias, needs[3]), (share, needs[4]))
        )
        for index, kept in enumerate(_unflat(tensors, ctx.kept)):
            (stretch,) = ctx.settings.plan[index]
            row = Row(index, q, k, v, bias, share, ctx.settings).of(stretch)
            tables = (None if x is None else row.heads(x) for x in (dbias, dshare))
            sums = _Gradients(row.heads(dq[index]), dk[index], dv[index], *tables)
            _backward(row, kept, row.heads(grad[index]), sums)
        found = zip((q, k, v, bias, share), (dq, dk, dv, dbias, dshare), needs, strict=False)
        return *(None if y is None or not need else y.to(x.dtype) for x, y, need in found), None
