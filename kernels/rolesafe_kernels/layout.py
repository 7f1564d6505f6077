"""Roles of every block of tokens: computed once per forward pass, read by every kernel.

    S tokens of a row, N = ceil(S / BLOCK) blocks
    bits[n]    bit r is set where block n holds a token of role r; bit PAD where it holds padding or ends the row
    clean      a block of one role and no padding: its bias is one number per query
    mixed      any other block with a role in it: read token by token

Three lists, ALL, PRIVILEGED and UNPRIVILEGED, name the blocks that hold any token of that kind, clean ones and mixed
ones apart, in order. `before[n]` counts the entries of a list before block n, so a range of blocks is a
range of the list. Entry N of a list of clean blocks holds all their roles.

A run is a maximal sequence of consecutive clean blocks of one role. `runs[n]` holds, for a clean block n, the block
after its run and its role; for any other block n + 1 and NO_ROLE. A run is in a list as a whole, so its blocks are
consecutive entries there.
"""

from __future__ import annotations

import triton
import triton.language as tl


# Arguments are in groups.
# fmt: off
@triton.jit
def bit_or(a, b):
    return a | b


@triton.jit
def smaller(a, b):
    return tl.minimum(a, b)

PAD = tl.constexpr(16)
"""Role of a key that no query sees."""
ROLE_BITS = tl.constexpr(0xFFFF)
NO_ROLE = tl.constexpr(31)
"""Role of a block that is not clean, in `runs`."""

# rows of `blocks` [B, ROWS, N + 1]
BITS = tl.constexpr(0)
BEFORE_CLEAN = tl.constexpr(1)
BEFORE_MIXED = tl.constexpr(4)
CLEAN = tl.constexpr(7)
MIXED = tl.constexpr(10)
RUNS = tl.constexpr(13)
ROWS = tl.constexpr(14)

# lists: added to the first row of each kind
ALL = tl.constexpr(0)
PRIVILEGED = tl.constexpr(1)
UNPRIVILEGED = tl.constexpr(2)


@triton.jit(do_not_specialize=["S", "N"])
def role_bits_kernel(
    roles, mask, roles8, blocks, stride_rb, stride_rs, stride_mb, stride_ms, S, N,
    HAS_MASK: tl.constexpr, BLOCK: tl.constexpr,
):
    """Write roles as int8, PAD where the mask hides a key, and the bits of each block. Grid (N, B)."""
    i_n, i_b = tl.program_id(0), tl.program_id(1).to(tl.int64)
    o_s = i_n * BLOCK + tl.arange(0, BLOCK)
    inside = o_s < S
    b_r = tl.load(roles + i_b * stride_rb + o_s * stride_rs, mask=inside, other=PAD)  # [BLOCK]
    if HAS_MASK:
        b_seen = tl.load(mask + i_b * stride_mb + o_s * stride_ms, mask=inside, other=0)
        b_r = tl.where(b_seen != 0, b_r, PAD)
    # an id that is no role: hidden, and blind
    b_r = tl.where((b_r >= 0) & (b_r < PAD), b_r, PAD)
    b_r = b_r.to(tl.int32)
    tl.store(roles8 + i_b * S + o_s, b_r.to(tl.int8), mask=inside)
    bits = tl.reduce(1 << b_r, 0, bit_or)
    tl.store(blocks + i_b * ROWS * (N + 1) + BITS * (N + 1) + i_n, bits)


@triton.jit
def role_of(b_bits):
    """Return the role of clean blocks from their bits, and which blocks are clean: [BN], [BN]."""
    clean = (b_bits != 0) & ((b_bits & (b_bits - 1)) == 0) & ((b_bits & ROLE_BITS) == b_bits)
    # position of the one bit that is set
    b_role = tl.zeros_like(b_bits)
    for r in tl.static_range(16):
        b_role = tl.where(b_bits == (1 << r), r, b_role)
    return b_role, clean


@triton.jit
def write_runs(row, N, BN: tl.constexpr):
    """Write `runs` of one row, the last BN blocks first: the end of a run is known only behind it."""
    after = N * 1
    for i in range(0, tl.cdiv(N, BN)):
        o_n = (tl.cdiv(N, BN) - 1 - i) * BN + tl.arange(0, BN)
        b_bits = tl.load(row + BITS * (N + 1) + o_n, mask=o_n < N, other=0)  # [BN]
        b_next = tl.load(row + BITS * (N + 1) + o_n + 1, mask=o_n + 1 < N, other=0)
        b_role, clean = role_of(b_bits)
        b_end = tl.where((b_bits != b_next) | (clean == 0), o_n + 1, after)
        b_end = tl.minimum(tl.associative_scan(b_end, 0, smaller, reverse=True), N)
        tl.store(row + RUNS * (N + 1) + o_n, b_end * 32 + tl.where(clean, b_role, NO_ROLE), mask=o_n < N)
        after = tl.min(b_end, 0)


@triton.jit
def write_list(row, which, privileged, N, BN: tl.constexpr):
    """Write list `which` of one row from its bits, BN blocks at a time."""
    n_clean, n_mixed, seen = N * 0, N * 0, N * 0
    for i_n in range(0, N + 1, BN):
        o_n = i_n + tl.arange(0, BN)
        b_bits = tl.load(row + BITS * (N + 1) + o_n, mask=o_n < N, other=0)  # [BN]
        b_roles = b_bits & ROLE_BITS
        b_role, clean = role_of(b_bits)
        b_kind = tl.where(which == 0, b_roles, tl.where(which == 1, b_roles & privileged, b_roles & ~privileged))
        b_clean = ((b_kind != 0) & clean).to(tl.int32)
        b_mixed = ((b_kind != 0) & (clean == 0)).to(tl.int32)
        b_before_clean = n_clean + tl.cumsum(b_clean, 0) - b_clean
        b_before_mixed = n_mixed + tl.cumsum(b_mixed, 0) - b_mixed
        tl.store(row + (BEFORE_CLEAN + which) * (N + 1) + o_n, b_before_clean, mask=o_n <= N)
        tl.store(row + (BEFORE_MIXED + which) * (N + 1) + o_n, b_before_mixed, mask=o_n <= N)
        tl.store(row + (CLEAN + which) * (N + 1) + b_before_clean, o_n * 32 + b_role, mask=b_clean != 0)
        tl.store(row + (MIXED + which) * (N + 1) + b_before_mixed, o_n * 32, mask=b_mixed != 0)
        n_clean += tl.sum(b_clean, 0)
        n_mixed += tl.sum(b_mixed, 0)
        seen = seen | tl.reduce(tl.where(b_clean != 0, b_roles, 0), 0, bit_or)
    # behind the last entry: all roles of the list
    tl.store(row + (CLEAN + which) * (N + 1) + N, seen)


@triton.jit(do_not_specialize=["privileged", "N"])
def role_lists_kernel(blocks, privileged, N, BN: tl.constexpr):
    """Write one list of one row from its bits, or (fourth program) the runs, BN blocks at a time. Grid (B, 4)."""
    i_b, which = tl.program_id(0).to(tl.int64), tl.program_id(1)
    row = blocks + i_b * ROWS * (N + 1)
    if which == 3:
        write_runs(row, N, BN)
    else:
        write_list(row, which, privileged, N, BN)
