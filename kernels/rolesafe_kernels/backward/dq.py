"""Backward, second kernel: dq, and the gradient of the table."""

from __future__ import annotations

import triton
import triton.language as tl

from rolesafe_kernels.layout import PAD, ROLE_BITS, ROWS, bit_or
from rolesafe_kernels.tiles import (
    bias_of_role,
    block_range,
    capped,
    edge_block,
    key_range,
    load_tokens,
    next_in_sight,
    next_stretch,
    pairs_in_sight,
    plan,
)


# Arguments are in groups.
# fmt: off
@triton.jit
def attend_dq(
    b_dq, b_table, b_q, b_do, b_lam, b_delta, b_lam_p, b_delta_p, b_lo, b_hi, b_seen, b_row,
    p_row, k, v, i_b, i_g, p_mask, k_roles,
    entries, i_from, i_to, left, n_left, right, n_right,
    stride_ks, stride_vs, stride_ms, S, scale, softcap, privileged,
    R: tl.constexpr, D: tl.constexpr, DV: tl.constexpr, BT: tl.constexpr, BS: tl.constexpr, BD: tl.constexpr,
    BV: tl.constexpr, ROLES: tl.constexpr, BIAS: tl.constexpr, SOFTCAP: tl.constexpr, MASK: tl.constexpr,
    SHARE: tl.constexpr, TABLE: tl.constexpr, TMA: tl.constexpr, EDGES: tl.constexpr,
):
    """Add blocks of keys to b_dq [BT, BD] and to the sums of score gradients by key role, b_table [BT, 16]."""
    o_n = tl.arange(0, BS)
    o_c = tl.arange(0, 16)
    for i in range(i_from, i_to):
        i_n = i
        b_c = o_n
        b_bias = b_lam
        role = 0
        if EDGES:
            i_n = edge_block(i, entries, left, n_left, right, n_right, ROLES)
        elif ROLES:
            entry = tl.load(entries + i)
            i_n = entry >> 5
            role = entry & 31
            b_bias = bias_of_role(p_row, b_seen, role, BIAS)
            if SHARE:
                b_bias += tl.where(((privileged >> role) & 1) != 0, b_lam_p, b_lam)
            else:
                b_bias += b_lam
        i_s = i_n * BS
        o_s = i_s + o_n
        b_k = load_tokens(k, i_b, i_g, i_s, S, stride_ks, D, BS, BD, TMA, EDGES)
        b_v = load_tokens(v, i_b, i_g, i_s, S, stride_vs, DV, BS, BV, TMA, EDGES)
        b_s = tl.dot(b_q, tl.trans(b_k), input_precision="tf32x3")  # [BT, BS]
        b_s, unit = capped(b_s, scale, softcap, SOFTCAP)
        if EDGES:
            visible = (b_lo[:, None] <= o_s[None, :]) & (o_s[None, :] < b_hi[:, None])
            if MASK:
                p_m = p_mask + i_s.to(tl.int64) * stride_ms + (b_row[:, None] + o_n[None, :] * stride_ms)
                visible &= tl.load(p_m, mask=visible, other=0) != 0
            b_a = b_s * unit
            if ROLES:
                b_c = tl.load(k_roles + o_s, mask=o_s < S, other=PAD).to(tl.int32)
                visible &= (b_c < R)[None, :] & (((b_seen[:, None] >> b_c[None, :]) & 1) != 0)
                if BIAS:
                    for c in tl.static_range(R):
                        b_one = bias_of_role(p_row, b_seen, c, BIAS)
                        b_a += tl.where((b_c == c)[None, :], b_one[:, None], 0.0)
            if SHARE:
                b_high = (((privileged >> b_c) & 1) != 0)[None, :]
                b_a += tl.where(b_high, b_lam_p[:, None], b_lam[:, None])
            else:
                b_a += b_lam[:, None]
            b_a = tl.where(visible, tl.exp2(b_a), 0.0)
        else:
            b_a = tl.exp2(b_s * unit + b_bias[:, None])
        b_ds = tl.dot(b_do, tl.trans(b_v), input_precision="tf32x3")
        if SHARE:
            if EDGES:
                b_ds -= tl.where(b_high, b_delta_p[:, None], b_delta[:, None])
            else:
                b_ds -= tl.where(((privileged >> role) & 1) != 0, b_delta_p, b_delta)[:, None]
        else:
            b_ds -= b_delta[:, None]
        b_ds = b_a * b_ds
        if EDGES:
            b_ds = tl.where(visible, b_ds, 0.0)
        if TABLE:
            if EDGES:
                for c in tl.static_range(R):
                    b_sum = tl.sum(tl.where((b_c == c)[None, :], b_ds, 0.0), 1)
                    b_table += tl.where((o_c == c)[None, :], b_sum[:, None], 0.0)
            else:
                b_table += tl.where((o_c == role)[None, :], tl.sum(b_ds, 1)[:, None], 0.0)
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
    if ROLES:
        b_r = tl.load(q_roles + i_b * T + b_t, mask=inside, other=PAD).to(tl.int32)
        p_row = bias + i_h * (R * R) + b_r * R
        alone = (i_h + o_r * 0) < dedicated
        if INTEGRITY:
            alone = alone | (((privileged >> b_r) & 1) != 0)
        b_seen = pairs_in_sight(p_row, b_r, tl.where(alone, privileged, ROLE_BITS), R, BIAS)
        allowed = tl.reduce(b_seen, 0, bit_or)
        p_bits = k_blocks + i_b * ROWS * (N + 1)
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
        clean_from, n_clean = n_edges * 0, n_edges
    while clean_from < n_clean:
        start, stop = clean_from, n_clean
        if ROLES:
            if MASK:
                start, stop = next_in_sight(p_bits + right, clean_from, n_clean, allowed)
            else:
                start, stop = next_stretch(clean, clean_from, n_clean, hidden)
        b_dq, b_table = attend_dq(
            b_dq, b_table, b_q, b_do, b_lam, b_delta, b_lam_p, b_delta_p, b_lo, b_hi, b_seen, b_row,
            p_row, p_k, p_v, i_b, i_g, p_mask,
            k_roles + i_b * S, clean, start, stop, left, n_left, right, n_right,
            stride_ks, stride_vs, stride_ms, S, scale, softcap, privileged,
            R, D, DV, BT, BS, BD, BV, ROLES, BIAS, SOFTCAP, MASK, SHARE, TABLE, TMA, MASK,
        )
        clean_from = stop
    if not MASK:
        b_dq, b_table = attend_dq(
            b_dq, b_table, b_q, b_do, b_lam, b_delta, b_lam_p, b_delta_p, b_lo, b_hi, b_seen, b_row,
            p_row, p_k, p_v, i_b, i_g, p_mask,
            k_roles + i_b * S, mixed, 0, n_edges, left, n_left, right, n_right,
            stride_ks, stride_vs, stride_ms, S, scale, softcap, privileged,
            R, D, DV, BT, BS, BD, BV, ROLES, BIAS, SOFTCAP, MASK, SHARE, TABLE, TMA, True,
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
