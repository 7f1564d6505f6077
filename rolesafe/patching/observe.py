"""Look at what every attention layer of a patched model is asked to compute, without changing it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, cast

from torch import nn

from rolesafe.attention import Problem
from rolesafe.mechanisms import get_strength
from rolesafe.patching.model import RoleAwareMixin

See = Callable[[nn.Module, Problem], None]
"""Called with an attention module and its problem, in every layer of every forward pass."""


@contextmanager
def observing(model: Any, see: See) -> Iterator[None]:
    """Within the context, call `see` before each layer of `model` attends.

    The tensors of the problem are the layer's own, with their gradients: measure, but do not change them.

    Raises:
        ValueError: `model` is not patched, is being observed already, or its role layer is not at full strength: then
            no one problem is what a layer computes.
    """
    if not isinstance(model, RoleAwareMixin):
        raise ValueError(f"`model`: expected a model patched by rolesafe, got {type(model).__name__}")
    if get_strength(model) != 1.0:
        raise ValueError(
            f"`model`: expected a role layer at full strength, got {get_strength(model)}; "
            "call rolesafe.mechanisms.set_strength(model, 1.0) first"
        )
    entry = cast(Any, model).get_submodule(cast(Any, model).rolesafe_layers.entry)
    if "rolesafe_see" in entry.__dict__:
        raise ValueError("`model`: is being observed already; leave the other `observing` first")
    entry.__dict__["rolesafe_see"] = see
    try:
        yield
    finally:
        del entry.__dict__["rolesafe_see"]
