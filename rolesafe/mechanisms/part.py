"""The base of all parts of a role layer, and the dial that takes them in and out together."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn


class RolePart(nn.Module):
    """A module that a patch hangs into a model.

    Attributes:
        strength: In [0, 1], how much of the part is in force. Set it with :func:`set_strength`, on all parts at once.
    """

    strength: float = 1.0


def set_strength(model: Any, strength: float) -> None:
    """Take the role layer of `model` in or out by degrees, without changing a parameter.

    At 1 the role layer is what it is. At 0 the model computes what its base does: on a CPU bit for bit, on a GPU up to
    the rounding of the fused kernel. In between, of its parts

    - attention: the output of every layer is ``(1 - strength)`` times that of plain attention, plus `strength` times
      that of role-aware attention. So every key has the mixture of its two weights: an entry -inf of a table, a
      dedicated head and the integrity mask leave ``1 - strength`` of the plain weight, a reserved share gives at least
      ``strength * share``. Both are computed, which takes the time of two;
    - role vectors and shift: times `strength`; rotation: the angle times `strength`;
    - positions: moved by the rounded fraction `strength` of what they are moved by at 1.

    What a guarantee says holds at 1. Keys that are in a cache already keep the strength they were computed with.
    `save_pretrained` and `save_role_layer` save the strength; what was saved with less than 1 loads only where
    `from_pretrained(strength=...)` says how much is wanted.

    Args:
        model: A patched model, or a wrapper of one (PEFT, DDP).
        strength: In [0, 1].

    Raises:
        ValueError: `model` is not patched, or `strength` is no such number.
    """
    if isinstance(strength, bool) or not isinstance(strength, (int, float)) or not 0.0 <= strength <= 1.0:
        raise ValueError(f"`strength`: expected a number in [0, 1], got {strength!r}")
    for part in _parts(model):
        part.strength = float(strength)


def get_strength(model: Any) -> float:
    """How much of the role layer of `model` is in force, in [0, 1]; see :func:`set_strength`.

    Raises:
        ValueError: `model` is not patched.
    """
    return next(_parts(model)).strength


def _parts(model: Any) -> Iterator[RolePart]:
    found = False
    for module in model.modules() if isinstance(model, nn.Module) else ():
        if isinstance(module, RolePart):
            found = True
            yield module
    if not found:
        raise ValueError(f"`model`: expected a model patched by rolesafe, got {type(model).__name__}")
