"""Base class of all parts of a role layer, and their common strength."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from rolesafe.arguments import is_number


class RolePart(nn.Module):
    """Base class of the modules that a patch adds to a model.

    Parameters stay in fp32 or wider when the model is converted, and are cast where they are used: in half precision
    updates of ordinary size would be rounded to zero.

    Attributes:
        name: Name of the part in its model, also in copies and wrappers.
        strength: In [0, 1]. Set it with :func:`set_strength`, on all parts at once.
    """

    name: str = ""
    strength: float = 1.0

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        """Apply `to`, `half`, `bfloat16`, ... to every tensor without loss of precision."""

        def keep_precision(x: Tensor) -> Tensor:
            changed = fn(x)
            if not changed.is_floating_point() or changed.dtype.itemsize >= min(x.dtype.itemsize, 4):
                return changed
            if x.is_meta or changed.is_meta:
                return torch.empty_like(x, device=changed.device)
            return x.to(changed.device)

        return super()._apply(keep_precision, recurse)  # type: ignore[no-untyped-call]


def set_strength(model: nn.Module, strength: float) -> None:
    """Interpolate between the base model (0) and its role layer (1), without changing a parameter.

    At 0 the model computes the same as its base: on a CPU bit for bit, on a GPU up to the rounding of the fused kernel.
    In between

    - attention: the output of every layer is ``(1 - strength)`` times that of plain attention, plus `strength` times
      that of role-aware attention. So the weights of every key are mixed: an entry -inf of a table, a dedicated head
      and the integrity mask leave ``1 - strength`` of the plain weight, a reserved share gives at least
      ``strength * share``. Both are computed, at twice the cost (once in a layer with a share and no other part);
    - role vectors and shift: times `strength`; rotation: the angle times `strength`;
    - positions: moved by the rounded fraction `strength` of the distance at 1.

    Guarantees hold at 1. A cache that was filled at another strength raises. `save_pretrained` and `save_role_layer`
    save the strength; a checkpoint with less than 1 loads only with `from_pretrained(strength=...)`.

    Args:
        model: A patched model, or a wrapper of one (PEFT, DDP).
        strength: In [0, 1].

    Raises:
        ValueError: `model` is not patched, or `strength` is out of range.
    """
    if not is_number(strength) or not 0.0 <= strength <= 1.0:
        raise ValueError(f"`strength`: expected a number in [0, 1], got {strength!r}")
    for part in _parts(model):
        part.strength = float(strength)


def get_strength(model: nn.Module) -> float:
    """Return the strength of the role layer of `model`, in [0, 1]; see :func:`set_strength`.

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
