"""Backward, first kernel: the two numbers of each row, and its part of the gradients of share and sinks."""

from __future__ import annotations

import triton
import triton.language as tl

from rolesafe_kernels.layout import PAD
from rolesafe_kernels.tiles import LOG2E


# Arguments are in groups.
# fmt: off
@triton.jit(do_not_specialize=["T", "dedicated", "privileged"])
def role_attn_bwd_rows_kernel(
    o, do, diff, lse, lse_p, q_roles, share, sinks, rows, sums,
    stride_ob, stride_oh, stride_ot, stride_gb, stride_gh, stride_gt,
    H, T, dedicated, privileged,
    DV: tl.constexpr, BT: tl.constexpr, BV: tl.constexpr,
    SHARE: tl.constexpr, SINKS: tl.constexpr, INTEGRITY: tl.constexpr,
):
    """Compute lambda and delta of each row, and partial gradients of share and sinks.

    `rows` is [2 or 4, B, H, T], `sums` [2, B, H, tiles]. Grid (ceil(T / BT), H, B).
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
