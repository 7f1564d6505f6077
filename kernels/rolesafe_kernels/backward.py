"""Backward: gradients of q, k, v, bias, share and sinks, from the row statistics of the forward. No atomics, so the
same bits every time.

A key of role c gives query i the mass a = exp2(s + lambda) where lambda is one of two numbers of the row, for
privileged keys and for the others, and its score the gradient a (do . v - delta), delta again one of two. So both
channels cost what one costs:

    lambda_rest = log2(1 - w) - lse_o                       delta_rest = do . o
    lambda_priv = log2((1 - w) / 2^lse_o + w / 2^lse_p)     delta_priv = mean of do . o and do . p, so weighted
"""

from __future__ import annotations

import triton
import triton.language as tl

from rolesafe_kernels.layout import PAD, ROLE_BITS, ROWS, bit_or
from rolesafe_kernels.tiles import (
    LOG2E,
    bias_of_pair,
    bias_of_role,
    block_range,
    capped,
    edge_block,
    key_range,
    next_stretch,
    pairs_in_sight,
    plan,
)


# Arguments stand in groups.
# fmt: off
@triton.jit(do_not_specialize=["T", "dedicated", "privileged"])
def role_attn_bwd_rows_kernel(
    o, do, diff, lse, lse_p, q_roles, share, sinks, rows, sums,
    stride_ob, stride_oh, stride_ot, stride_gb, stride_gh, stride_gt,
    H, T, dedicated, privileged,
    DV: tl.constexpr, BT: tl.constexpr, BV: tl.constexpr,
    SHARE: tl.constexpr, SINKS: tl.constexpr, INTEGRITY: tl.constexpr,
):
    """lambda and delta of each row: `rows` [2 or 4, B, H, T]; partial gradients of share and sinks: `sums` [2, B, H,
    tiles].

    Grid (ceil(T / BT), H, B).
    """
    i_t, i_h, i_b = tl.program_id(0), tl.program_id(1).to(tl.int64), tl.program_id(2).to(tl.int64)
    o_r = tl.arange(0, BT)
    o_v = tl.arange(0, BV)
    o_t = i_t * BT + o_r
    inside = o_t < T
    tile = inside[:, None] & (o_v < DV)[None, :]
    p_o = o + i_b * stride_ob + i_h * stride_oh + (i_t * BT).to(tl.int64) * stride_ot
    b_o = tl.load(p_o + o_r[:, None] * stride_ot + o_v[None, :], mask=tile, other=0.0).to(tl.float32)
    p_g = do + i_b * stride_gb + i_h * stride_gh + (i_t * BT).to(tl.int64) * stride_gt
    b_g = tl.load(p_g + o_r[:, None] * stride_gt + o_v[None, :], mask=tile, other=0.0).to(tl.float32)
    b_mean = tl.sum(b_o * b_g, 1)  # do . out
    o_row = (i_b * H + i_h) * T + o_t
    size = tl.num_programs(2).to(tl.int64) * H * T
    b_lse = tl.load(lse + o_row, mask=inside, other=float("-inf"))
    b_lam = tl.where(b_lse > float("-inf"), -b_lse, float("-inf"))
    b_delta = b_mean
    part = (i_b * H + i_h) * tl.num_programs(0) + i_t
    n_parts = tl.num_programs(2).to(tl.int64) * H * tl.num_programs(0)
    if SHARE:
        b_lse_p = tl.load(lse_p + o_row, mask=inside, other=float("-inf"))
        some = b_lse_p > float("-inf")
        if i_h < dedicated:
            b_lam_p = tl.where(some, -b_lse_p, float("-inf"))
            b_lam = tl.zeros([BT], tl.float32) + float("-inf")
            b_delta_p = b_mean
            b_gain = tl.zeros([BT], tl.float32)
        else:
            p_d = diff + o_row[:, None] * DV + o_v[None, :]
            b_d = tl.load(p_d, mask=tile, other=0.0).to(tl.float32)
            b_gain = tl.where(some, tl.sum(b_d * b_g, 1), 0.0)  # do . (p - o)
            b_w = tl.where(some, tl.load(share + i_h).to(tl.float32), 0.0)
            b_delta = b_mean - b_w * b_gain
            b_lam_o = b_lam
            b_lam = b_lam_o + tl.log2(1.0 - b_w)
            # the two summands of a privileged key's mass, over the larger one
            b_lam_w = tl.where(some, tl.log2(b_w) - b_lse_p, float("-inf"))
            b_top = tl.maximum(b_lam, b_lam_w)
            b_shift = tl.where(b_top == float("-inf"), 0.0, b_top)
            b_of_o = tl.exp2(b_lam - b_shift)
            b_of_p = tl.exp2(b_lam_w - b_shift)
            b_sum = b_of_o + b_of_p
            b_lam_p = b_shift + tl.log2(b_sum)
            b_delta_p = b_delta + b_gain * (b_of_p / tl.where(b_sum > 0, b_sum, 1.0))
        tl.store(rows + 2 * size + o_row, b_lam_p, mask=inside)
        tl.store(rows + 3 * size + o_row, b_delta_p, mask=inside)
        tl.store(sums + part, tl.sum(tl.where(inside, b_gain, 0.0), 0))
    if SINKS:
        b_sink = tl.load(sinks + i_h + o_r * 0).to(tl.float32) * LOG2E
        alone = (i_h + o_r * 0) < dedicated
        if INTEGRITY:
            b_r = tl.load(q_roles + i_b * T + o_t, mask=inside, other=PAD).to(tl.int32)
            alone = alone | (((privileged >> b_r) & 1) != 0)
        b_mass = tl.where(inside & (alone == 0), tl.exp2(b_sink + b_lam), 0.0)
        tl.store(sums + n_parts + part, -tl.sum(b_mass * b_delta, 0))
    tl.store(rows + o_row, b_lam, mask=inside)
    tl.store(rows + size + o_row, b_delta, mask=inside)


@triton.jit
def attend_dq(
    b_dq, b_table, b_q, b_do, b_lam, b_delta, b_lam_p, b_delta_p, b_lo, b_hi, b_seen, b_row,
    p_row, p_k, p_v, p_mask, k_roles,
    entries, i_from, i_to, left, n_left, right, n_right,
    stride_ks, stride_vs, stride_ms, S, scale, softcap, privileged,
    R: tl.constexpr, D: tl.constexpr, DV: tl.constexpr, BT: tl.constexpr, BS: tl.constexpr, BD: tl.constexpr,
    BV: tl.constexpr, ROLES: tl.constexpr, BIAS: tl.constexpr, SOFTCAP: tl.constexpr, MASK: tl.constexpr,
    SHARE: tl.constexpr, TABLE: tl.constexpr, EDGES: tl.constexpr,
):
    """Adds blocks of keys to b_dq [BT, BD] and to the sums of score gradients by key role, b_table [BT, 16]."""
    o_n = tl.arange(0, BS)
    o_d = tl.arange(0, BD)
    o_v = tl.arange(0, BV)
    o_c = tl.arange(0, 16)
    o_k = o_n[:, None] * stride_ks + o_d[None, :]
    o_vs = o_n[:, None] * stride_vs + o_v[None, :]
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
        p_kt = p_k + i_s.to(tl.int64) * stride_ks + o_k
        p_vt = p_v + i_s.to(tl.int64) * stride_vs + o_vs
        if EDGES:
            b_k = tl.load(p_kt, mask=(o_s < S)[:, None] & (o_d < D)[None, :], other=0.0)
            b_v = tl.load(p_vt, mask=(o_s < S)[:, None] & (o_v < DV)[None, :], other=0.0)
        else:
            b_k = tl.load(p_kt, mask=(o_d < D)[None, :], other=0.0) if D != BD else tl.load(p_kt)
            b_v = tl.load(p_vt, mask=(o_v < DV)[None, :], other=0.0) if DV != BV else tl.load(p_vt)
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
):
    """dq of one tile of queries of one head, and its part of the table's gradient: `dbias` [B, H, tiles, R, R].

    Grid (ceil(T / BT), H, B).
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
        clean, n_clean, hidden, mixed, n_mixed, left, n_left, right, n_right = plan(
            k_blocks + i_b * ROWS * (N + 1), N, allowed, privileged, i_first, i_full, i_end, i_last
        )
        clean_from = n_clean * 0
    else:
        clean, mixed, hidden, n_mixed = k_blocks, k_blocks, 0, 0
        left, n_left, right, n_right = i_first, i_full - i_first, i_end, i_last - i_end
        clean_from, n_clean = i_full, i_end
    b_dq = tl.zeros([BT, BD], tl.float32)
    b_table = tl.zeros([BT, 16], tl.float32)
    p_kg = k + i_b * stride_kb + i_g * stride_kh
    p_vg = v + i_b * stride_vb + i_g * stride_vh
    # with a mask every block is an edge
    if not MASK:
        while clean_from < n_clean:
            start, stop = clean_from, n_clean
            if ROLES:
                start, stop = next_stretch(clean, clean_from, n_clean, hidden)
            b_dq, b_table = attend_dq(
                b_dq, b_table, b_q, b_do, b_lam, b_delta, b_lam_p, b_delta_p, b_lo, b_hi, b_seen, b_row,
                p_row, p_kg, p_vg, p_mask,
                k_roles + i_b * S, clean, start, stop, 0, 0, 0, 0,
                stride_ks, stride_vs, stride_ms, S, scale, softcap, privileged,
                R, D, DV, BT, BS, BD, BV, ROLES, BIAS, SOFTCAP, MASK, SHARE, TABLE, False,
            )
            clean_from = stop
    b_dq, b_table = attend_dq(
        b_dq, b_table, b_q, b_do, b_lam, b_delta, b_lam_p, b_delta_p, b_lo, b_hi, b_seen, b_row,
        p_row, p_kg, p_vg, p_mask,
        k_roles + i_b * S, mixed, 0, n_left + n_right + n_mixed, left, n_left, right, n_right,
        stride_ks, stride_vs, stride_ms, S, scale, softcap, privileged,
        R, D, DV, BT, BS, BD, BV, ROLES, BIAS, SOFTCAP, MASK, SHARE, TABLE, True,
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


@triton.jit
def attend_dkdv(
    b_dk, b_dv, b_k, b_v, b_c, b_lo, b_hi, b_row, role, p_table, p_q, p_do, rows, size, q_roles, p_mask,
    entries, i_from, i_to, left, n_left, right, n_right,
    stride_qt, stride_gt, stride_mt, T, is_dedicated, scale, softcap, privileged,
    R: tl.constexpr, D: tl.constexpr, DV: tl.constexpr, BT: tl.constexpr, BS: tl.constexpr, BD: tl.constexpr,
    BV: tl.constexpr, ROLES: tl.constexpr, BIAS: tl.constexpr, INTEGRITY: tl.constexpr, SOFTCAP: tl.constexpr,
    MASK: tl.constexpr, SHARE: tl.constexpr, EDGES: tl.constexpr,
):
    """Adds blocks of queries to b_dk [BS, BD] and b_dv [BS, BV]. Scores stand transposed: [BS, BT]."""
    o_r = tl.arange(0, BT)
    o_d = tl.arange(0, BD)
    o_v = tl.arange(0, BV)
    o_q = o_r[:, None] * stride_qt + o_d[None, :]
    o_g = o_r[:, None] * stride_gt + o_v[None, :]
    for i in range(i_from, i_to):
        i_n = i
        bias = 0.0
        if EDGES:
            i_n = edge_block(i, entries, left, n_left, right, n_right, ROLES)
        elif ROLES:
            entry = tl.load(entries + i)
            i_n = entry >> 5
            if BIAS:
                bias = tl.load(p_table + (entry & 31) * R + role) * LOG2E
        i_t = i_n * BT
        b_t = i_t + o_r
        inside = b_t < T
        p_qt = p_q + i_t.to(tl.int64) * stride_qt + o_q
        p_gt = p_do + i_t.to(tl.int64) * stride_gt + o_g
        p_rt = rows + b_t
        if EDGES:
            b_q = tl.load(p_qt, mask=inside[:, None] & (o_d < D)[None, :], other=0.0)
        else:
            b_q = tl.load(p_qt, mask=(o_d < D)[None, :], other=0.0) if D != BD else tl.load(p_qt)
        b_s = tl.dot(b_k, tl.trans(b_q), input_precision="tf32x3")  # [BS, BT]
        b_s, unit = capped(b_s, scale, softcap, SOFTCAP)
        if EDGES:
            b_lam = tl.load(p_rt, mask=inside, other=float("-inf"))
            b_delta = tl.load(p_rt + size, mask=inside, other=0.0)
            visible = (b_lo[:, None] <= b_t[None, :]) & (b_t[None, :] < b_hi[:, None])
            if MASK:
                p_m = p_mask + i_t.to(tl.int64) * stride_mt + (b_row[:, None] + o_r[None, :] * stride_mt)
                visible &= tl.load(p_m, mask=visible, other=0) != 0
            b_a = b_s * unit
            if ROLES:
                b_r = tl.load(q_roles + b_t, mask=inside, other=PAD).to(tl.int32)
                visible &= (b_r < R)[None, :]
                for r in tl.static_range(R):
                    only = tl.where(is_dedicated != 0, privileged, ROLE_BITS)
                    if INTEGRITY:
                        only = tl.where(((privileged >> r) & 1) != 0, privileged, only)
                    b_one = bias_of_pair(p_table + r * R, b_c, only, R, BIAS)  # [BS]
                    visible &= (b_r != r)[None, :] | (b_one > float("-inf"))[:, None]
                    b_a += tl.where((b_r == r)[None, :], b_one[:, None], 0.0)
            if SHARE:
                b_privileged = (((privileged >> b_c) & 1) != 0)[:, None]
                b_lam_p = tl.load(p_rt + 2 * size, mask=inside, other=float("-inf"))
                b_delta_p = tl.load(p_rt + 3 * size, mask=inside, other=0.0)
                b_a += tl.where(b_privileged, b_lam_p[None, :], b_lam[None, :])
            else:
                b_a += b_lam[None, :]
            b_a = tl.where(visible, tl.exp2(b_a), 0.0)
        else:
            if SHARE:
                p_rt += tl.where(((privileged >> role) & 1) != 0, 2 * size, 0)
            b_lam = tl.load(p_rt)
            b_delta = tl.load(p_rt + size)
            b_a = tl.exp2(b_s * unit + (b_lam + bias)[None, :])
        if EDGES:
            b_do = tl.load(p_gt, mask=inside[:, None] & (o_v < DV)[None, :], other=0.0)
        else:
            b_do = tl.load(p_gt, mask=(o_v < DV)[None, :], other=0.0) if DV != BV else tl.load(p_gt)
        b_dv = tl.dot(b_a.to(b_do.dtype), b_do, b_dv, input_precision="tf32x3")
        b_ds = tl.dot(b_v, tl.trans(b_do), input_precision="tf32x3")  # [BS, BT]
        if SHARE and EDGES:
            b_ds -= tl.where(b_privileged, b_delta_p[None, :], b_delta[None, :])
        else:
            b_ds -= b_delta[None, :]
        b_ds = b_a * b_ds
        if EDGES:
            b_ds = tl.where(visible, b_ds, 0.0)
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
    SOFTCAP: tl.constexpr, MASK: tl.constexpr, RANGES: tl.constexpr, SHARE: tl.constexpr,
):
    """dk and dv of one tile of keys, over all GROUP heads that share them. Grid (ceil(S / BS), G, B).

    `q_blocks` are the blocks of BT queries; `q_ranges` [B, 2, S] with RANGES: the first query that sees a key and the
    one after the last.
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
    role, bits = 0, 0
    if ROLES:
        b_c = tl.load(k_roles + i_b * S + o_s, mask=inside, other=PAD).to(tl.int32)
        bits = tl.reduce(1 << b_c, 0, bit_or)
        role = tl.min(b_c, 0)
        # keys of several roles, or padding among them: every block of queries is looked at key by key
        if bits != (1 << role):
            i_full, i_end = i_first, i_first
    elif i_s * BS + BS > S:
        i_full, i_end = i_first, i_first
    b_dk = tl.zeros([BS, BD], tl.float32)
    b_dv = tl.zeros([BS, BV], tl.float32)
    size = tl.num_programs(2).to(tl.int64) * H * T
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
                q_blocks + i_b * ROWS * (N + 1), N, seers, privileged, i_first, i_full, i_end, i_last
            )
            clean_from = n_clean * 0
        else:
            clean, mixed, hidden, n_mixed = q_blocks, q_blocks, 0, 0
            left, n_left, right, n_right = i_first, i_full - i_first, i_end, i_last - i_end
            clean_from, n_clean = i_full, i_end
        p_q = q + i_b * stride_qb + i_h * stride_qh
        p_do = do + i_b * stride_gb + i_h * stride_gh
        p_rows = rows + (i_b * H + i_h) * T
        p_mask, b_row = mask, o_n
        if MASK:
            p_mask = mask + i_b * stride_mb + i_h * stride_mh + (i_s * BS).to(tl.int64) * stride_ms
            b_row = o_n * stride_ms
        b_dk, b_dv = attend_dkdv(
            b_dk, b_dv, b_k, b_v, b_c, b_lo, b_hi, b_row, role, p_table, p_q, p_do, p_rows, size,
            q_roles + i_b * T, p_mask, mixed, 0, n_left + n_right + n_mixed, left, n_left, right, n_right,
            stride_qt, stride_gt, stride_mt, T, is_dedicated, scale, softcap, privileged,
            R, D, DV, BT, BS, BD, BV, ROLES, BIAS, INTEGRITY, SOFTCAP, MASK, SHARE, True,
        )
        # with a mask every block is an edge
        if not MASK:
            while clean_from < n_clean:
                start, stop = clean_from, n_clean
                if ROLES:
                    start, stop = next_stretch(clean, clean_from, n_clean, hidden)
                b_dk, b_dv = attend_dkdv(
                    b_dk, b_dv, b_k, b_v, b_c, b_lo, b_hi, b_row, role, p_table, p_q, p_do, p_rows, size,
                    q_roles + i_b * T, p_mask, clean, start, stop, 0, 0, 0, 0,
                    stride_qt, stride_gt, stride_mt, T, is_dedicated, scale, softcap, privileged,
                    R, D, DV, BT, BS, BD, BV, ROLES, BIAS, INTEGRITY, SOFTCAP, MASK, SHARE, False,
                )
                clean_from = stop
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
