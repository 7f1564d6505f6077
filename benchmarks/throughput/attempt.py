"""Calls that may fail: what a PyTorch release lacks is written down with its reason."""

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
        """Stands for Triton's."""


T = TypeVar("T")

RAISED = (RuntimeError, ValueError, TypeError, AssertionError, ImportError, AttributeError, LookupError, TritonError)
"""What PyTorch, its compiler and Triton raise where they cannot do something."""

LONGEST = 400
"""Characters of a reason."""


class DeviceLost(RuntimeError):
    """The GPU answers no more: what follows on it means nothing."""


def attempt(call: Callable[[], T], device: torch.device) -> tuple[T | None, str]:
    """The value of `call()`, or None and the reason, its warnings included.

    Raises:
        DeviceLost: An error on the device ended its context.
    """
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        try:
            value = call()
            synchronise(device)
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
    """`text` on one line of at most `limit` characters."""
    text = " ".join(text.split())
    return text if len(text) <= limit else f"{text[: limit - 3]}..."


def synchronise(device: torch.device) -> None:
    """Wait for `device`."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
