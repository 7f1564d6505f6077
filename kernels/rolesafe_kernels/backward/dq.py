"""Backward, second kernel: dq, and the gradient of the table."""

from __future__ import annotations

import triton
import triton.language as tl

from rolesafe_kernels.layout import NO_ROLE, PAD, ROLE_BITS, ROWS, RUNS, bit_or
from rolesafe_kernels.tiles import (
    bias_of_role,
    biased,
    block_range,
    capped,
    edge_part,
    key_range,
    load_tokens,
    next_in_sight,
    next_run,
    pairs_in_sight,
    plan,
)


# Arguments are in groups.
# fmt: off
@triton.jit
def attend_dq_run(
    b_dq, b_table, b_q, b_do, b_lam, b_delta, role, k, v, i_b, i_g, i_from, i_to,
    stride_ks, stride_vs, S, scale, softcap,
    D: tl.constexpr, DV: tl.constexpr, BT: tl.constexpr, BS: tl.constexpr, BD: tl.constexpr, BV: tl.constexpr,
    SOFTCAP: tl.constexpr, TABLE: tl.constexpr, TMA: tl.constexpr,
):
    """Add blocks i_from to i_to, clean ones of `role` that every row sees in full, to b_dq and b_table.

    `b_lam` [BT] holds the bias of their role, `b_delta` [BT] is that of their channel.
    """
    # added up over the keys behind the loop
    b_sum = tl.zeros([BT, BS], tl.float32)
    for i_n in range(i_from, i_to):
        i_s = i_n * BS
        b_k = load_tokens(k, i_b, i_g, i_s, S, stride_ks, D, BS, BD, TMA, False)
        b_v = load_tokens(v, i_b, i_g, i_s, S, stride_vs, DV, BS, BV, TMA, False)
        b_s = tl.dot(b_q, tl.trans(b_k), input_precision="tf32x3")  # [BT, BS]
        b_s, unit = capped(b_s, scale, softcap, SOFTCAP)
        b_a = tl.exp2(b_s * unit + b_lam[:, None])
        b_ds = b_a * (tl.dot(b_do, tl.trans(b_v), input_precision="tf32x3") - b_delta[:, None])
        if TABLE:
            b_sum += b_ds
        if SOFTCAP:
            b_ds = b_ds * (1.0 - b_s * b_s)
        b_dq = tl.dot(b_ds.to(b_k.dtype), b_k, b_dq, input_precision="tf32x3")
    if TABLE:
        b_table += tl.where((tl.arange(0, 16) == role)[None, :], tl.sum(b_sum, 1)[:, None], 0.0)
    return b_dq, b_table


@triton.jit
def attend_dq_edges(
    b_dq, b_table, b_q, b_do, b_lam, b_delta, b_lam_p, b_delta_p, b_lo, b_hi, b_seen, b_row,
    p_row, k, v, i_b, i_g, p_mask, k_roles,
    entries, runs, i_from, i_to, left, n_left, right, n_right,
    stride_ks, stride_vs, stride_ms, S, scale, softcap, privileged,
    R: tl.constexpr, D: tl.constexpr, DV: tl.constexpr, BT: tl.constexpr, BS: tl.constexpr, BD: tl.constexpr,
    BV: tl.constexpr, ROLES: tl.constexpr, BIAS: tl.constexpr, SOFTCAP: tl.constexpr, MASK: tl.constexpr,
    SHARE: tl.constexpr, TABLE: tl.constexpr, TMA: tl.constexpr,
):
    """Add blocks that are read key by key, numbered i_from to i_to by `edge_part`, to b_dq and b_table."""
    # half a block, for registers; a whole one where a descriptor reads it
    EDGE: tl.constexpr = BS if TMA or BS < 32 else BS // 2
    PARTS: tl.constexpr = BS // EDGE
    o_n = tl.arange(0, EDGE)
    o_c = tl.arange(0, 16)
    for i in range(i_from * PARTS, i_to * PARTS):
        i_s, role = edge_part(i, entries, runs, left, n_left, right, n_right, ROLES, BS, EDGE)
        o_s = i_s + o_n
        b_k = load_tokens(k, i_b, i_g, i_s, S, stride_ks, D, EDGE, BD, TMA, True)
        b_v = load_tokens(v, i_b, i_g, i_s, S, stride_vs, DV, EDGE, BV, TMA, True)
        b_s = tl.dot(b_q, tl.trans(b_k), input_precision="tf32x3")  # [BT, BS]
        b_s, unit = capped(b_s, scale, softcap, SOFTCAP)
        visible = (b_lo[:, None] <= o_s[None, :]) & (o_s[None, :] < b_hi[:, None])
        if MASK:
            p_m = p_mask + i_s.to(tl.int64) * stride_ms + (b_row[:, None] + o_n[None, :] * stride_ms)
            visible &= tl.load(p_m, mask=visible, other=0) != 0
        b_a = b_s * unit
        if ROLES:
            b_a = biased(b_a, role, b_seen, p_row, k_roles, o_s, S, R, BIAS)
        if SHARE:
            b_c = tl.load(k_roles + o_s, mask=o_s < S, other=PAD).to(tl.int32)
            b_high = (((privileged >> b_c) & 1) != 0)[None, :]
            b_a += tl.where(b_high, b_lam_p[:, None], b_lam[:, None])
        else:
            b_a += b_lam[:, None]
        b_a = tl.where(visible, tl.exp2(b_a), 0.0)
        b_ds = tl.dot(b_do, tl.trans(b_v), input_precision="tf32x3")
        if SHARE:
            b_ds -= tl.where(b_high, b_delta_p[:, None], b_delta[:, None])
        else:
            b_ds -= b_delta[:, None]
        # no mass, no gradient, whatever the value
        b_ds = tl.where(b_a == 0.0, 0.0, b_a * b_ds)
        if TABLE:
            if role != NO_ROLE:
                b_table += tl.where((o_c == role)[None, :], tl.sum(b_ds, 1)[:, None], 0.0)
            else:
                b_of = tl.load(k_roles + o_s, mask=o_s < S, other=PAD).to(tl.int32)
                for c in tl.static_range(R):
                    b_sum = tl.sum(tl.where((b_of == c)[None, :], b_ds, 0.0), 1)
                    b_table += tl.where((o_c == c)[None, :], b_sum[:, None], 0.0)
        if SOFTCAP:
            b_ds = b_ds * (1.0 - b_s * b_s)
        b_dq = tl.dot(b_ds.to(b_k.dtype), b_k, b_dq, input_precision="tf32x3")
    return b_dq, b_table


@triton.jit(
    do_not_specialize=["T", "S", "N", "dedicated", "privileged", "window", "stride_mb", "stride_mh", "stride_mt"]
)
def role_attn_bwd_dq_kernel(
    q, k, v, do, dq, rows, q_roles, k_roles, k_blocks, bias, dbias, mask, ranges,
    stride_qb, stride_qh, stride_qt, stride_kb, stride_kh, stride_ks, stride_vb, stride_vh, stride_vs,
    stride_gb, stride_gh, stride_gt, stride_db, stride_dh, stride_dt, stride_mb, stride_mh, stride_mt, stride_ms,
    H, T, S, N, dedicated, privileged, window, scale, softcap,
    GROUP: tl.constexpr, R: tl.constexpr, D: tl.constexpr, DV: tl.constexpr,
    BT: tl.constexpr, BS: tl.constexpr, BD: tl.constexpr, BV: tl.constexpr,
    ROLES: tl.constexpr, BIAS: tl.constexpr, INTEGRITY: tl.constexpr, CAUSAL: tl.constexpr, WINDOW: tl.constexpr,
    SOFTCAP: tl.constexpr, MASK: tl.constexpr, RANGES: tl.constexpr, SHARE: tl.constexpr, TABLE: tl.constexpr,
    TMA: tl.constexpr,
):
    """Compute dq of one tile of queries of one head, and its part of the table's gradient: `dbias` [B, H, tiles, R, R].

    TMA: `k` and `v` are tensor descriptors, of blocks [1, 1, BS, BD] and [1, 1, BS, BV]. Grid (ceil(T / BT), H, B).
    """
    i_t = tl.num_programs(0) - 1 - tl.program_id(0)
    i_h, i_b = tl.program_id(1).to(tl.int64), tl.program_id(2).to(tl.int64)
    i_g = i_h // GROUP
    o_r = tl.arange(0, BT)
    b_t = i_t * BT + o_r
    inside = b_t < T
    o_d = tl.arange(0, BD)
    o_v = tl.arange(0, BV)
    p_q = q + i_b * stride_qb + i_h * stride_qh + (i_t * BT).to(tl.int64) * stride_qt
    b_q = tl.load(
        p_q + (o_r[:, None] * stride_qt + o_d[None, :]), mask=inside[:, None] & (o_d < D)[None, :], other=0.0
    )
    p_g = do + i_b * stride_gb + i_h * stride_gh + (i_t * BT).to(tl.int64) * stride_gt
    b_do = tl.load(
        p_g + (o_r[:, None] * stride_gt + o_v[None, :]), mask=inside[:, None] & (o_v < DV)[None, :], other=0.0
    )
    o_row = (i_b * H + i_h) * T + b_t
    size = tl.num_programs(2).to(tl.int64) * H * T
    b_lam = tl.load(rows + o_row, mask=inside, other=float("-inf"))
    b_delta = tl.load(rows + size + o_row, mask=inside, other=0.0)
    b_lam_p, b_delta_p = b_lam, b_delta
    if SHARE:
        b_lam_p = tl.load(rows + 2 * size + o_row, mask=inside, other=float("-inf"))
        b_delta_p = tl.load(rows + 3 * size + o_row, mask=inside, other=0.0)
    p_mask, b_row = mask, o_r
    if MASK:
        p_mask = mask + i_b * stride_mb + i_h * stride_mh + (i_t * BT).to(tl.int64) * stride_mt
        b_row = o_r * stride_mt
    b_lo, b_hi = key_range(b_t, inside, ranges + i_b * 2 * T, T, S, window, CAUSAL, WINDOW, RANGES)
    i_first, i_full, i_end, i_last = block_range(b_lo, b_hi, inside, BS, MASK)
    p_row, b_seen = bias, b_t
    b_r = b_t
    p_bits = k_blocks + i_b * ROWS * (N + 1)
    p_runs = p_bits + RUNS * (N + 1)
    if ROLES:
        b_r = tl.load(q_roles + i_b * T + b_t, mask=inside, other=PAD).to(tl.int32)
        # ids that are no role see nothing, but what is read for them has to exist
        p_row = bias + i_h * (R * R) + tl.minimum(b_r, R - 1) * R
        alone = (i_h + o_r * 0) < dedicated
        if INTEGRITY:
            alone = alone | (((privileged >> b_r) & 1) != 0)
        b_seen = pairs_in_sight(p_row, b_r, tl.where(alone, privileged, ROLE_BITS), R, BIAS)
        allowed = tl.reduce(b_seen, 0, bit_or)
        clean, n_clean, hidden, mixed, n_mixed, left, n_left, right, n_right = plan(
            p_bits, N, allowed, privileged, i_first, i_full, i_end, i_last
        )
        clean_from = n_clean * 0
    else:
        clean, mixed, hidden, n_mixed = k_blocks, k_blocks, 0, 0
        left, n_left, right, n_right = i_first, i_full - i_first, i_end, i_last - i_end
        clean_from, n_clean = i_full, i_end
    b_dq = tl.zeros([BT, BD], tl.float32)
    b_table = tl.zeros([BT, 16], tl.float32)
    p_k, p_v = k, v
    if not TMA:
        p_k = k + i_b * stride_kb + i_g * stride_kh
        p_v = v + i_b * stride_vb + i_g * stride_vh
    n_edges = n_left + n_right + n_mixed
    if MASK:
        # every block is an edge
        edge_from = n_edges * 0
        while edge_from < n_edges:
            start, stop = edge_from, n_edges
            if ROLES:
                start, stop = next_in_sight(p_bits + right, edge_from, n_edges, allowed)
            b_dq, b_table = attend_dq_edges(
                b_dq, b_table, b_q, b_do, b_lam, b_delta, b_lam_p, b_delta_p, b_lo, b_hi, b_seen, b_row,
                p_row, p_k, p_v, i_b, i_g, p_mask,
                k_roles + i_b * S, mixed, p_runs, start, stop, left, n_left, right, n_right,
                stride_ks, stride_vs, stride_ms, S, scale, softcap, privileged,
                R, D, DV, BT, BS, BD, BV, ROLES, BIAS, SOFTCAP, MASK, SHARE, TABLE, TMA,
            )
            edge_from = stop
    else:
        b_dq, b_table = attend_dq_edges(
            b_dq, b_table, b_q, b_do, b_lam, b_delta, b_lam_p, b_delta_p, b_lo, b_hi, b_seen, b_row,
            p_row, p_k, p_v, i_b, i_g, p_mask,
            k_roles + i_b * S, mixed, p_runs, 0, n_edges, left, n_left, right, n_right,
            stride_ks, stride_vs, stride_ms, S, scale, softcap, privileged,
            R, D, DV, BT, BS, BD, BV, ROLES, BIAS, SOFTCAP, MASK, SHARE, TABLE, TMA,
        )
        if ROLES:
            while clean_from < n_clean:
                start, stop, role, clean_from = next_run(clean, p_runs, clean_from, n_clean, hidden)
                b_shift, b_mean = b_lam, b_delta
                if SHARE:
                    high = ((privileged >> role) & 1) != 0
                    b_shift, b_mean = tl.where(high, b_lam_p, b_lam), tl.where(high, b_delta_p, b_delta)
                b_dq, b_table = attend_dq_run(
                    b_dq, b_table, b_q, b_do, b_shift + bias_of_role(p_row, b_seen, role, BIAS), b_mean, role,
                    p_k, p_v, i_b, i_g, start, stop, stride_ks, stride_vs, S, scale, softcap,
                    D, DV, BT, BS, BD, BV, SOFTCAP, TABLE, TMA,
                )
        else:
            b_dq, b_table = attend_dq_run(
                b_dq, b_table, b_q, b_do, b_lam, b_delta, 0, p_k, p_v, i_b, i_g, clean_from, n_clean,
                stride_ks, stride_vs, S, scale, softcap, D, DV, BT, BS, BD, BV, SOFTCAP, TABLE, TMA,
            )
    p_d = dq + i_b * stride_db + i_h * stride_dh + (i_t * BT).to(tl.int64) * stride_dt
    p_d = p_d + (o_r[:, None] * stride_dt + o_d[None, :])
    tl.store(p_d, (b_dq * scale).to(dq.dtype.element_ty), mask=inside[:, None] & (o_d < D)[None, :])
    if TABLE:
        o_c = tl.arange(0, 16)
        p_b = dbias + ((i_b * H + i_h) * tl.num_programs(0) + i_t) * (R * R)
        for r in range(R):
            b_sum = tl.sum(tl.where((b_r == r)[:, None], b_table, 0.0), 0)  # [16]
            tl.store(p_b + r * R + o_c, b_sum, mask=o_c < R)
