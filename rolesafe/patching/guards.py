"""Checks: values of tensors, models that are sharded already, `role_ids` for an unpatched model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


def demand(holds: Tensor, on_device: str, message: Callable[[], str] | None = None) -> None:
    """Raise where the bool scalar `holds` is False: a ValueError on a CPU, else a device-side assertion (no sync).

    Args:
        on_device: Message of the assertion.
        message: Message of the ValueError; default: `on_device`.
    """
    if holds.device.type != "cpu" or torch.compiler.is_compiling():
        torch._assert_async(holds, on_device)
    elif not bool(holds):
        raise ValueError(on_device if message is None else message())


def check_whole(model: nn.Module) -> None:
    """Raise a ValueError for a sharded or wrapped model: role parameters added later would not be sharded."""
    found = next((type(m).__name__ for m in model.modules() if isinstance(m, _wrappers())), None)
    if found is None and torch.distributed.is_available():
        from torch.distributed.tensor import DTensor

        found = next((f"the DTensor {n}" for n, p in model.named_parameters() if isinstance(p, DTensor)), None)
    if found is not None:
        raise ValueError(
            f"`model`: expected a model that is not sharded or wrapped yet, found {found} in it. Each process would "
            "train role parameters of its own: call rolesafe.patch first, then fully_shard, FSDP, DDP, ..."
        )


def _wrappers() -> tuple[type, ...]:
    if not torch.distributed.is_available():
        return (nn.DataParallel,)
    from torch.distributed.fsdp import FSDPModule, FullyShardedDataParallel

    return (nn.DataParallel, nn.parallel.DistributedDataParallel, FullyShardedDataParallel, FSDPModule)


def refuse_roles(module: nn.Module) -> None:
    """Make the unpatched `module` raise on `role_ids`, which its base class would silently ignore."""
    module.register_forward_pre_hook(_refuse, with_kwargs=True)


def accept_roles(module: nn.Module) -> None:
    """Undo :func:`refuse_roles`."""
    for key, hook in list(module._forward_pre_hooks.items()):
        if hook is _refuse:
            del module._forward_pre_hooks[key]
            module._forward_pre_hooks_with_kwargs.pop(key, None)


def _refuse(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    if kwargs.get("role_ids") is not None:
        raise ValueError(
            "`role_ids`: expected None after rolesafe.unpatch, got some, which would be ignored. Leave them out, or "
            "call rolesafe.patch again."
        )
