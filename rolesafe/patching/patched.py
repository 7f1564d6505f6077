"""Recognise patched models, and name their role parameters."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, TypeGuard

if TYPE_CHECKING:
    from torch import nn


class RoleAware:
    """Marker in the class of every patched model."""

    rolesafe_base: type[Any]  # transformers evaluates the annotation: only names that exist here


def is_patched(model: Any) -> TypeGuard[Any]:
    """Return True for a model that :func:`rolesafe.patch` made role-aware, False for its wrappers and all else."""
    return isinstance(model, RoleAware)


def check_patched(model: Any) -> None:
    """Raise a ValueError unless `model` is patched."""
    if not is_patched(model):
        raise ValueError(f"`model`: expected a model patched by rolesafe, got {type(model).__name__}")


def is_role_name(name: str) -> bool:
    """Return True for the name of a role parameter."""
    return "rolesafe_" in name


def named_role_parameters(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Iterate over the names and parameters of the role layer, named as in `model.named_parameters()`.

    Works through wrappers such as PEFT and DDP. A plain model has none.

    >>> import rolesafe
    >>> from rolesafe.training.tiny import tiny_llama
    >>> model = rolesafe.patch(tiny_llama(vocab_size=64, seed=0, layers=1), rolesafe.RoleConfig())
    >>> [(name, tuple(parameter.shape)) for name, parameter in rolesafe.named_role_parameters(model)]
    [('model.layers.0.self_attn.rolesafe_heads.bias', (4, 5, 5))]
    """
    from rolesafe.mechanisms import RolePart  # late: it imports torch

    for prefix, module in model.named_modules():
        if isinstance(module, RolePart):
            for name, parameter in module.named_parameters(recurse=False):
                yield f"{prefix}.{name}", parameter


def role_parameters(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Return :func:`named_role_parameters`. Deprecated name."""
    warnings.warn(
        "`role_parameters` is deprecated. Use rolesafe.named_role_parameters(model).", DeprecationWarning, stacklevel=2
    )
    return named_role_parameters(model)
