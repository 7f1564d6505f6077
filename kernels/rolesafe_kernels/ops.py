"""The kernels as operations of PyTorch: launches, shapes without data, gradients. `api` checks the arguments.

    B batch, H query heads, G key/value heads, T queries, S keys, D and DV head dims, R roles, N blocks of a row

`role_blocks` prepares the roles once for all layers. All operations are functional:
nothing is changed in place.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from rolesafe_kernels.backward import role_attn_bwd_dkdv_kernel, role_attn_bwd_dq_kernel, role_attn_bwd_rows_kernel
from rolesafe_kernels.call import (
    Call,
    cdiv,
    count_blocks,
    dense,
    like,
    loop_operands,
    mask_strides,
    on,
    options,
    packed,
)
from rolesafe_kernels.forward import role_attn_fwd_kernel
from rolesafe_kernels.launch import INTERPRET, launch_of
from rolesafe_kernels.layout import ROWS, role_bits_kernel, role_lists_kernel
from rolesafe_kernels.replay import is_eager, launch

LIST_CHUNK = 32 if INTERPRET else 512
"""Blocks that a program of `role_lists_kernel` takes at a time: one kernel for every length."""
ROW_TILE = 16
"""Queries of a program that prepares the backward: it only reads and sums."""


def empty_blocks(roles: Tensor, block: int) -> tuple[Tensor, Tensor]:
    """Return the outputs of `build_blocks`, unwritten."""
    batch, length = roles.shape
    return (
        roles.new_empty(batch, length, dtype=torch.int8),
        roles.new_empty(batch, ROWS.value, cdiv(length, block) + 1, dtype=torch.int32),
    )


def build_blocks(roles: Tensor, mask: Tensor | None, privileged: int, block: int) -> tuple[Tensor, Tensor]:
    """Compute `role_blocks` for blocks of `block` tokens."""
    roles8, blocks = build_bits(roles, mask, block)
    if roles.shape[0]:
        with on(roles):
            launch(
                role_lists_kernel, (roles.shape[0], 4, 1), blocks, privileged, count_blocks(blocks),
                BN=LIST_CHUNK, num_warps=4,
            )  # fmt: skip
    return roles8, blocks


def build_bits(roles: Tensor, mask: Tensor | None, block: int) -> tuple[Tensor, Tensor]:
    """Compute `role_blocks` but for the lists: the bits of the blocks alone are written."""
    roles8, blocks = empty_blocks(roles, block)
    batch, n = roles.shape[0], count_blocks(blocks)
    if batch and n:
        shown = roles if mask is None else mask
        with on(roles):
            launch(
                role_bits_kernel, (n, batch, 1), roles, shown, roles8, blocks, *roles.stride(), *shown.stride(),
                roles.shape[1], n, HAS_MASK=mask is not None, BLOCK=block, num_warps=1,
            )  # fmt: skip
    return roles8, blocks


@torch.library.custom_op("rolesafe::role_blocks", mutates_args=())
def role_blocks(
    roles: Tensor, mask: Tensor | None, privileged: int, dtype: torch.dtype, dim: int, kernel: str
) -> tuple[Tensor, Tensor]:
    """Return roles (B, S) as int8, PAD where `mask` (B, S) hides a key, and lists of blocks (B, ROWS, N + 1) int32.

    `privileged` has bit r set for each privileged role r. `kernel` (a field of `Launch`) reads the lists (see
    `layout`) for tokens of `dtype`; `dim` is the wider head dim. They set the size of a block.
    """
    return build_blocks(roles, mask, privileged, getattr(launch_of(roles.device, dtype, dim), kernel).block)


def role_blocks_fake(
    roles: Tensor, mask: Tensor | None, privileged: int, dtype: torch.dtype, dim: int, kernel: str
) -> tuple[Tensor, Tensor]:
    """Return the outputs of `role_blocks`, unwritten."""
    return empty_blocks(roles, getattr(launch_of(roles.device, dtype, int(dim)), kernel).block)


role_blocks.register_fake(role_blocks_fake)


def empty_outputs(q: Tensor, v: Tensor, share: Tensor | None, train: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the outputs of `role_attn_fwd`, unwritten."""
    batch, heads, length, _ = q.shape
    shape = (batch, heads, length)
    return (
        # laid out as (B, T, H, DV): the output projection joins the heads
        q.new_empty(batch, length, heads, v.shape[3]).transpose(1, 2),
        q.new_empty(shape, dtype=torch.float32),
        q.new_empty(shape if share is not None else (0,), dtype=torch.float32),
        q.new_empty((*shape, v.shape[3]) if share is not None and train else (0,)),
    )


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    q_roles: Tensor | None,
    k_roles: Tensor | None,
    fwd_blocks: Tensor | None,
    dq_blocks: Tensor | None,
    dkdv_blocks: Tensor | None,
    bias: Tensor | None,
    share: Tensor | None,
    sinks: Tensor | None,
    mask: Tensor | None,
    ranges: Tensor | None,
    q_ranges: Tensor | None,
    scale: float,
    softcap: float,
    window: int,
    causal: bool,
    dedicated: int,
    integrity: bool,
    privileged: int,
    train: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Compute role-aware attention with gradients.

    Args:
        q_roles, k_roles: (B, T), (B, S) int8 from `role_blocks`; None: no roles.
        fwd_blocks, dq_blocks: Lists of the key blocks for forward and dq. `dkdv_blocks`: of the query blocks for dkdv.
        mask: (B | 1, H | 1, T, S) bool.
        ranges, q_ranges: (B, 2, T) and (B, 2, S) int32: first and last + 1 key of each query, and query of each key.
        softcap, window: 0 for none. `privileged`: bits of the privileged roles.
        train: Whether a backward follows.

    Returns:
        Output (B, H, T, DV); lse and lse_p (B, H, T) fp32 in units of log 2, -inf for rows that see nothing; p - o
        (B, H, T, DV). The last two are empty where there is no share, or no backward.
    """
    o, lse, lse_p, diff = empty_outputs(q, v, share, train)
    forward(
        o, diff, lse, lse_p, None, q, k, v, q_roles, k_roles, fwd_blocks, bias, share, sinks, mask, ranges,
        scale, softcap, window, causal, dedicated, integrity, privileged, train,
    )  # fmt: skip
    return o, lse, lse_p, diff


role_attn_fwd = torch.library.custom_op("rolesafe::role_attn_fwd", attend, mutates_args=())


@role_attn_fwd.register_fake
def role_attn_fwd_fake(q: Tensor, k: Tensor, v: Tensor, *others: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the outputs of `role_attn_fwd`, unwritten. Arguments as there: `share` is the tenth, `train` the last."""
    return empty_outputs(q, v, others[6], others[-1])


def forward(
    o: Tensor,
    diff: Tensor,
    lse: Tensor,
    lse_p: Tensor,
    counts: Tensor | None,
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
    ranges: Tensor | None,
    scale: float,
    softcap: float,
    window: int,
    causal: bool,
    dedicated: int,
    integrity: bool,
    privileged: int,
    train: bool,
) -> None:
    """Launch the kernels of `role_attn_fwd`. `counts` (B, H, tiles, 3) int32 takes the blocks that programs read."""
    bias, share, sinks = dense(bias), dense(share), dense(sinks)
    call = Call(q, k, v, q_roles is not None, bias, mask, ranges, softcap, window, causal, integrity)
    tile = call.launch.forward
    if not call.batch or not call.length:
        return

    keys_values, tma = loop_operands(tile, k, v)

    with on(q):
        role_attn_fwd_kernel[(cdiv(call.length, tile.rows), call.heads, call.batch)](
            q, *keys_values, o, diff, lse, lse_p,
            *map(call, (q_roles, k_roles, blocks, bias, share, sinks, mask, ranges, counts)),
            *call.strides, *o.stride()[:3], *mask_strides(mask),
            call.heads, call.length, call.keys, count_blocks(blocks), dedicated, privileged, window, 1,
            scale, softcap,
            **call.constants, BT=tile.rows, BS=tile.block, SINKS=sinks is not None,
            LOOK="all" if share is None else "share", SPLIT=False, DIFF=share is not None and train,
            COUNT=counts is not None, TMA=tma, **options(tile),
        )  # fmt: skip


def gradients(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    o: Tensor,
    lse: Tensor,
    lse_p: Tensor,
    diff: Tensor,
    q_roles: Tensor | None,
    k_roles: Tensor | None,
    dq_blocks: Tensor | None,
    dkdv_blocks: Tensor | None,
    bias: Tensor | None,
    share: Tensor | None,
    sinks: Tensor | None,
    mask: Tensor | None,
    ranges: Tensor | None,
    q_ranges: Tensor | None,
    scale: float,
    softcap: float,
    window: int,
    causal: bool,
    dedicated: int,
    integrity: bool,
    privileged: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return gradients of q, k, v in their dtypes; in fp32 of bias (H, R, R) and, stacked, share and sinks (2, H)."""
    dq, dk, dv = like(q), like(k), like(v)
    grad = packed(grad)
    bias, share, sinks = dense(bias), dense(share), dense(sinks)
    call = Call(q, k, v, q_roles is not None, bias, mask, ranges, softcap, window, causal, integrity)
    tile, tile_kv = call.launch.dq, call.launch.dkdv
    tiles, row_tiles = cdiv(call.length, tile.rows), cdiv(call.length, ROW_TILE)
    shape = (call.batch, call.heads)
    rows = q.new_empty((2 if share is None else 4, *shape, call.length), dtype=torch.float32)
    sums = q.new_zeros((2, *shape, row_tiles), dtype=torch.float32)
    r = 0 if bias is None else bias.shape[-1]
    dbias = q.new_empty((*shape, tiles, r, r), dtype=torch.float32)
    if not call.batch or not call.length or not call.keys:
        return dq.zero_(), dk.zero_(), dv.zero_(), summed(dbias.zero_()), sums.sum((1, 3))
    shared: dict[str, Any] = {**call.constants, "SHARE": share is not None}
    keys_values, tma = loop_operands(tile, k, v)
    (queries, grads), tma_kv = loop_operands(tile_kv, q, grad)
    with on(q):
        role_attn_bwd_rows_kernel[(row_tiles, call.heads, call.batch)](
            o, grad, diff, lse, lse_p, call(q_roles), call(share), call(sinks), rows, sums,
            *o.stride()[:3], *grad.stride()[:3], call.heads, call.length, dedicated, privileged,
            DV=shared["DV"], BT=ROW_TILE, BV=shared["BV"], SHARE=share is not None, SINKS=sinks is not None,
            INTEGRITY=integrity, num_warps=4,
        )  # fmt: skip
        role_attn_bwd_dq_kernel[(tiles, call.heads, call.batch)](
            q, *keys_values, grad, dq, rows, *map(call, (q_roles, k_roles, dq_blocks, bias)), dbias,
            call(mask), call(ranges),
            *call.strides, *grad.stride()[:3], *dq.stride()[:3], *mask_strides(mask),
            call.heads, call.length, call.keys, count_blocks(dq_blocks), dedicated, privileged, window, scale, softcap,
            BT=tile.rows, BS=tile.block, TABLE=bias is not None, TMA=tma, **shared, **options(tile),
        )  # fmt: skip
        role_attn_bwd_dkdv_kernel[(cdiv(call.keys, tile_kv.rows), call.groups, call.batch)](
            queries, k, v, grads, dk, dv, rows, *map(call, (q_roles, k_roles, dkdv_blocks, bias, mask, q_ranges)),
            *call.strides, *grad.stride()[:3], *dk.stride()[:3], *dv.stride()[:3], *mask_strides(mask),
            call.heads, call.length, call.keys, count_blocks(dkdv_blocks), dedicated, privileged, window,
            scale, softcap,
            BT=tile_kv.block, BS=tile_kv.rows, TMA=tma_kv, **shared, **options(tile_kv),
        )  # fmt: skip
    # a second pass over the parts of the programs: no atomics, the same bits every time
    return dq, dk, dv, summed(dbias), sums.sum((1, 3))


def summed(dbias: Tensor) -> Tensor:
    """Return the table's gradient (H, R, R) from its parts (B, H, tiles, R, R); empty without a table."""
    return dbias.sum((0, 2)) if dbias.shape[-1] else dbias.new_empty(0)


role_attn_bwd = torch.library.custom_op("rolesafe::role_attn_bwd", gradients, mutates_args=())


@role_attn_bwd.register_fake
def role_attn_bwd_fake(grad: Tensor, q: Tensor, k: Tensor, v: Tensor, *others: Any) -> tuple[Tensor, ...]:
    """Return the outputs of `role_attn_bwd`, unwritten. Arguments as there: `bias` is the thirteenth."""
    table = (0,) if others[8] is None else tuple(others[8].shape)
    sums = q.new_empty(2, q.shape[1], dtype=torch.float32)
    return like(q), like(k), like(v), q.new_empty(table, dtype=torch.float32), sums


def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    """Save the tensors of the backward."""
    *tensors, scale, softcap, window, causal, dedicated, integrity, privileged, _ = inputs
    q, k, v, q_roles, k_roles, _, dq_blocks, dkdv_blocks, bias, share, sinks, mask, ranges, q_ranges = tensors
    ctx.save_for_backward(
        q, k, v, *output, q_roles, k_roles, dq_blocks, dkdv_blocks, bias, share, sinks, mask, ranges, q_ranges
    )
    ctx.settings = (scale, softcap, window, causal, dedicated, integrity, privileged)
    ctx.set_materialize_grads(False)


def backward(ctx: Any, grad: Tensor | None, *_: Tensor | None) -> tuple[Tensor | None, ...]:
    """Return the gradients of the inputs of `role_attn_fwd`."""
    if grad is None:
        return (None,) * 22
    *_, bias, share, sinks, _, _, _ = saved = ctx.saved_tensors
    # a second derivative, or a trace, needs the registered operation
    direct = not torch.is_grad_enabled() and is_eager(grad, *saved)
    dq, dk, dv, dbias, sums = (gradients if direct else role_attn_bwd)(grad, *saved, *ctx.settings)
    return (
        dq, dk, dv, None, None, None, None, None,
        None if bias is None else dbias.to(bias.dtype),
        None if share is None else sums[0].to(share.dtype),
        None if sinks is None else sums[1].to(sinks.dtype),
        *(None,) * 11,
    )  # fmt: skip


role_attn_fwd.register_autograd(backward, setup_context=setup_context)


class Attend(torch.autograd.Function):
    """`role_attn_fwd` with gradients in eager mode: ``Attend.apply`` takes its arguments and gives its outputs."""

    forward = staticmethod(attend)
    setup_context = staticmethod(setup_context)
    backward = staticmethod(backward)
