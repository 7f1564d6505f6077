"""Functions of the forward and the backward kernels: visibility of keys, and choice of blocks.

BT queries and BS keys of a tile, D head dim, R roles. Tiles in registers are `b_*`, pointers `p_*`, offsets `o_*`,
indices of programs and blocks `i_*`. Scores are in units of log 2 where they meet exp2.
"""

from __future__ import annotations

import triton
import triton.language as tl

from rolesafe_kernels.layout import ALL, BEFORE_CLEAN, BEFORE_MIXED, CLEAN, MIXED, PRIVILEGED, ROLE_BITS, UNPRIVILEGED

LOG2E = tl.constexpr(1.4426950408889634)
FAR = tl.constexpr(2147483647)


# Arguments are in groups.
# fmt: off
@triton.jit
def key_range(b_t, inside, ranges, T, S, window, CAUSAL: tl.constexpr, WINDOW: tl.constexpr, RANGES: tl.constexpr):
    """Return the first visible key of each query and the one after the last, before padding and roles: [BT], [BT].

    RANGES: read from `ranges` [2, T] (packed documents); else by position, aligned at the bottom right.
    """
    if RANGES:
        b_lo = tl.load(ranges + b_t, mask=inside, other=0)
        b_hi = tl.load(ranges + T + b_t, mask=inside, other=0)
    else:
        b_hi = tl.zeros_like(b_t) + S
        b_lo = tl.zeros_like(b_t)
        if CAUSAL:
            b_hi = tl.maximum(tl.minimum(b_t + (S - T) + 1, S), 0)
        if WINDOW:
            b_lo = tl.maximum(b_t + (S - T) + 1 - window, 0)
    return b_lo, b_hi


@triton.jit
def block_range(b_lo, b_hi, inside, BLOCK: tl.constexpr, ALL_EDGES: tl.constexpr):
    """Return blocks by the ranges of a tile's rows: [first, last) any row sees, [full, end) all rows see.
    """
    i_first = tl.min(tl.where(inside, b_lo, FAR), 0) // BLOCK
    i_last = tl.cdiv(tl.max(tl.where(inside, b_hi, 0), 0), BLOCK)
    i_last = tl.maximum(i_last, i_first)
    i_full = tl.cdiv(tl.max(tl.where(inside, b_lo, 0), 0), BLOCK)
    i_end = tl.min(tl.where(inside, b_hi, FAR), 0) // BLOCK
    if ALL_EDGES or i_end <= i_full:
        i_full, i_end = i_first, i_first
    return i_first, i_full, i_end, i_last


@triton.jit
def pairs_in_sight(p_row, b_r, only, R: tl.constexpr, BIAS: tl.constexpr):
    """Return the bits of the key roles that a query of role `b_r` sees: [BT] int32.

    `p_row` [BT] points at each query's row of the table; `only` [BT] are the bits that are allowed at all.
    """
    known = b_r < R
    if BIAS:
        o_c = tl.arange(0, 16)
        b_row = tl.load(p_row[:, None] + o_c[None, :], mask=known[:, None] & (o_c < R)[None, :], other=float("-inf"))
        b_seen = tl.sum(tl.where(b_row > float("-inf"), 1 << o_c[None, :], 0), 1)  # [BT]
    else:
        b_seen = tl.where(known, ROLE_BITS, 0)
    return b_seen & only


@triton.jit
def bias_of_role(p_row, b_seen, c, BIAS: tl.constexpr):
    """Return the bias of the keys of role `c` in units of log 2, -inf where a query does not see them: [BT]."""
    visible = ((b_seen >> c) & 1) != 0
    if BIAS:
        b_bias = tl.load(p_row + c, mask=visible, other=float("-inf")) * LOG2E
    else:
        b_bias = tl.where(visible, 0.0, float("-inf"))
    return b_bias


@triton.jit
def bias_of_pair(p_row, b_c, only, R: tl.constexpr, BIAS: tl.constexpr):
    """Return the bias of keys of roles `b_c` from one row of the table, -inf for those not in `only`: [BS]."""
    visible = (((only >> b_c) & 1) != 0) & (b_c < R)
    if BIAS:
        b_bias = tl.load(p_row + b_c, mask=visible, other=float("-inf")) * LOG2E
    else:
        b_bias = tl.where(visible, 0.0, float("-inf"))
    return b_bias


@triton.jit
def plan(row, N, allowed, privileged, i_first, i_full, i_end, i_last):
    """Plan the blocks between i_first and i_last that hold a role among the bits `allowed`.

    `row` points at the lists of this row of the batch. Returns the clean blocks in [i_full, i_end) as pointer, count
    and roles to skip; the mixed ones there as pointer and count; the blocks before and after that range as
    first index and count each.
    """
    left, n_left, right, n_right = i_first, i_full - i_first, i_end, i_last - i_end
    # edges without a visible key
    while (n_left > 0) and ((tl.load(row + left) & allowed) == 0):
        left += 1
        n_left -= 1
    while (n_right > 0) and ((tl.load(row + right) & allowed) == 0):
        right += 1
        n_right -= 1
    which = ALL
    if (allowed & ~privileged) == 0:
        which = PRIVILEGED
    elif (allowed & privileged) == 0:
        which = UNPRIVILEGED
    before = row + (BEFORE_CLEAN + which) * (N + 1)
    clean_from = tl.load(before + i_full)
    n_clean = tl.load(before + i_end) - clean_from
    before = row + (BEFORE_MIXED + which) * (N + 1)
    mixed_from = tl.load(before + i_full)
    n_mixed = tl.load(before + i_end) - mixed_from
    if allowed == 0:
        n_clean, n_mixed = 0, 0
    clean = row + (CLEAN + which) * (N + 1)
    hidden = tl.load(clean + N) & ~allowed
    mixed = row + (MIXED + which) * (N + 1) + mixed_from
    return clean + clean_from, n_clean, hidden, mixed, n_mixed, left, n_left, right, n_right


@triton.jit
def next_stretch(clean, i_from, i_to, hidden):
    """Return the next consecutive clean blocks of a list that hold no `hidden` role: [start, stop)."""
    start, stop = i_from, i_to
    if hidden != 0:
        while (start < i_to) and (((hidden >> (tl.load(clean + start) & 31)) & 1) != 0):
            start += 1
        stop = start
        while (stop < i_to) and (((hidden >> (tl.load(clean + stop) & 31)) & 1) == 0):
            stop += 1
    return start, stop


@triton.jit
def next_in_sight(bits, i_from, i_to, allowed):
    """Return the next consecutive blocks of a range that hold a role among the bits `allowed`: [start, stop).

    `bits` points at those of block 0 of the range.
    """
    start = i_from
    while (start < i_to) and ((tl.load(bits + start) & allowed) == 0):
        start += 1
    stop = start
    while (stop < i_to) and ((tl.load(bits + stop) & allowed) != 0):
        stop += 1
    return start, stop


@triton.jit
def load_tokens(
    x, i_b, i_h, i_t, size, stride,
    D: tl.constexpr, BT: tl.constexpr, BD: tl.constexpr, TMA: tl.constexpr, EDGES: tl.constexpr,
):
    """Load BT tokens of a head from number i_t on, 0 beyond D and, with EDGES, beyond `size` tokens: [BT, BD].

    TMA: `x` describes the whole tensor, and the copy engine does the addressing. Else it points at the head, and
    `stride` leads from token to token.
    """
    if TMA:
        return x.load([i_b.to(tl.int32), i_h.to(tl.int32), i_t, 0]).reshape(BT, BD)
    else:
        o_t = tl.arange(0, BT)
        o_d = tl.arange(0, BD)
        p_x = x + i_t.to(tl.int64) * stride + (o_t[:, None] * stride + o_d[None, :])
        if EDGES:
            return tl.load(p_x, mask=(i_t + o_t < size)[:, None] & (o_d < D)[None, :], other=0.0)
        elif D == BD:
            return tl.load(p_x)
        else:
            return tl.load(p_x, mask=(o_d < D)[None, :], other=0.0)


@triton.jit
def edge_block(i, mixed, left, n_left, right, n_right, ROLES: tl.constexpr):
    """Return the index of the i-th block that is read token by token: left edges, right edges, then mixed ones."""
    i_n = tl.where(i < n_left, left + i, right + i - n_left)
    if ROLES:
        n_edges = n_left + n_right
        entry = tl.load(mixed + i - n_edges, mask=i >= n_edges, other=0)
        i_n = tl.where(i < n_edges, i_n, entry >> 5)
    return i_n


@triton.jit
def capped(b_s, scale, softcap, SOFTCAP: tl.constexpr):
    """Return scores (with SOFTCAP their tanh), and the factor that turns them into units of log 2."""
    if SOFTCAP:
        b_tanh = 2.0 / (1.0 + tl.exp2(b_s * (-2.0 * LOG2E * scale / softcap))) - 1.0
        return b_tanh, softcap * LOG2E
    else:
        return b_s, scale * LOG2E
