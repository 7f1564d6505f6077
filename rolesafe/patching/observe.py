"""Observe the attention problems of every layer of a patched model."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from rolesafe.attention import Problem
from rolesafe.mechanisms import get_strength
from rolesafe.patching.patched import check_patched

See = Callable[[nn.Module, Problem], None]
"""Called with an attention module and its problem, in every layer of every forward pass."""


@contextmanager
def observing(model: Any, see: See) -> Iterator[None]:
    """Within the context, call `see` before the attention of each layer of `model`.

    The tensors of the problem are the layer's own, with their gradients: measure, but do not change them.

    Raises:
        ValueError: `model` is not patched, is observed already, or its role layer is not at full strength (a layer
            then mixes two problems).
    """
    check_patched(model)
    if get_strength(model) != 1.0:
        raise ValueError(
            f"`model`: expected a role layer at full strength, got {get_strength(model)}. "
            "Call rolesafe.mechanisms.set_strength(model, 1.0) first."
        )
    entry = model.get_submodule(model.rolesafe_layers.entry)
    if "rolesafe_see" in entry.__dict__:
        raise ValueError("`model`: expected one observer at a time. Leave the other `observing` context first.")
    entry.__dict__["rolesafe_see"] = see
    try:
        yield
    finally:
        del entry.__dict__["rolesafe_see"]
