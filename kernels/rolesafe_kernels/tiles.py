"""Functions of the forward and the backward kernels: visibility of keys, and choice of blocks.

BT queries and BS keys of a tile, D head dim, R roles. Tiles in registers are `b_*`, pointers `p_*`, offsets `o_*`,
indices of programs and blocks `i_*`. Scores are in units of log 2 where they meet exp2.
"""

from __future__ import annotations

import triton
import triton.language as tl

from rolesafe_kernels.layout import (
    ALL,
    BEFORE_CLEAN,
    BEFORE_MIXED,
    CLEAN,
    MIXED,
    NO_ROLE,
    PAD,
    PRIVILEGED,
    ROLE_BITS,
    UNPRIVILEGED,
)

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
def next_run(clean, runs, i_from, i_to, hidden):
    """Return the run at entry `i_from` of a list of clean blocks, cut off at entry `i_to`.

    These are its first block and the block behind it, its role, and the entry behind it. A run of a `hidden` role is
    empty. The blocks are consecutive: nothing that a loop over them loads says where they are, so it can be pipelined.
    """
    entry = tl.load(clean + i_from)
    i_n, role = entry >> 5, entry & 31
    n = tl.minimum((tl.load(runs + i_n) >> 5) - i_n, i_to - i_from)
    stop = tl.where(((hidden >> role) & 1) != 0, i_n, i_n + n)
    return i_n, stop, role, i_from + n


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
def edge_part(
    i, mixed, runs, left, n_left, right, n_right, ROLES: tl.constexpr, BLOCK: tl.constexpr, EDGE: tl.constexpr
):
    """Return the first token of the i-th part of blocks that are read token by token, and its role.

    A part is EDGE tokens of a block. First come those of left edges, then of right edges, then of mixed blocks. The
    role is NO_ROLE where the block is not clean.
    """
    PARTS: tl.constexpr = BLOCK // EDGE
    part = i % PARTS
    i = i // PARTS
    i_n = tl.where(i < n_left, left + i, right + i - n_left)
    role = NO_ROLE
    if ROLES:
        n_edges = n_left + n_right
        entry = tl.load(mixed + i - n_edges, mask=i >= n_edges, other=0)
        # not by way of `entry`: Triton prefetches less where one load leads to the next
        role = tl.load(runs + i_n, mask=i < n_edges, other=NO_ROLE) & 31
        i_n = tl.where(i < n_edges, i_n, entry >> 5)
    return i_n * BLOCK + part * EDGE, role


@triton.jit
def biased(b_s, role, b_seen, p_row, k_roles, o_s, S, R: tl.constexpr, BIAS: tl.constexpr):
    """Return scores [BT, BS] with the bias of their pair of roles, -inf where a query does not see the key's role.

    `role` is that of all keys, NO_ROLE where each has its own, in `k_roles` [S].
    """
    # a mask, not a bias of -inf: a hidden key has no effect, whatever its score
    if role != NO_ROLE:
        known = (((b_seen >> role) & 1) != 0)[:, None]
        if BIAS:
            b_s = tl.where(known, b_s + bias_of_role(p_row, b_seen, role, BIAS)[:, None], float("-inf"))
        else:
            b_s = tl.where(known, b_s, float("-inf"))
    else:
        b_c = tl.load(k_roles + o_s, mask=o_s < S, other=PAD).to(tl.int32)
        if BIAS:
            for c in tl.static_range(R):
                b_s += tl.where((b_c == c)[None, :], (tl.load(p_row + c) * LOG2E)[:, None], 0.0)
        b_s = tl.where((b_c < R)[None, :] & (((b_seen[:, None] >> b_c[None, :]) & 1) != 0), b_s, float("-inf"))
    return b_s


@triton.jit
def capped(b_s, scale, softcap, SOFTCAP: tl.constexpr):
    """Return scores (with SOFTCAP their tanh), and the factor that turns them into units of log 2."""
    if SOFTCAP:
        b_tanh = 2.0 / (1.0 + tl.exp2(b_s * (-2.0 * LOG2E * scale / softcap))) - 1.0
        return b_tanh, softcap * LOG2E
    else:
        return b_s, scale * LOG2E
