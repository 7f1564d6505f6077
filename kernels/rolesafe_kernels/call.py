"""Strides, constants and options of every launch of a kernel.

B batch, H query heads, G key/value heads, T queries, S keys, D and DV head dims, R roles, N blocks of a row
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from rolesafe_kernels.launch import Tile, launch_of, width

MAX_ROLES = 16


def cdiv(a: int, b: int) -> int:
    """Return `a / b`, rounded up."""
    return (a + b - 1) // b


def options(tile: Tile) -> dict[str, Any]:
    """Return the launch options of a kernel."""
    return {"num_warps": tile.warps, "num_stages": tile.stages, "enable_fp_fusion": True}


def on(x: Tensor) -> AbstractContextManager[Any]:
    """Make the device of `x` the current one, on which kernels are launched."""
    return torch.cuda.device(x.device) if x.is_cuda and x.device.index != torch.cuda.current_device() else _HERE


_HERE = nullcontext()


def is_packed(x: Tensor) -> bool:
    """Return True where the last dimension of `x` is dense."""
    return x.stride(-1) == 1 or x.shape[-1] == 1


def packed(x: Tensor) -> Tensor:
    """Return `x` with its last dimension dense; a copy only where it is not."""
    return x if is_packed(x) else x.contiguous()


def dense(table: Tensor | None) -> Tensor | None:
    """Return a table of numbers a head as dense fp32, the form that kernels read."""
    return None if table is None else table.float().contiguous()


def like(x: Tensor) -> Tensor:
    """Return an unwritten tensor of the layout of `x`, its last dimension dense."""
    y = torch.empty_like(x)
    return y if is_packed(y) else x.new_empty(x.shape)


def count_blocks(blocks: Tensor | None) -> int:
    """Return N of the lists of `role_blocks`."""
    return 0 if blocks is None else blocks.shape[-1] - 1


def describable(x: Tensor) -> bool:
    """Return True where a tensor descriptor can describe `x`.

    That is: 16 bits a number, start and strides multiples of 16 bytes, a dense last dimension, not empty or expanded.
    """
    *strides, last = x.stride()
    if x.element_size() != 2 or not x.numel() or x.data_ptr() % 16 or last != 1:
        return False
    return all(stride > 0 and stride * 2 % 16 == 0 for stride in strides)


def loop_operands(tile: Tile, *tensors: Tensor) -> tuple[tuple[Any, ...], bool]:
    """Return the operands that a kernel reads in its loop, and True where they are tensor descriptors.

    Those are made where `tile` asks for them and all `tensors` (B, heads, tokens, dim) permit it; else the kernel takes
    pointers, with the same result. The launch passes them by value: nothing is allocated on the device.
    """
    if not (tile.descriptors and all(map(describable, tensors))):
        return tensors, False
    made = (TensorDescriptor(x, [*x.shape], [*x.stride()], [1, 1, tile.block, width(x.shape[3])]) for x in tensors)
    return tuple(made), True


def mask_strides(mask: Tensor | None) -> tuple[int, ...]:
    """Return the strides of a (B | 1, H | 1, T, S) mask, 0 where it is shared."""
    if mask is None:
        return 0, 0, 0, 0
    return tuple(0 if size == 1 else stride for size, stride in zip(mask.shape, mask.stride(), strict=True))


class Call:
    """Sizes, strides and constants that the launches of forward, decode and backward share."""

    def __init__(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        roles: bool,
        bias: Tensor | None,
        mask: Tensor | None,
        ranges: Tensor | None,
        softcap: float,
        window: int,
        causal: bool,
        integrity: bool,
    ) -> None:
        for name, x in (("q", q), ("k", k), ("v", v)):
            if not is_packed(x):
                raise ValueError(
                    f"`{name}`: expected a dense last dimension, got strides {x.stride()}. Call contiguous()."
                )
        self.batch, self.heads, self.length, dim = q.shape
        self.groups, self.keys, dim_v = k.shape[1], k.shape[2], v.shape[3]
        self.launch = launch_of(q.device, q.dtype, max(dim, dim_v))
        self.strides = (*q.stride()[:3], *k.stride()[:3], *v.stride()[:3])
        # an absent tensor is never read: any pointer will do
        self.nothing = q
        self.constants = {
            "GROUP": self.heads // self.groups,
            "R": MAX_ROLES if bias is None else bias.shape[-1],
            "D": dim,
            "DV": dim_v,
            "BD": width(dim),
            "BV": width(dim_v),
            "ROLES": roles,
            "BIAS": bias is not None,
            "INTEGRITY": integrity,
            "CAUSAL": causal,
            "WINDOW": window > 0,
            "SOFTCAP": softcap > 0,
            "MASK": mask is not None,
            "RANGES": ranges is not None,
        }

    def __call__(self, x: Tensor | None) -> Tensor:
        return self.nothing if x is None else x
