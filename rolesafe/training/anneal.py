"""Anneal the strength of a role layer while a pretrained model is trained with it."""

from __future__ import annotations

import math
from typing import Any, Literal, get_args

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from rolesafe.arguments import is_integer, is_number
from rolesafe.mechanisms import set_strength

Shape = Literal["linear", "cosine"]
SHAPES: tuple[str, ...] = get_args(Shape)


class AnnealRoles(TrainerCallback):
    """Callback of the Trainer that raises the strength of the role layer from `start` to 1.

    Dedicated heads, a reserved share or an integrity mask change the outputs of a pretrained model at once, and its
    loss jumps. With annealing the first step trains the model as it was (`start=0`); after the last of `steps` the
    strength is exactly 1. See :func:`rolesafe.mechanisms.set_strength` for the values between.

    The strength depends on the Trainer's global step alone, so a resumed run continues where it was. Evaluation and
    checkpoints have the strength of the next step; a checkpoint saved before the end loads only with
    `rolesafe.from_pretrained(path, strength=...)`. With `torch.compile` every change of the strength recompiles.

    Choose enough steps: a model can rely on the remaining plain attention as long as there is some, so with too few
    steps the loss still rises, near full strength.

    Args:
        steps: Number of optimizer steps (int), or fraction of all of them in (0, 1] (float).
        start: Strength of the first step, in [0, 1). At 0 no role parameter gets a gradient in that step, which
            DistributedDataParallel accepts only with `find_unused_parameters`: use 0.01 there.
        shape: ``"linear"``, or ``"cosine"``, which is slow at both ends.

    Raises:
        ValueError: An argument is out of range.
    """

    def __init__(self, steps: int | float, *, start: float = 0.0, shape: Shape = "linear") -> None:
        if not is_integer(steps, 1) and not (isinstance(steps, float) and 0.0 < steps <= 1.0):
            raise ValueError(
                "`steps`: expected a number of steps >= 1 (int), or a fraction of all steps in (0, 1] (float), got "
                f"{steps!r}"
            )
        if not is_number(start) or not 0.0 <= start < 1.0:
            raise ValueError(f"`start`: expected a strength in [0, 1), got {start!r}")
        if shape not in SHAPES:
            raise ValueError(f"`shape`: expected one of {SHAPES}, got {shape!r}")
        self.steps = steps
        self.start = float(start)
        self.shape = shape

    def strength(self, step: int, max_steps: int) -> float:
        """Return the strength of step number `step`, counted from 0, of `max_steps`."""
        steps = max(1, round(self.steps * max_steps)) if isinstance(self.steps, float) else self.steps
        if step >= steps:
            return 1.0
        done = step / steps
        if self.shape == "cosine":
            done = (1 - math.cos(math.pi * done)) / 2
        return self.start + (1 - self.start) * done

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kw: Any) -> None:
        """Set the strength of the first step, or of the step to resume at.

        Raises:
            ValueError: The run ends before the strength is 1, or the model is not patched.
        """
        if isinstance(self.steps, int) and self.steps > state.max_steps:
            raise ValueError(
                f"`steps`: expected at most the {state.max_steps} steps of this run, got {self.steps}: it would end "
                "below full strength"
            )
        set_strength(kw["model"], self.strength(state.global_step, state.max_steps))

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kw: Any) -> None:
        """Set the strength of the next step."""
        set_strength(kw["model"], self.strength(state.global_step, state.max_steps))
