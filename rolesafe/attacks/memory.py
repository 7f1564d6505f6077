"""Out of memory in the middle of a run: smaller batches, and in the end one example less instead of no result."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Final, TypeVar

T = TypeVar("T")

_SIGNS = (
    "out of memory",
    "can't allocate memory",
    "cannot allocate memory",
    "not enough memory",
    "cublas_status_alloc_failed",  # of a GPU that is full already, as where processes share one
)
_RAN_OUT: Final = "out of memory"
NOT_FINITE: Final = "the loss of the search was not finite"
STOPPED: Final = "the attack stopped"


class OutOfMemoryError(Exception):
    """Not even a batch of one fits; the text is what the allocator said."""

    @property
    def reason(self) -> str:
        """Why an example has no outcome, in a form that :func:`is_memory_reason` knows."""
        return f"{_RAN_OUT} with a batch of 1: {self}"


def is_memory_reason(reason: str) -> bool:
    """Whether an example failed for memory alone, which may be there another time.

    Args:
        reason: As in :attr:`rolesafe.attacks.AttackResult.failed`.
    """
    return reason.startswith(_RAN_OUT)


def is_reason_of_the_run(reason: str) -> bool:
    """Whether an example failed for a reason of this run alone: memory, a loss that was not finite, an attack that
    broke off. An attacker may have more luck. Others, such as a template that does not print it, hold for everybody.

    Args:
        reason: As in :attr:`rolesafe.attacks.AttackResult.failed`.
    """
    return reason.startswith((_RAN_OUT, NOT_FINITE, STOPPED))


class Batches:
    """A batch size that is halved whenever memory runs out, and stays so.

    Args:
        size: The largest batch size.
    """

    def __init__(self, size: int) -> None:
        self.size = size

    def run(self, call: Callable[[int], T], most: int | None = None) -> T:
        """``call(batch size)``, with a smaller and smaller one while it runs out of memory.

        Args:
            call: What to do; it may be called several times.
            most: Batch size that `call` can make use of, where it is less than the current one.

        Raises:
            OutOfMemoryError: It ran out of memory with a batch of one.
        """
        while True:
            try:
                return call(self.size)
            except (RuntimeError, MemoryError) as error:  # torch's own errors are RuntimeErrors
                if not is_out_of_memory(error):
                    raise
                reason = str(error).strip().splitlines()[0] if str(error).strip() else _RAN_OUT
            # Here, not above: while the error lives, its traceback holds the tensors that are to be freed.
            _free()
            size = self.size if most is None else min(self.size, most)
            if size == 1:
                raise OutOfMemoryError(reason)
            self.size = size // 2


def is_out_of_memory(error: BaseException) -> bool:
    """Whether `error` says that memory ran out, on a GPU or in main memory."""
    return isinstance(error, MemoryError) or any(sign in str(error).lower() for sign in _SIGNS)


def _free() -> None:
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
