"""Out-of-memory handling: smaller batches, then one failed example instead of a failed run."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Final, TypeVar

from rolesafe.terminal import first_line

T = TypeVar("T")

_SIGNS = (
    "out of memory",
    "can't allocate memory",
    "cannot allocate memory",
    "not enough memory",
    "cublas_status_alloc_failed",  # a GPU that other processes have filled
)
_RAN_OUT: Final = "out of memory"
NOT_FINITE: Final = "the loss of the search was not finite"
STOPPED: Final = "the attack stopped"


class OutOfMemoryError(Exception):
    """Report that a batch of one does not fit; holds the allocator's message."""

    @property
    def reason(self) -> str:
        """Return the reason in the form that :func:`is_memory_reason` recognises."""
        return f"{_RAN_OUT} with a batch of 1: {self}"


def is_memory_reason(reason: str) -> bool:
    """Return True if an example failed for lack of memory, so that another run may succeed.

    Args:
        reason: As in :attr:`rolesafe.attacks.AttackResult.failed`.
    """
    return reason.startswith(_RAN_OUT)


def is_reason_of_the_run(reason: str) -> bool:
    """Return True if an example failed in this run only: lack of memory, a loss that was not finite, an error.

    An attacker may succeed in another run. Other reasons, such as a template that does not print the conversation, hold
    in every run.

    Args:
        reason: As in :attr:`rolesafe.attacks.AttackResult.failed`.
    """
    return reason.startswith((_RAN_OUT, NOT_FINITE, STOPPED))


class Batches:
    """Hold a batch size that is halved for good whenever memory runs out.

    Args:
        size: Maximum batch size.
    """

    def __init__(self, size: int) -> None:
        self.size = size

    def run(self, call: Callable[[int], T], most: int | None = None) -> T:
        """Return ``call(batch size)``, repeated with half the batch size while it runs out of memory.

        Args:
            call: Function of the batch size; it may be called several times.
            most: Largest batch size that `call` can use; default: any.

        Raises:
            OutOfMemoryError: It ran out of memory with a batch of one.
        """
        while True:
            try:
                return call(self.size)
            except (RuntimeError, MemoryError) as error:  # torch's own errors are RuntimeErrors
                if not is_out_of_memory(error):
                    raise
                reason = first_line(error) if str(error).strip() else _RAN_OUT
            # Outside the except block: the error's traceback keeps the tensors alive.
            _free()
            size = self.size if most is None else min(self.size, most)
            if size == 1:
                raise OutOfMemoryError(reason)
            self.size = size // 2


def is_out_of_memory(error: BaseException) -> bool:
    """Return True if `error` reports a lack of memory, on a GPU or in main memory."""
    return isinstance(error, MemoryError) or any(sign in str(error).lower() for sign in _SIGNS)


def _free() -> None:
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
