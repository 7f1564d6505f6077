"""The base of all parts of a role layer, and the dial that takes them in and out together."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn


class RolePart(nn.Module):
    """A module that a patch hangs into a model.

    Its parameters stay in fp32 at least, whatever dtype the model is converted to, and are cast where they are used: in
    half precision a step of ordinary size would be rounded away.

    Attributes:
        name: Name of the part in its model. Copies and wrappers of the part have it too.
        strength: In [0, 1], how much of the part is in force. Set it with :func:`set_strength`, on all parts at once.
    """

    name: str = ""
    strength: float = 1.0

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        """What `to`, `half`, `bfloat16`, ... do to every tensor, without the loss of precision."""

        def keep_precision(x: Tensor) -> Tensor:
            changed = fn(x)
            if not changed.is_floating_point() or changed.dtype.itemsize >= min(x.dtype.itemsize, 4):
                return changed
            if x.is_meta or changed.is_meta:
                return torch.empty_like(x, device=changed.device)
            return x.to(changed.device)

        return super()._apply(keep_precision, recurse)  # type: ignore[no-untyped-call]


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

    What a guarantee says holds at 1. A cache that was filled at another strength is refused.
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
        ValueError: `model` is not patched, or its parts have several strengths.
    """
    strengths = sorted({part.strength for part in _parts(model)})
    if len(strengths) > 1:
        raise ValueError(
            f"`strength`: expected one strength of all parts of the role layer, got {strengths}. Set it with "
            "rolesafe.mechanisms.set_strength(model, strength)."
        )
    return strengths[0]


def _parts(model: Any) -> Iterator[RolePart]:
    found = False
    for module in model.modules() if isinstance(model, nn.Module) else ():
        if isinstance(module, RolePart):
            found = True
            yield module
    if not found:
        raise ValueError(f"`model`: expected a model patched by rolesafe, got {type(model).__name__}")
