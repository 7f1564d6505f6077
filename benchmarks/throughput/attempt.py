"""Calls that may fail, as on a PyTorch release that lacks them: the reason is recorded."""

from __future__ import annotations

import gc
import warnings
from collections.abc import Callable
from typing import TypeVar

import torch

try:
    from triton.errors import TritonError
except ImportError:  # no triton: nothing raises it

    class TritonError(Exception):  # type: ignore[no-redef]
        """Replacement of Triton's class."""


T = TypeVar("T")

RAISED = (RuntimeError, ValueError, TypeError, AssertionError, ImportError, AttributeError, LookupError, TritonError)
"""Errors of PyTorch, its compiler and Triton where they cannot do something."""

LONGEST = 400
"""Characters of a reason."""


class DeviceLost(RuntimeError):
    """The GPU's context ended: later results on it mean nothing."""


def attempt(call: Callable[[], T], device: torch.device) -> tuple[T | None, str]:
    """Return the value of `call()` and "", or None and the reason, its warnings included.

    Raises:
        DeviceLost: An error on the device ended its context.
    """
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        try:
            value = call()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            return value, ""
        except RAISED as error:
            reason = f"{type(error).__name__}: {shorten(str(error))}"
    gc.collect()
    if device.type == "cuda":
        try:
            torch.cuda.synchronize(device)
        except RuntimeError as lost:
            raise DeviceLost(reason) from lost
        torch.cuda.empty_cache()
    hints = dict.fromkeys(shorten(str(w.message), 120) for w in said if issubclass(w.category, UserWarning))
    return None, " | ".join([reason, *list(hints)[:3]])


def shorten(text: str, limit: int = LONGEST) -> str:
    """Return `text` on one line of at most `limit` characters."""
    text = " ".join(text.split())
    return text if len(text) <= limit else f"{text[: limit - 3]}..."
