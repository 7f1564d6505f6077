"""Checks of argument types. A ``bool`` is no number."""

from __future__ import annotations

import math
from typing import Any, TypeGuard


def is_integer(value: Any, least: int | None = None) -> TypeGuard[int]:
    """Return True for an ``int`` of at least `least`, False for a ``bool`` and everything else."""
    return isinstance(value, int) and not isinstance(value, bool) and (least is None or value >= least)


def is_number(value: Any) -> TypeGuard[int | float]:
    """Return True for a finite ``int`` or ``float``, False for a ``bool`` and everything else."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
