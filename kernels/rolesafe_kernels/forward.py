"""Forward: o = softmax(softcap(scale q k^T) + bias) v over the keys that roles, order and masks leave visible.

With a reserved share a program looks twice. First it reads the privileged keys alone and stores their softmax p and its
lse. Then it continues from that state with the other keys, which gives the ordinary channel o, and mixes both. Only
blocks that hold keys of both kinds, and edges, are read twice.
"""

from __future__ import annotations

import triton
import triton.language as tl

from rolesafe_kernels.layout import PAD, ROLE_BITS, ROWS, RUNS, bit_or
from rolesafe_kernels.tiles import (
    LOG2E,
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
def attend_run(
    b_m, b_l, b_acc, b_q, b_bias, k, v, i_b, i_g, i_from, i_to, stride_ks, stride_vs, S, scale, softcap,
    D: tl.constexpr, DV: tl.constexpr, BS: tl.constexpr, BD: tl.constexpr, BV: tl.constexpr, ROLES: tl.constexpr,
    SOFTCAP: tl.constexpr, TMA: tl.constexpr,
):
    """Add blocks i_from to i_to, clean ones that every row sees in full, to the running softmax.

    That is b_m [BT], b_l [BT], b_acc [BT, BV]. ROLES: `b_bias` [BT] is the bias of their role.
    """
    for i_n in range(i_from, i_to):
        i_s = i_n * BS
        b_k = load_tokens(k, i_b, i_g, i_s, S, stride_ks, D, BS, BD, TMA, False)
        b_s = tl.dot(b_q, tl.trans(b_k), input_precision="tf32x3")  # [BT, BS]
        b_s, unit = capped(b_s, scale, softcap, SOFTCAP)
        b_top = tl.max(b_s, 1) * unit
        if ROLES:
            b_top = tl.maximum(b_m, b_top + b_bias)
            b_shift = tl.where(b_top == float("-inf"), 0.0, b_top)
            b_p = tl.exp2(b_s * unit - (b_shift - b_bias)[:, None])
        else:
            b_top = tl.maximum(b_m, b_top)
            b_shift = b_top
            b_p = tl.exp2(b_s * unit - b_shift[:, None])
        b_alpha = tl.exp2(b_m - b_shift)
        b_l = b_l * b_alpha + tl.sum(b_p, 1)
        b_acc = b_acc * b_alpha[:, None]
        b_v = load_tokens(v, i_b, i_g, i_s, S, stride_vs, DV, BS, BV, TMA, False)
        b_acc = tl.dot(b_p.to(b_v.dtype), b_v, b_acc, input_precision="tf32x3")
        b_m = b_top
    return b_m, b_l, b_acc


@triton.jit
def attend_edges(
    b_m, b_l, b_acc, b_q, b_lo, b_hi, b_seen, b_row, p_row, k, v, i_b, i_g, p_mask, k_roles,
    entries, runs, i_from, i_to, left, n_left, right, n_right,
    stride_ks, stride_vs, stride_ms, S, scale, softcap,
    R: tl.constexpr, D: tl.constexpr, DV: tl.constexpr, BT: tl.constexpr, BS: tl.constexpr, BD: tl.constexpr,
    BV: tl.constexpr, ROLES: tl.constexpr, BIAS: tl.constexpr, SOFTCAP: tl.constexpr, MASK: tl.constexpr,
    TMA: tl.constexpr,
):
    """Add blocks that are read key by key to the running softmax: those numbered i_from to i_to by `edge_part`."""
    # half a block, for registers; a whole one where a descriptor reads it
    EDGE: tl.constexpr = BS if TMA or BS < 32 else BS // 2
    PARTS: tl.constexpr = BS // EDGE
    o_n = tl.arange(0, EDGE)
    for i in range(i_from * PARTS, i_to * PARTS):
        i_s, role = edge_part(i, entries, runs, left, n_left, right, n_right, ROLES, BS, EDGE)
        o_s = i_s + o_n
        b_k = load_tokens(k, i_b, i_g, i_s, S, stride_ks, D, EDGE, BD, TMA, True)
        b_s = tl.dot(b_q, tl.trans(b_k), input_precision="tf32x3")  # [BT, BS]
        b_s, unit = capped(b_s, scale, softcap, SOFTCAP)
        b_s = b_s * unit
        visible = (b_lo[:, None] <= o_s[None, :]) & (o_s[None, :] < b_hi[:, None])
        if MASK:
            p_m = p_mask + i_s.to(tl.int64) * stride_ms + (b_row[:, None] + o_n[None, :] * stride_ms)
            visible &= tl.load(p_m, mask=visible, other=0) != 0
        if ROLES:
            b_s = biased(b_s, role, b_seen, p_row, k_roles, o_s, S, R, BIAS)
        b_s = tl.where(visible, b_s, float("-inf"))
        b_top = tl.maximum(b_m, tl.max(b_s, 1))
        b_shift = tl.where(b_top == float("-inf"), 0.0, b_top)
        b_p = tl.exp2(b_s - b_shift[:, None])
        b_alpha = tl.exp2(b_m - b_shift)
        b_l = b_l * b_alpha + tl.sum(b_p, 1)
        b_acc = b_acc * b_alpha[:, None]
        b_v = load_tokens(v, i_b, i_g, i_s, S, stride_vs, DV, EDGE, BV, TMA, True)
        b_acc = tl.dot(b_p.to(b_v.dtype), b_v, b_acc, input_precision="tf32x3")
        b_m = b_top
    return b_m, b_l, b_acc


@triton.jit(
    do_not_specialize=[
        "T", "S", "N", "dedicated", "privileged", "window", "splits",
        "stride_mb", "stride_mh", "stride_mt",
    ]
)
def role_attn_fwd_kernel(
    q, k, v, o, diff, lse, lse_p, q_roles, k_roles, k_blocks, bias, share, sinks, mask, ranges, counts,
    stride_qb, stride_qh, stride_qt, stride_kb, stride_kh, stride_ks, stride_vb, stride_vh, stride_vs,
    stride_ob, stride_oh, stride_ot, stride_mb, stride_mh, stride_mt, stride_ms,
    H, T, S, N, dedicated, privileged, window, splits, scale, softcap,
    GROUP: tl.constexpr, R: tl.constexpr, D: tl.constexpr, DV: tl.constexpr,
    BT: tl.constexpr, BS: tl.constexpr, BD: tl.constexpr, BV: tl.constexpr,
    ROLES: tl.constexpr, BIAS: tl.constexpr, INTEGRITY: tl.constexpr, CAUSAL: tl.constexpr, WINDOW: tl.constexpr,
    SOFTCAP: tl.constexpr, SINKS: tl.constexpr, MASK: tl.constexpr, RANGES: tl.constexpr,
    LOOK: tl.constexpr, SPLIT: tl.constexpr, DIFF: tl.constexpr, COUNT: tl.constexpr, TMA: tl.constexpr,
):
    """Compute one tile of queries of one head. Grid (ceil(T / BT), heads, B).

    SPLIT: rows are the queries of all GROUP heads that share keys, grid (tiles * splits, G, B * channels); each
    program takes its part of the blocks and leaves its softmax and lse in fp32 for `role_attn_merge_kernel`.

    LOOK "all": every visible key. "share": first the privileged ones, which leaves p in `o` and its lse in `lse_p`,
    then the others, in heads that are not dedicated; mixes both with `share` and, with DIFF, stores p - o for the
    backward.
    "both" (SPLIT): one channel a program.

    TMA: `k` and `v` are tensor descriptors, of blocks [1, 1, BS, BD] and [1, 1, BS, BV].
    """
    if SPLIT:
        i_t, i_split = tl.program_id(0) // splits, tl.program_id(0) % splits
        i_g = tl.program_id(1).to(tl.int64)
        i_z = tl.program_id(2).to(tl.int64)
        if LOOK == "both":
            i_channel, i_b = i_z % 2, i_z // 2
        else:
            i_channel, i_b = i_z * 0, i_z
        o_r = i_t * BT + tl.arange(0, BT)
        b_t = o_r // GROUP
        b_h = i_g * GROUP + o_r % GROUP
    else:
        # the longest tiles first
        i_t, i_split = tl.num_programs(0) - 1 - tl.program_id(0), 0
        i_h = tl.program_id(1).to(tl.int64)
        i_b = tl.program_id(2).to(tl.int64)
        i_g = i_h // GROUP
        b_t = i_t * BT + tl.arange(0, BT)
        b_h = i_h
    inside = b_t < T
    o_d = tl.arange(0, BD)
    o_v = tl.arange(0, BV)
    if SPLIT:
        p_q = q + i_b * stride_qb + (b_h * stride_qh + b_t.to(tl.int64) * stride_qt)[:, None] + o_d[None, :]
    else:
        p_q = q + i_b * stride_qb + i_h * stride_qh + (i_t * BT).to(tl.int64) * stride_qt
        p_q = p_q + (tl.arange(0, BT)[:, None] * stride_qt + o_d[None, :])
    b_q = tl.load(p_q, mask=inside[:, None] & (o_d < D)[None, :], other=0.0)  # [BT, BD]
    p_k, p_v = k, v
    if not TMA:
        p_k = k + i_b * stride_kb + i_g * stride_kh
        p_v = v + i_b * stride_vb + i_g * stride_vh
    # the mask of row r is at p_mask + b_row[r]
    p_mask, b_row = mask, b_t
    if MASK:
        if SPLIT:
            p_mask = mask + i_b * stride_mb
            b_row = b_h * stride_mh + b_t.to(tl.int64) * stride_mt
        else:
            p_mask = mask + i_b * stride_mb + i_h * stride_mh + (i_t * BT).to(tl.int64) * stride_mt
            b_row = tl.arange(0, BT) * stride_mt
    b_lo, b_hi = key_range(b_t, inside, ranges + i_b * 2 * T, T, S, window, CAUSAL, WINDOW, RANGES)
    i_first, i_full, i_end, i_last = block_range(b_lo, b_hi, inside, BS, MASK)
    p_row, b_pairs, pairs = bias, b_t, 0
    b_alone = b_t < 0
    if ROLES:
        b_r = tl.load(q_roles + i_b * T + b_t, mask=inside, other=PAD).to(tl.int32)
        # ids that are no role see nothing, but what is read for them has to exist
        p_row = bias + b_h * (R * R) + tl.minimum(b_r, R - 1) * R
        b_alone = (b_h + b_t * 0) < dedicated
        if INTEGRITY:
            b_alone = b_alone | (((privileged >> b_r) & 1) != 0)
        b_pairs = pairs_in_sight(p_row, b_r, tl.where(b_alone, privileged, ROLE_BITS), R, BIAS)
        pairs = tl.reduce(b_pairs, 0, bit_or)
    p_bits = k_blocks + i_b * ROWS * (N + 1)
    p_runs = p_bits + RUNS * (N + 1)
    # the row of the first query, and how far behind it each row is
    if SPLIT:
        i_row = i_b * H * T
        o_row = b_h * T + b_t
    else:
        i_row = (i_b * H + i_h) * T + i_t * BT
        o_row = tl.arange(0, BT)
    o_mask = inside[:, None] & (o_v < DV)[None, :]
    p_o = o + i_b * stride_ob
    if not SPLIT:
        p_o = o + i_b * stride_ob + i_h * stride_oh + (i_t * BT).to(tl.int64) * stride_ot
        p_o = p_o + (tl.arange(0, BT)[:, None] * stride_ot + o_v[None, :])

    b_m = tl.full([BT], float("-inf"), tl.float32)
    b_l = tl.zeros([BT], tl.float32)
    b_acc = tl.zeros([BT, BV], tl.float32)
    LOOKS: tl.constexpr = 2 if LOOK == "share" else 1
    for i_look in range(LOOKS):
        b_seen = b_pairs
        allowed = 0
        if ROLES:
            only = ROLE_BITS
            if LOOK == "share":
                only = tl.where(i_look == 0, privileged, ~privileged)
            elif LOOK == "both":
                only = tl.where(i_channel == 0, privileged, ~privileged)
            b_seen, allowed = b_pairs & only, pairs & only
            clean, n_clean, hidden, mixed, n_mixed, left, n_left, right, n_right = plan(
                p_bits, N, allowed, privileged, i_first, i_full, i_end, i_last
            )
            clean_from = n_clean * 0
        else:
            clean, mixed, hidden, n_mixed = k_blocks, k_blocks, 0, 0
            left, n_left, right, n_right = i_first, i_full - i_first, i_end, i_last - i_end
            clean_from, n_clean = i_full, i_end
        n_edges = n_left + n_right + n_mixed
        edge_from = n_edges * 0
        if COUNT:
            p_count = counts + ((i_b * H + i_h) * tl.num_programs(0) + i_t) * 3
            tl.store(p_count, i_last - i_first)
            tl.store(p_count + 1, n_edges)
        if SPLIT:
            part = tl.cdiv(n_edges + n_clean - clean_from, splits)
            start = i_split * part
            edge_from = tl.minimum(start, n_edges)
            n_clean = tl.minimum(n_clean, clean_from + tl.maximum(start + part - n_edges, 0))
            clean_from += tl.maximum(start - n_edges, 0)
            n_edges = tl.minimum(start + part, n_edges)

        n_seen = 0
        if MASK:
            # every block is an edge
            while edge_from < n_edges:
                start, stop = edge_from, n_edges
                if ROLES:
                    start, stop = next_in_sight(p_bits + right, edge_from, n_edges, allowed)
                b_m, b_l, b_acc = attend_edges(
                    b_m, b_l, b_acc, b_q, b_lo, b_hi, b_seen, b_row, p_row, p_k, p_v, i_b, i_g, p_mask,
                    k_roles + i_b * S, mixed, p_runs, start, stop, left, n_left, right, n_right,
                    stride_ks, stride_vs, stride_ms, S, scale, softcap,
                    R, D, DV, BT, BS, BD, BV, ROLES, BIAS, SOFTCAP, MASK, TMA,
                )
                n_seen += stop - start
                edge_from = stop
        else:
            b_m, b_l, b_acc = attend_edges(
                b_m, b_l, b_acc, b_q, b_lo, b_hi, b_seen, b_row, p_row, p_k, p_v, i_b, i_g, p_mask,
                k_roles + i_b * S, mixed, p_runs, edge_from, n_edges, left, n_left, right, n_right,
                stride_ks, stride_vs, stride_ms, S, scale, softcap,
                R, D, DV, BT, BS, BD, BV, ROLES, BIAS, SOFTCAP, MASK, TMA,
            )
            if ROLES:
                while clean_from < n_clean:
                    start, stop, role, clean_from = next_run(clean, p_runs, clean_from, n_clean, hidden)
                    b_m, b_l, b_acc = attend_run(
                        b_m, b_l, b_acc, b_q, bias_of_role(p_row, b_seen, role, BIAS), p_k, p_v, i_b, i_g, start, stop,
                        stride_ks, stride_vs, S, scale, softcap, D, DV, BS, BD, BV, True, SOFTCAP, TMA,
                    )
                    n_seen += stop - start
            else:
                b_m, b_l, b_acc = attend_run(
                    b_m, b_l, b_acc, b_q, b_m, p_k, p_v, i_b, i_g, clean_from, n_clean,
                    stride_ks, stride_vs, S, scale, softcap, D, DV, BS, BD, BV, False, SOFTCAP, TMA,
                )
                n_seen += n_clean - clean_from
        if COUNT:
            tl.store(p_count + 2, n_seen)
        if LOOK == "share":  # noqa: SIM102  # known when compiled; the other is not
            if i_look == 0:
                b_sum = tl.where(b_l > 0, b_l, 1.0)
                b_m = b_m + tl.log2(b_sum)
                tl.store(lse_p + i_row + o_row, b_m, mask=inside)
                tl.store(p_o, (b_acc * (1.0 / b_sum)[:, None]).to(o.dtype.element_ty), mask=o_mask)
                # the privileged keys count as one more key with score lse_p and value p; p itself is added last
                b_l = tl.where(b_m > float("-inf"), 1.0, 0.0)
                b_acc = tl.zeros([BT, BV], tl.float32)
    if SINKS:
        b_sink = tl.load(sinks + b_h + b_t * 0).to(tl.float32) * LOG2E
        b_sink = tl.where(b_alone, float("-inf"), b_sink)
        b_top = tl.maximum(b_m, b_sink)
        b_shift = tl.where(b_top == float("-inf"), 0.0, b_top)
        b_acc = b_acc * tl.exp2(b_m - b_shift)[:, None]
        b_l = b_l * tl.exp2(b_m - b_shift) + tl.exp2(b_sink - b_shift)
        b_m = b_top
    b_l = tl.where(b_l > 0, b_l, 1.0)
    b_inv = 1.0 / b_l
    b_lse = b_m + tl.log2(b_l)
    if SPLIT:
        batch = tl.num_programs(2) // (2 if LOOK == "both" else 1)
        o_part = i_row + o_row + (i_channel * splits + i_split) * batch * H * T
        tl.store(lse + o_part, b_lse, mask=inside)
        tl.store(o + o_part[:, None] * DV + o_v[None, :], b_acc * b_inv[:, None], mask=o_mask)
    elif LOOK == "share":
        tl.store(lse + i_row + o_row, b_lse, mask=inside)
        # dedicated heads have no ordinary channel: their second look found nothing
        if i_h >= dedicated:
            b_lse_p = tl.load(lse_p + i_row + o_row, mask=inside, other=float("-inf"))
            some = b_lse_p > float("-inf")
            # mass of the privileged keys in the ordinary channel
            b_part = tl.where(some, tl.exp2(b_lse_p - b_lse), 0.0)
            b_w = tl.where(some, tl.load(share + i_h).to(tl.float32), 0.0)
            # this program's own p: written by other threads of it
            tl.debug_barrier()
            if DIFF:
                b_p = tl.load(p_o, mask=o_mask, other=0.0).to(tl.float32)
                b_d = b_p * (1.0 - b_part)[:, None] - b_acc * b_inv[:, None]
                p_d = diff + i_row * DV + o_row[:, None] * DV + o_v[None, :]
                tl.store(p_d, b_d.to(diff.dtype.element_ty), mask=o_mask)
            # read again rather than kept: the registers are needed above
            b_p = tl.load(p_o, mask=o_mask, other=0.0).to(tl.float32)
            # all of p is read before any of it is overwritten
            tl.debug_barrier()
            b_acc = tl.where((b_w == 1.0)[:, None], 0.0, b_acc * (b_inv * (1.0 - b_w))[:, None])
            b_acc += b_p * tl.where(b_w == 1.0, 1.0, b_w + (1.0 - b_w) * b_part)[:, None]
            tl.store(p_o, b_acc.to(o.dtype.element_ty), mask=o_mask)
    else:
        tl.store(lse + i_row + o_row, b_lse, mask=inside)
        tl.store(p_o, (b_acc * b_inv[:, None]).to(o.dtype.element_ty), mask=o_mask)


@triton.jit(do_not_specialize=["T", "dedicated", "privileged", "splits"])
def role_attn_merge_kernel(
    o_part, lse_part, o, share, sinks, q_roles,
    stride_ob, stride_oh, stride_ot, H, T, dedicated, privileged, splits,
    DV: tl.constexpr, BV: tl.constexpr, BN: tl.constexpr, SHARE: tl.constexpr, SINKS: tl.constexpr,
    INTEGRITY: tl.constexpr,
):
    """Merge the parts of a row. Grid (T, H, B); BN >= parts, a power of two.

    Parts are (channels * splits, B, H, T): with SHARE the first `splits` hold privileged keys, the second half the
    others.
    """
    i_t, i_h, i_b = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    rows = tl.num_programs(2).to(tl.int64) * H * T
    o_row = (i_b * H + i_h) * T + i_t
    o_n = tl.arange(0, BN)
    o_v = tl.arange(0, BV)
    n_parts = splits * 2 if SHARE else splits
    known = o_n < n_parts
    b_lse = tl.load(lse_part + o_n * rows + o_row, mask=known, other=float("-inf"))  # [BN]
    b_part = tl.load(
        o_part + (o_n * rows + o_row)[:, None] * DV + o_v[None, :], mask=known[:, None] & (o_v < DV)[None, :], other=0.0
    )  # [BN, BV]
    top = tl.max(b_lse, 0)
    if SINKS:
        sink = tl.load(sinks + i_h).to(tl.float32) * LOG2E
        alone = i_h < dedicated
        if INTEGRITY:
            alone = alone | (((privileged >> tl.load(q_roles + i_b * T + i_t).to(tl.int32)) & 1) != 0)
        sink = tl.where(alone, float("-inf"), sink)
        top = tl.maximum(top, sink)
    shift = tl.where(top == float("-inf"), 0.0, top)
    b_mass = tl.exp2(b_lse - shift)
    total = tl.sum(b_mass, 0)
    if SINKS:
        total += tl.exp2(sink - shift)
    b_weight = b_mass / tl.where(total > 0, total, 1.0)
    if SHARE:
        b_first = o_n < splits
        top = tl.max(tl.where(b_first, b_lse, float("-inf")), 0)
        some = top > float("-inf")
        b_mass = tl.where(b_first, tl.exp2(b_lse - tl.where(some, top, 0.0)), 0.0)
        w = tl.where(some, tl.load(share + i_h).to(tl.float32), 0.0)
        b_weight = b_weight * (1.0 - w) + w * b_mass / tl.where(some, tl.sum(b_mass, 0), 1.0)
    b_o = tl.sum(tl.where((b_weight > 0)[:, None], b_part * b_weight[:, None], 0.0), 0)
    tl.store(o + i_b * stride_ob + i_h * stride_oh + i_t * stride_ot + o_v, b_o.to(o.dtype.element_ty), mask=o_v < DV)
