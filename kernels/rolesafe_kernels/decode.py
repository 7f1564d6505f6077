"""Decode as an operation of PyTorch: few queries against many keys, the keys divided among programs.

B batch, H query heads, G key/value heads, T queries, S keys, D and DV head dims, R roles, N blocks of a row
"""

from __future__ import annotations

import torch
from torch import Tensor

from rolesafe_kernels.call import Call, cdiv, count_blocks, dense, mask_strides, on, options
from rolesafe_kernels.forward import role_attn_fwd_kernel, role_attn_merge_kernel
from rolesafe_kernels.launch import width
from rolesafe_kernels.replay import Tape


def choose_splits(device: torch.device, programs: int, blocks: int) -> int:
    """Return the parts of the keys: two programs a multiprocessor, at least two blocks a program, at most 64 parts."""
    processors = torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 2
    return max(1, min(2 * processors // max(programs, 1), blocks // 2, 64))


def role_attn_decode_fake(q: Tensor, k: Tensor, v: Tensor, *_: object) -> Tensor:
    """Return the output of `role_attn_decode`, unwritten."""
    return q.new_empty(q.shape[0], q.shape[2], q.shape[1], v.shape[3]).transpose(1, 2)


@torch.library.custom_op("rolesafe::role_attn_decode", mutates_args=())
def role_attn_decode(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    q_roles: Tensor | None,
    k_roles: Tensor | None,
    blocks: Tensor | None,
    bias: Tensor | None,
    share: Tensor | None,
    sinks: Tensor | None,
    mask: Tensor | None,
    scale: float,
    softcap: float,
    window: int,
    causal: bool,
    dedicated: int,
    integrity: bool,
    privileged: int,
    splits: int,
) -> Tensor:
    """Attend with few queries to many keys, without gradients: (B, H, T, DV).

    The queries of all heads that share keys make one tile, and `splits` programs divide the visible blocks. Only
    the device knows which blocks these are, so shapes and launches are the same at every step of a static
    cache. 0: as many as fill it.
    """
    return decode(
        Tape(), q, k, v, q_roles, k_roles, blocks, bias, share, sinks, mask,
        scale, softcap, window, causal, dedicated, integrity, privileged, splits,
    )  # fmt: skip


role_attn_decode.register_fake(role_attn_decode_fake)


def decode(
    tape: Tape,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    q_roles: Tensor | None,
    k_roles: Tensor | None,
    blocks: Tensor | None,
    bias: Tensor | None,
    share: Tensor | None,
    sinks: Tensor | None,
    mask: Tensor | None,
    scale: float,
    softcap: float,
    window: int,
    causal: bool,
    dedicated: int,
    integrity: bool,
    privileged: int,
    splits: int,
) -> Tensor:
    """Do the allocations and launches of `role_attn_decode` by `tape`."""
    bias, share, sinks = dense(bias), dense(share), dense(sinks)
    batch, heads, length, dim_v = *q.shape[:3], v.shape[3]
    # laid out as (B, T, H, DV), like the fake one
    strides = (length * heads * dim_v, dim_v, heads * dim_v, 1)
    o = tape.empty((batch, heads, length, dim_v), q.dtype, q.device, strides)
    call = Call(q, k, v, q_roles is not None, bias, mask, None, softcap, window, causal, integrity)
    tile = call.launch.decode
    channels = 1 if share is None else 2
    tiles = cdiv(call.length * call.constants["GROUP"], tile.rows)
    splits = splits or choose_splits(q.device, tiles * call.groups * call.batch * channels, cdiv(call.keys, tile.block))
    parts = channels * splits
    shape = (parts, batch, heads, length)
    o_part = tape.empty((*shape, dim_v), torch.float32, q.device)
    lse = tape.empty(shape, torch.float32, q.device)
    if not o.numel():
        return o
    with on(q):
        tape.launch(
            role_attn_fwd_kernel, (tiles * splits, call.groups, call.batch * channels),
            q, k, v, o_part, o_part, lse, lse,
            *map(call, (q_roles, k_roles, blocks, bias, share, sinks, mask, None, None)),
            *call.strides, 0, 0, 0, *mask_strides(mask),
            call.heads, call.length, call.keys, count_blocks(blocks), dedicated, privileged, window, splits,
            scale, softcap,
            **call.constants, BT=tile.rows, BS=tile.block, SINKS=False,
            LOOK="all" if share is None else "both", SPLIT=True, DIFF=False, COUNT=False, TMA=False, **options(tile),
        )  # fmt: skip
        tape.launch(
            role_attn_merge_kernel, (call.length, call.heads, call.batch),
            o_part, lse, o, call(share), call(sinks), call(q_roles), *o.stride()[:3],
            call.heads, call.length, dedicated, privileged, splits,
            DV=dim_v, BV=width(dim_v), BN=width(parts, 1),
            SHARE=share is not None, SINKS=sinks is not None, INTEGRITY=integrity, num_warps=4,
        )  # fmt: skip
    return o
