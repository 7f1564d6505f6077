"""Backward, third kernel: dk and dv."""

from __future__ import annotations

import triton
import triton.language as tl

from rolesafe_kernels.layout import NO_ROLE, PAD, ROLE_BITS, ROWS, RUNS, bit_or
from rolesafe_kernels.tiles import (
    LOG2E,
    bias_of_pair,
    block_range,
    capped,
    edge_part,
    load_tokens,
    next_in_sight,
    next_run,
    pairs_in_sight,
    plan,
)


# Arguments are in groups.
# fmt: off
@triton.jit
def attend_dkdv_run(
    b_dk, b_dv, b_k, b_v, bias, q, do, i_b, i_h, p_rows, size, i_from, i_to, stride_qt, stride_gt, T, scale, softcap,
    D: tl.constexpr, DV: tl.constexpr, BT: tl.constexpr, BD: tl.constexpr, BV: tl.constexpr, SOFTCAP: tl.constexpr,
    TMA: tl.constexpr,
):
    """Add blocks i_from to i_to, clean ones that see all keys in full, to b_dk [BS, BD] and b_dv [BS, BV].

    Scores are transposed: [BS, BT]. `bias` is the one of their pair of roles, `p_rows` [T] points at lambda, and delta
    is `size` behind it.
    """
    o_r = tl.arange(0, BT)
    for i_n in range(i_from, i_to):
        i_t = i_n * BT
        p_rt = p_rows + i_t + o_r
        b_q = load_tokens(q, i_b, i_h, i_t, T, stride_qt, D, BT, BD, TMA, False)
        b_s = tl.dot(b_k, tl.trans(b_q), input_precision="tf32x3")  # [BS, BT]
        b_s, unit = capped(b_s, scale, softcap, SOFTCAP)
        b_lam = tl.load(p_rt)
        b_delta = tl.load(p_rt + size)
        b_a = tl.exp2(b_s * unit + (b_lam + bias)[None, :])
        b_do = load_tokens(do, i_b, i_h, i_t, T, stride_gt, DV, BT, BV, TMA, False)
        b_dv = tl.dot(b_a.to(b_do.dtype), b_do, b_dv, input_precision="tf32x3")
        b_ds = b_a * (tl.dot(b_v, tl.trans(b_do), input_precision="tf32x3") - b_delta[None, :])  # [BS, BT]
        if SOFTCAP:
            b_ds = b_ds * (1.0 - b_s * b_s)
        b_dk = tl.dot(b_ds.to(b_q.dtype), b_q, b_dk, input_precision="tf32x3")
    return b_dk, b_dv


@triton.jit
def attend_dkdv_edges(
    b_dk, b_dv, b_k, b_v, b_c, b_lo, b_hi, b_row, key_role, seers, p_table, q, do, i_b, i_h, p_rows, size, q_roles,
    p_mask, entries, runs, i_from, i_to, left, n_left, right, n_right,
    stride_qt, stride_gt, stride_mt, T, is_dedicated, scale, softcap, privileged,
    R: tl.constexpr, D: tl.constexpr, DV: tl.constexpr, BT: tl.constexpr, BS: tl.constexpr, BD: tl.constexpr,
    BV: tl.constexpr, ROLES: tl.constexpr, BIAS: tl.constexpr, INTEGRITY: tl.constexpr, SOFTCAP: tl.constexpr,
    MASK: tl.constexpr, SHARE: tl.constexpr, TMA: tl.constexpr,
):
    """Add blocks that are read query by query, numbered i_from to i_to by `edge_part`, to b_dk and b_dv.

    `key_role` is that of all keys, NO_ROLE where each has its own; `seers` are the bits of the roles that see any.
    """
    # half a block, for registers; a whole one where a descriptor reads it
    EDGE: tl.constexpr = BT if TMA or BT < 32 else BT // 2
    PARTS: tl.constexpr = BT // EDGE
    o_r = tl.arange(0, EDGE)
    for i in range(i_from * PARTS, i_to * PARTS):
        i_t, role = edge_part(i, entries, runs, left, n_left, right, n_right, ROLES, BT, EDGE)
        b_t = i_t + o_r
        inside = b_t < T
        p_rt = p_rows + b_t
        b_q = load_tokens(q, i_b, i_h, i_t, T, stride_qt, D, EDGE, BD, TMA, True)
        b_s = tl.dot(b_k, tl.trans(b_q), input_precision="tf32x3")  # [BS, BT]
        b_s, unit = capped(b_s, scale, softcap, SOFTCAP)
        b_lam = tl.load(p_rt, mask=inside, other=float("-inf"))
        b_delta = tl.load(p_rt + size, mask=inside, other=0.0)
        visible = (b_lo[:, None] <= b_t[None, :]) & (b_t[None, :] < b_hi[:, None])
        if MASK:
            p_m = p_mask + i_t.to(tl.int64) * stride_mt + (b_row[:, None] + o_r[None, :] * stride_mt)
            visible &= tl.load(p_m, mask=visible, other=0) != 0
        b_a = b_s * unit
        if ROLES:
            if (role != NO_ROLE) & (key_role != NO_ROLE):
                seen = ((seers >> role) & 1) != 0
                bias = 0.0
                if BIAS:
                    bias = tl.load(p_table + role * R + key_role, mask=seen, other=0.0) * LOG2E
                b_a = tl.where(seen, b_a + bias, float("-inf"))
            else:
                b_r = tl.load(q_roles + b_t, mask=inside, other=PAD).to(tl.int32)
                known = (b_r < R)[None, :] & (b_c < R)[:, None]
                for r in tl.static_range(R):
                    only = tl.where(is_dedicated != 0, privileged, ROLE_BITS)
                    if INTEGRITY:
                        only = tl.where(((privileged >> r) & 1) != 0, privileged, only)
                    b_one = bias_of_pair(p_table + r * R, b_c, only, R, BIAS)  # [BS]
                    known &= (b_r != r)[None, :] | (b_one > float("-inf"))[:, None]
                    b_a += tl.where((b_r == r)[None, :], b_one[:, None], 0.0)
                b_a = tl.where(known, b_a, float("-inf"))
        if SHARE:
            b_privileged = (((privileged >> b_c) & 1) != 0)[:, None]
            b_lam_p = tl.load(p_rt + 2 * size, mask=inside, other=float("-inf"))
            b_delta_p = tl.load(p_rt + 3 * size, mask=inside, other=0.0)
            b_a += tl.where(b_privileged, b_lam_p[None, :], b_lam[None, :])
        else:
            b_a += b_lam[None, :]
        b_a = tl.where(visible, tl.exp2(b_a), 0.0)
        b_do = load_tokens(do, i_b, i_h, i_t, T, stride_gt, DV, EDGE, BV, TMA, True)
        b_dv = tl.dot(b_a.to(b_do.dtype), b_do, b_dv, input_precision="tf32x3")
        b_ds = tl.dot(b_v, tl.trans(b_do), input_precision="tf32x3")  # [BS, BT]
        if SHARE:
            b_ds -= tl.where(b_privileged, b_delta_p[None, :], b_delta[None, :])
        else:
            b_ds -= b_delta[None, :]
        # no mass, no gradient, whatever the value
        b_ds = tl.where(b_a == 0.0, 0.0, b_a * b_ds)
        if SOFTCAP:
            b_ds = b_ds * (1.0 - b_s * b_s)
        b_dk = tl.dot(b_ds.to(b_q.dtype), b_q, b_dk, input_precision="tf32x3")
    return b_dk, b_dv


@triton.jit(
    do_not_specialize=["T", "S", "N", "dedicated", "privileged", "window", "stride_mb", "stride_mh", "stride_mt"]
)
def role_attn_bwd_dkdv_kernel(
    q, k, v, do, dk, dv, rows, q_roles, k_roles, q_blocks, bias, mask, q_ranges,
    stride_qb, stride_qh, stride_qt, stride_kb, stride_kh, stride_ks, stride_vb, stride_vh, stride_vs,
    stride_gb, stride_gh, stride_gt, stride_ab, stride_ah, stride_as, stride_eb, stride_eh, stride_es,
    stride_mb, stride_mh, stride_mt, stride_ms,
    H, T, S, N, dedicated, privileged, window, scale, softcap,
    GROUP: tl.constexpr, R: tl.constexpr, D: tl.constexpr, DV: tl.constexpr,
    BT: tl.constexpr, BS: tl.constexpr, BD: tl.constexpr, BV: tl.constexpr,
    ROLES: tl.constexpr, BIAS: tl.constexpr, INTEGRITY: tl.constexpr, CAUSAL: tl.constexpr, WINDOW: tl.constexpr,
    SOFTCAP: tl.constexpr, MASK: tl.constexpr, RANGES: tl.constexpr, SHARE: tl.constexpr, TMA: tl.constexpr,
):
    """Compute dk and dv of one tile of keys, over all GROUP heads that share them. Grid (ceil(S / BS), G, B).

    `q_blocks` are the blocks of BT queries; `q_ranges` [B, 2, S] with RANGES: the first query that sees a key and the
    one after the last. TMA: `q` and `do` are tensor descriptors, of blocks [1, 1, BT, BD] and [1, 1, BT, BV].
    """
    i_s = tl.program_id(0)
    i_g, i_b = tl.program_id(1).to(tl.int64), tl.program_id(2).to(tl.int64)
    o_n = tl.arange(0, BS)
    o_s = i_s * BS + o_n
    inside = o_s < S
    o_d = tl.arange(0, BD)
    o_v = tl.arange(0, BV)
    p_k = k + i_b * stride_kb + i_g * stride_kh + (i_s * BS).to(tl.int64) * stride_ks
    b_k = tl.load(
        p_k + (o_n[:, None] * stride_ks + o_d[None, :]), mask=inside[:, None] & (o_d < D)[None, :], other=0.0
    )
    p_v = v + i_b * stride_vb + i_g * stride_vh + (i_s * BS).to(tl.int64) * stride_vs
    b_v = tl.load(
        p_v + (o_n[:, None] * stride_vs + o_v[None, :]), mask=inside[:, None] & (o_v < DV)[None, :], other=0.0
    )
    if RANGES:
        b_lo = tl.load(q_ranges + i_b * 2 * S + o_s, mask=inside, other=0)
        b_hi = tl.load(q_ranges + i_b * 2 * S + S + o_s, mask=inside, other=0)
    else:
        b_lo = tl.zeros_like(o_s)
        b_hi = tl.zeros_like(o_s) + T
        if CAUSAL:
            b_lo = tl.minimum(tl.maximum(o_s - (S - T), 0), T)
        if WINDOW:
            b_hi = tl.maximum(tl.minimum(o_s - (S - T) + window, T), b_lo)
    i_first, i_full, i_end, i_last = block_range(b_lo, b_hi, inside, BT, MASK)
    b_c = o_n
    key_role, bits = NO_ROLE, 0
    if ROLES:
        b_c = tl.load(k_roles + i_b * S + o_s, mask=inside, other=PAD).to(tl.int32)
        bits = tl.reduce(1 << b_c, 0, bit_or)
        key_role = tl.min(b_c, 0)
        # keys of several roles, or padding among them: every block of queries is read key by key
        if bits != (1 << key_role):
            key_role = NO_ROLE
            i_full, i_end = i_first, i_first
        elif key_role == PAD:
            key_role = NO_ROLE
    elif i_s * BS + BS > S:
        i_full, i_end = i_first, i_first
    b_dk = tl.zeros([BS, BD], tl.float32)
    b_dv = tl.zeros([BS, BV], tl.float32)
    size = tl.num_programs(2).to(tl.int64) * H * T
    p_bits = q_blocks + i_b * ROWS * (N + 1)
    p_runs = p_bits + RUNS * (N + 1)
    for i_member in range(GROUP):
        i_h = i_g * GROUP + i_member
        p_table = bias + i_h * (R * R)
        seers = 0
        is_dedicated = (i_h < dedicated).to(tl.int32)
        if ROLES:
            # bits of the query roles that see any of these keys
            o_r = tl.arange(0, 16)
            alone = (o_r * 0 + is_dedicated) != 0
            if INTEGRITY:
                alone = alone | (((privileged >> o_r) & 1) != 0)
            b_keys = pairs_in_sight(p_table + o_r * R, o_r, tl.where(alone, privileged, ROLE_BITS), R, BIAS)
            seers = tl.sum(tl.where((b_keys & bits) != 0, 1 << o_r, 0), 0)
            clean, n_clean, hidden, mixed, n_mixed, left, n_left, right, n_right = plan(
                p_bits, N, seers, privileged, i_first, i_full, i_end, i_last
            )
            clean_from = n_clean * 0
        else:
            clean, mixed, hidden, n_mixed = q_blocks, q_blocks, 0, 0
            left, n_left, right, n_right = i_first, i_full - i_first, i_end, i_last - i_end
            clean_from, n_clean = i_full, i_end
        p_q, p_do = q, do
        if not TMA:
            p_q = q + i_b * stride_qb + i_h * stride_qh
            p_do = do + i_b * stride_gb + i_h * stride_gh
        p_rows = rows + (i_b * H + i_h) * T
        p_mask, b_row = mask, o_n
        if MASK:
            p_mask = mask + i_b * stride_mb + i_h * stride_mh + (i_s * BS).to(tl.int64) * stride_ms
            b_row = o_n * stride_ms
        n_edges = n_left + n_right + n_mixed
        if MASK:
            # every block is an edge
            edge_from = n_edges * 0
            while edge_from < n_edges:
                start, stop = edge_from, n_edges
                if ROLES:
                    start, stop = next_in_sight(p_bits + right, edge_from, n_edges, seers)
                b_dk, b_dv = attend_dkdv_edges(
                    b_dk, b_dv, b_k, b_v, b_c, b_lo, b_hi, b_row, key_role, seers, p_table, p_q, p_do, i_b, i_h,
                    p_rows, size, q_roles + i_b * T, p_mask, mixed, p_runs, start, stop, left, n_left, right, n_right,
                    stride_qt, stride_gt, stride_mt, T, is_dedicated, scale, softcap, privileged,
                    R, D, DV, BT, BS, BD, BV, ROLES, BIAS, INTEGRITY, SOFTCAP, MASK, SHARE, TMA,
                )
                edge_from = stop
        else:
            b_dk, b_dv = attend_dkdv_edges(
                b_dk, b_dv, b_k, b_v, b_c, b_lo, b_hi, b_row, key_role, seers, p_table, p_q, p_do, i_b, i_h,
                p_rows, size, q_roles + i_b * T, p_mask, mixed, p_runs, 0, n_edges, left, n_left, right, n_right,
                stride_qt, stride_gt, stride_mt, T, is_dedicated, scale, softcap, privileged,
                R, D, DV, BT, BS, BD, BV, ROLES, BIAS, INTEGRITY, SOFTCAP, MASK, SHARE, TMA,
            )
            if SHARE:
                # the statistics of the channel of these keys
                p_rows += tl.where(((privileged >> key_role) & 1) != 0, 2 * size, 0)
            if ROLES:
                while clean_from < n_clean:
                    start, stop, role, clean_from = next_run(clean, p_runs, clean_from, n_clean, hidden)
                    pair_bias = 0.0
                    if BIAS:
                        pair_bias = tl.load(p_table + role * R + key_role) * LOG2E
                    b_dk, b_dv = attend_dkdv_run(
                        b_dk, b_dv, b_k, b_v, pair_bias, p_q, p_do, i_b, i_h, p_rows, size, start, stop,
                        stride_qt, stride_gt, T, scale, softcap, D, DV, BT, BD, BV, SOFTCAP, TMA,
                    )
            else:
                b_dk, b_dv = attend_dkdv_run(
                    b_dk, b_dv, b_k, b_v, 0.0, p_q, p_do, i_b, i_h, p_rows, size, clean_from, n_clean,
                    stride_qt, stride_gt, T, scale, softcap, D, DV, BT, BD, BV, SOFTCAP, TMA,
                )
    p_a = dk + i_b * stride_ab + i_g * stride_ah + (i_s * BS).to(tl.int64) * stride_as
    p_e = dv + i_b * stride_eb + i_g * stride_eh + (i_s * BS).to(tl.int64) * stride_es
    tl.store(
        p_a + (o_n[:, None] * stride_as + o_d[None, :]), (b_dk * scale).to(dk.dtype.element_ty),
        mask=inside[:, None] & (o_d < D)[None, :],
    )
    tl.store(
        p_e + (o_n[:, None] * stride_es + o_v[None, :]), b_dv.to(dv.dtype.element_ty),
        mask=inside[:, None] & (o_v < DV)[None, :],
    )
