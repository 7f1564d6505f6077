"""Check locked parameters while a model trains."""

from __future__ import annotations

from typing import Any

from transformers import TrainerCallback

from rolesafe.arguments import is_integer
from rolesafe.patching.locked import check_lock


class KeepLocked(TrainerCallback):
    """Callback of the Trainer that raises where a locked parameter moved, see :func:`rolesafe.patching.lock`.

    It checks at the beginning (of a resumed run too), every `every` steps, before a checkpoint and at the end.
    :class:`RoleTrainer` adds it to a model with a lock.

    Args:
        every: Number of steps between two checks. A check reads the locked parameters once.

    Raises:
        ValueError: `every` is no number >= 1.
    """

    def __init__(self, every: int = 100) -> None:
        if not is_integer(every, 1):
            raise ValueError(f"`every`: expected a number of steps >= 1, got {every!r}")
        self.every = every

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Check the model before the first step. Raises a ValueError where the lock is broken."""
        check_lock(kwargs["model"])

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Check every few steps, and before a checkpoint is saved."""
        if state.global_step % self.every == 0 or control.should_save:
            check_lock(kwargs["model"])

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Check the result."""
        check_lock(kwargs["model"])
