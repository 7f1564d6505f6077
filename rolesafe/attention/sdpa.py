"""Role-aware attention through PyTorch's fused `scaled_dot_product_attention`, in linear memory, on any device.

Legend: B batch, H query heads, G key/value heads, T queries, S keys, D head dim, R roles, P privileged keys of a row.

The bias of a head is a table with R rows, so as a (T, S) matrix it has rank R at most and fits into the head dimension:

    q' = [q, bias[h, r_i, :] / scale]      k' = [k, onehot(c_j)]      scale * q'.k' = scale * q.k + bias[h, r_i, c_j]

FlashBias (Wu et al., NeurIPS 2025, arXiv 2505.12044) folds biases of low rank in the same way.

The privileged channel is a second, short call over the privileged keys alone. Dedicated heads make only that one.
Where a mass target is set, one more column of v, 1 at privileged keys, adds their mass to the output.
Folding copies keys and values. On a CPU, calls of few queries (decoding) add the bias to the scores instead, and longer
ones are computed in pieces of one role where these are not too small.
Folded, sliding windows and several queries that continue a cache (1 < T < S) need the (T, S) mask that PyTorch's op
asks for, one for all heads. Nothing here is per head and (T, S).
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from rolesafe.attention.few import FEW, FewQueries
from rolesafe.attention.pieces import pieces_attention
from rolesafe.attention.problem import PrivilegedKeys, Problem, RoleIndex
from rolesafe.attention.stretches import stretches_of

_HIDE = -(2.0**100)
"""Finite replacement of -inf inside a dot product, where 0 * -inf would be NaN; its exponential is exactly 0.

A power of two is exact in every dtype and order of summation, so that a row that sees nothing gets the same score
forward and backward.
"""
_HALF_UNIT = 256.0
"""Value of k' in place of 1 in fp16, whose largest number is 65504: the range of a column of q' is 256 times that."""


class _Folded(NamedTuple):
    """q' (B, H, T, D'), k' (B, G, S, D'), v' (B, G, S, D')."""

    q: Tensor
    k: Tensor
    v: Tensor


def sdpa_attention(problem: Problem) -> Tensor:
    """Compute role-aware attention of `problem`: (B, H, T, Dv) in the dtype of q."""
    p = problem
    dim, heads, first = p.v.shape[-1], p.q.shape[1], p.dedicated
    few = _is_few(p)
    if not few and (out := in_pieces(p)) is not None:
        return out
    if p.mass_target and not few:
        p = replace(p, v=_with_mass(p))
    hidden = p.hidden_pairs()
    tokens = FewQueries.of(p) if few else _fold(p, hidden)
    # Rows that see nothing because of the table: no finite replacement of -inf gives 0 there.
    sight = _sight(p, hidden) if hidden is not None else None  # (B, H, T, R) bool
    ordinary = None
    if first < heads:
        ordinary = _ordinary(p, tokens)
        mass, ordinary = ordinary[..., dim : dim + 1], ordinary[..., :dim]
        if sight is not None:
            ordinary = torch.where(sight[:, first:].any(-1, keepdim=True), ordinary, 0.0)
    if not p.needs_privileged:
        assert ordinary is not None
        return ordinary
    # Where share and integrity are off, only the dedicated heads look at the privileged channel.
    used = heads if p.mixes_channels else first
    privileged, seen, all_see = _privileged(p, tokens, used)
    privileged = privileged[..., :dim]
    if sight is not None:
        seen, all_see = sight[:, :used, :, list(p.roles.privileged)].any(-1, keepdim=True), False
    if not all_see:
        privileged = torch.where(seen, privileged, 0.0)
    if ordinary is None:
        return privileged
    if used > first:
        seen = seen.expand(-1, used, -1, -1)[:, first:]
        if p.mass_target:
            ordinary = torch.lerp(ordinary, privileged[:, first:], torch.where(seen, p.weight_to_target(mass), 0.0))
        ordinary = _mix(p, ordinary, privileged[:, first:], seen)
    return ordinary if not first else torch.cat([privileged[:, :first], ordinary], dim=1)


def in_pieces(p: Problem) -> Tensor | None:
    """Compute a problem in pieces of one role; None where it is plain attention or has to be folded."""
    bias = None if p.bias is None or _is_zero(p.bias) else p.bias
    shares = p.share is not None and not (p.share_is_fixed and _is_zero(p.share))
    if bias is None and not (shares or p.dedicated or p.integrity):
        return None
    plan = stretches_of(p, bias)
    return None if plan is None else pieces_attention(p, bias, plan)


def _mix(p: Problem, ordinary: Tensor, privileged: Tensor, seen: Tensor) -> Tensor:
    """Return the weighted sum of both channels of heads that are not dedicated (B, N, T, Dv); `seen` (B, N, T, 1)."""
    own = p.roles.privileged_queries[:, None, :, None]
    integrity = p.integrity and not p.roles.keep("no privileged query", lambda: _known(~own))
    if p.share is None:
        return torch.where(own, privileged, ordinary) if integrity else ordinary
    weight = p.share[p.dedicated :, None, None].to(ordinary.dtype) * seen
    mixed = torch.lerp(ordinary, privileged, weight)
    # `where` where one channel is read alone: 0 * NaN is NaN, and unread keys must have no effect.
    if p.share_is_fixed:
        mixed = torch.where(weight == 1, privileged, mixed)
    return torch.where(own, privileged, mixed) if integrity else mixed


def _known(all_of: Tensor) -> bool:
    """Return True where a bool tensor is known to be all True. Always False on a GPU, to avoid a device sync."""
    return all_of.device.type == "cpu" and not torch.compiler.is_compiling() and bool(all_of.all())


def _with_mass(p: Problem) -> Tensor:
    """Return v (B, G, S, Dv + 1) with a last column that is 1 at privileged keys."""
    chosen = p.roles.privileged_keys[:, None, :, None].expand(-1, p.v.shape[1], -1, -1)
    return torch.cat([p.v, chosen.to(p.v.dtype)], dim=-1)


def _is_few(p: Problem) -> bool:
    """Return True for few queries on a CPU of a call that would have to be folded."""
    # compiling first: a length that is compared becomes a guard, and each length a graph of its own
    if torch.compiler.is_compiling() or p.q.device.type != "cpu" or p.q.shape[2] > FEW or p.dropout:
        return False
    return p.roles.key_mask is not None or p.mass_target > 0 or not (p.bias is None or _is_zero(p.bias))


def _attend(
    p: Problem, folded: _Folded, first: int, last: int, mask: Tensor | None = None, causal: bool = False
) -> Tensor:
    """Run PyTorch's attention of the query heads from `first` to `last` (B, last - first, T, D')."""
    q, k, v = folded
    group = q.shape[1] // k.shape[1]
    # On CUDA, shared key heads are for the flash kernel alone, which takes half precision and no mask.
    direct = q.device.type == "cpu" or (mask is None and q.dtype in (torch.float16, torch.bfloat16))
    if group > 1 and direct and first % group == 0 and last % group == 0:
        k, v = (x[:, first // group : last // group] for x in (k, v))
    else:
        k, v = (x.repeat_interleave(group, dim=1)[:, first:last] if group > 1 else x[:, first:last] for x in (k, v))
        group = 1
    mask = added(p.roles, mask, q.dtype)
    if mask is not None and mask.shape[1] > 1:
        mask = mask[:, first:last]
    return F.scaled_dot_product_attention(
        q[:, first:last], k, v, mask, dropout_p=p.dropout, is_causal=causal, scale=p.scale, enable_gqa=group > 1
    )


def added(roles: RoleIndex, mask: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """Return the bool `mask` as the 0 and -inf that PyTorch's attention adds to scores, made once for all layers.

    PyTorch makes the same of it in each call, which takes up to half as long as the attention itself on a CPU. On a GPU
    the bool mask is left to it: nothing larger is kept there.
    """
    if mask is None or mask.device.type != "cpu" or torch.compiler.is_compiling():
        return mask

    def build() -> Tensor:
        one = mask[:1] if mask.stride(0) == 0 else mask  # expanded: the same for every row
        return torch.zeros(one.shape, dtype=dtype).masked_fill_(~one, float("-inf"))

    return roles.keep_for(mask, ("added", dtype), build)


def _fold(p: Problem, hidden: Tensor | None) -> _Folded:
    """Fold bias and padding into the head dimension; without either, return q, k, v in one width."""
    use_bias = p.bias is not None and not _is_zero(p.bias)
    use_padding = p.roles.key_mask is not None and p.mask is None
    if not use_bias and not use_padding:
        if not p.mass_target:
            return _Folded(p.q, p.k, p.v)
        width = max(p.q.shape[-1], p.v.shape[-1])
        width += -width % 8
        return _Folded(*(F.pad(x, (0, width - x.shape[-1])) for x in (p.q, p.k, p.v)))
    unit = _HALF_UNIT if p.q.dtype == torch.float16 else 1.0

    def build() -> Tensor:  # (B, S, C): the same for every layer
        columns = []
        if use_bias:
            columns.append(p.roles.k_onehot(p.num_roles, p.k.dtype))
        if use_padding:
            assert p.roles.key_mask is not None
            columns.append((~p.roles.key_mask).unsqueeze(-1).to(p.k.dtype))
        return torch.cat(columns, dim=-1) * unit

    k_columns = p.roles.keep(("columns", use_bias, use_padding, p.num_roles, p.k.dtype), build)
    q_columns = _q_columns(p, hidden, use_bias, use_padding) / unit  # (B, H, T, C) in fp32 or wider
    if p.q.dtype in (torch.bfloat16, torch.float16):
        # 8 or 11 bits would round the table: a high and a low half keep 16 or more of them.
        largest = torch.finfo(p.q.dtype).max
        high = q_columns.clamp(-largest, largest).to(p.q.dtype)
        low = (q_columns.detach() - high.detach()).clamp(-largest, largest).to(p.q.dtype)
        q_columns = torch.cat([high, low], dim=-1)
        k_columns = torch.cat([k_columns, k_columns], dim=-1)
    width = max(p.q.shape[-1] + k_columns.shape[-1], p.v.shape[-1])
    width += -width % 8  # the fused kernels want a multiple of 8, and one width for all three
    pad = width - p.q.shape[-1] - k_columns.shape[-1]
    q = torch.cat([p.q, q_columns.to(p.q.dtype), p.q.new_zeros(()).expand(*p.q.shape[:3], pad)], dim=-1)
    k_columns = rearrange(F.pad(k_columns, (0, pad)), "b s c -> b 1 s c").expand(-1, p.k.shape[1], -1, -1)
    k = torch.cat([p.k, k_columns], dim=-1)
    return _Folded(q, k, F.pad(p.v, (0, width - p.v.shape[-1])))


def _q_columns(p: Problem, hidden: Tensor | None, use_bias: bool, use_padding: bool) -> Tensor:
    """Return (B, H, T, C): the bias of each query for keys of each role, and for padded keys."""
    dtype = torch.promote_types(p.q.dtype, torch.float32)
    # in fp16 as far as the two halves of a column reach
    hide = -2 * _HALF_UNIT * torch.finfo(torch.float16).max if p.q.dtype == torch.float16 else _HIDE
    batch, heads, length, _ = p.q.shape
    columns = []
    if use_bias:
        assert p.bias is not None
        table = p.bias.to(dtype) / p.scale
        if hidden is not None:
            table = table.masked_fill(hidden, hide)
        # A product with one-hot rows rather than indexing: its gradient is a product too, fast and deterministic.
        columns.append(torch.einsum("btr,hrc->bhtc", p.roles.q_onehot(p.num_roles, dtype), table))
    if use_padding:
        columns.append(torch.full((), hide, dtype=dtype, device=p.q.device).expand(batch, heads, length, 1))
    return torch.cat(columns, dim=-1)


def _is_zero(bias: Tensor) -> bool:
    """Return True where the table is known to be all zero and to need no gradient.

    Then the fold is left out and the call is the plain one, bit for bit. Always False on a GPU, to avoid a device sync.
    """
    if bias.device.type != "cpu" or torch.compiler.is_compiling() or (bias.requires_grad and torch.is_grad_enabled()):
        return False
    return not bool(bias.any())


def _ordinary(p: Problem, tokens: _Folded | FewQueries) -> Tensor:
    """Compute the ordinary channel of the heads that are not dedicated: (B, H - dedicated, T, D')."""
    length, keys = p.q.shape[2], p.k.shape[2]
    mask, causal = p.mask, False
    if isinstance(tokens, FewQueries):
        counted = p.roles.privileged_keys[:, None, None, :] if p.mass_target else None
        return tokens.attend(p.dedicated, p.q.shape[1], _whole_mask(p), counted)
    if p.causal and p.window is None and (mask is None or length == 1):
        if length > 1 and length == keys:
            causal = True
        elif length > 1:
            mask = _combine(p, mask)
    elif p.causal:
        mask = _combine(p, mask)
    if mask is not None and p.roles.key_mask is not None and p.mask is not None:
        real, whole = p.roles.key_mask[:, None, None, :], mask
        mask = p.roles.keep_for(whole, "without padding", lambda: whole & real)
    out = _attend(p, tokens, p.dedicated, p.q.shape[1], mask, causal)
    if p.roles.key_mask is not None and p.mask is None and (sight := _padded_sight(p)) is not None:
        out = torch.where(sight, out, 0.0)
    return out


def _whole_mask(p: Problem) -> Tensor | None:
    """Return all that hides keys apart from the table, (B | 1, 1 | H, T, S) bool; None where all are visible."""

    def build() -> Tensor | None:
        mask = _combine(p, p.mask) if p.causal and (p.q.shape[2] > 1 or p.window is not None) else p.mask
        if p.roles.key_mask is None:
            return mask
        real = p.roles.key_mask[:, None, None, :]
        return real if mask is None else mask & real

    return p.roles.keep_for(p.mask, ("whole mask", p.causal, p.window), build)


def _combine(p: Problem, mask: Tensor | None) -> Tensor:
    """Combine the caller's mask and the order of tokens in one (1 | B, 1 | H, T, S) bool mask."""
    position = p.roles.keep(
        ("order", p.window),
        lambda: p.positional_mask(torch.arange(p.k.shape[2], device=p.q.device))[None, None],  # type: ignore[index]
    )
    if mask is None:
        return position
    return p.roles.keep_for(mask, ("in order", p.window), lambda: mask & position)


def _padded_sight(p: Problem) -> Tensor | None:
    """Return (B, 1, T, 1) bool, True for queries that see a key other than padding; None where all are known to."""

    def compute() -> Tensor | None:
        sight = p.roles_in_sight().any(-1, keepdim=True)
        return None if _known(sight) else sight

    return p.roles.keep(("sight", p.causal, p.window), compute)


def _sight(p: Problem, hidden: Tensor) -> Tensor:
    """Return (B, H, T, R) bool: the roles of the keys that each head of each query sees, after the table's -inf."""
    onehot = p.roles.q_onehot(p.num_roles, torch.float32)
    allowed = torch.einsum("btr,hrc->bhtc", onehot, (~hidden).to(torch.float32)) > 0
    return allowed & p.roles_in_sight()


def _privileged(p: Problem, tokens: _Folded | FewQueries, used: int) -> tuple[Tensor, Tensor, bool]:
    """Compute the privileged channel (B, used, T, D') of the first `used` heads.

    Also return the rows that see anything (B, 1 | H, T, 1) bool, and True where all are known to.
    """
    keys = p.roles.select()
    batch, _, length, _ = tokens.q.shape
    if keys.index.shape[1] == 0:
        empty = tokens.v.new_zeros(batch, used, length, tokens.v.shape[-1])
        return empty, torch.zeros(batch, 1, length, 1, dtype=torch.bool, device=empty.device), False
    mask, seen, everything, all_see = p.roles.keep_for(
        p.mask, ("privileged mask", p.causal, p.window), lambda: _privileged_mask(p)
    )
    mask = None if everything else mask
    k, v = _only(keys, tokens.k), _only(keys, tokens.v)
    if isinstance(tokens, FewQueries):
        out = tokens.at(keys, k, v).attend(0, used, mask)
    else:
        out = _attend(p, _Folded(tokens.q, k, v), 0, used, mask)
    return out, seen[:, :used], all_see


def _only(keys: PrivilegedKeys, x: Tensor) -> Tensor:
    """Return the rows of `x` (B, G, S, D) at the privileged keys, 0 at unused entries: a NaN passes any mask."""
    taken = keys.take(x)
    return taken if keys.full else torch.where(keys.valid[:, None, :, None], taken, 0.0)


def _privileged_mask(p: Problem) -> tuple[Tensor, Tensor, bool, bool]:
    """Return visible privileged keys (B, 1 | H, T, P) and rows that see any (B, 1 | H, T, 1).

    Then two flags, True where it is known that all rows see all of the keys, and that all see any.
    """
    keys = p.roles.select()
    mask = keys.valid[:, None, None, :]
    position = p.positional_mask(keys.index)  # (B, T, P)
    if position is not None:
        mask = mask & position[:, None]
    if p.mask is not None:
        index = keys.index[:, None, None, :].expand(-1, p.mask.shape[1], p.mask.shape[2], -1)
        mask = mask & p.mask.expand(index.shape[0], -1, -1, -1).gather(3, index)
    mask = mask.expand(-1, -1, p.q.shape[2], -1)
    seen = mask.any(-1, keepdim=True)
    if _known(mask):
        return mask, seen, True, True
    # A row that sees nothing is given one key, so that no NaN can arise; the caller writes 0 over it.
    first = torch.zeros_like(mask)
    first[..., 0] = True
    return mask | (first & ~seen), seen, False, _known(seen)
