"""Bring a role layer in by degrees while a pretrained model is trained with it."""

from __future__ import annotations

import math
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from rolesafe.mechanisms import set_strength

SHAPES = ("linear", "cosine")


class AnnealRoles(TrainerCallback):
    """A callback of the Trainer that moves the strength of the role layer from `start` to 1.

    Dedicated heads, a reserved share or an integrity mask change what a pretrained model computes at once, and its
    loss jumps. With this the first step trains the model as it was (`start=0`), and the mechanism comes in as the model
    learns to live with it. See :func:`rolesafe.mechanisms.set_strength` for what lies between. After the last of
    `steps` the strength is exactly 1.

    The strength is a function of the Trainer's global step alone: a run that is resumed from a checkpoint goes on where
    it was. Evaluation and checkpoints have the strength of the step that comes next; a checkpoint that is saved before
    the end loads only with `rolesafe.from_pretrained(path, strength=...)`. Under `torch.compile` every change of the
    strength compiles anew.

    It takes steps enough to learn in: as long as a little of the plain attention is left, a model can live on it, so
    with too few steps the loss rises all the same, late, near full strength.

    Args:
        steps: Over how many optimizer steps (int), or over which share of all of them in (0, 1] (float).
        start: Strength of the first step, in [0, 1). At 0 no role parameter gets a gradient in that step, which
            DistributedDataParallel refuses unless it looks for unused parameters: take 0.01 there.
        shape: ``"linear"``, or ``"cosine"``: slow at both ends.

    Raises:
        ValueError: An argument does not fit.
    """

    def __init__(self, steps: int | float, *, start: float = 0.0, shape: str = "linear") -> None:
        is_number = isinstance(steps, (int, float)) and not isinstance(steps, bool)
        if not is_number or not steps > 0 or (isinstance(steps, float) and not steps <= 1.0):
            raise ValueError(
                "`steps`: expected a number of steps >= 1 (int), or a share of all steps in (0, 1] (float), got "
                f"{steps!r}"
            )
        if isinstance(start, bool) or not isinstance(start, (int, float)) or not 0.0 <= start < 1.0:
            raise ValueError(f"`start`: expected a strength in [0, 1), got {start!r}")
        if shape not in SHAPES:
            raise ValueError(f"`shape`: expected one of {SHAPES}, got {shape!r}")
        self.steps = steps
        self.start = float(start)
        self.shape = shape

    def strength(self, step: int, max_steps: int) -> float:
        """Strength with which the step number `step`, counted from 0, of `max_steps` is trained."""
        steps = max(1, round(self.steps * max_steps)) if isinstance(self.steps, float) else self.steps
        if step >= steps:
            return 1.0
        done = step / steps
        if self.shape == "cosine":
            done = (1 - math.cos(math.pi * done)) / 2
        return self.start + (1 - self.start) * done

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kw: Any) -> None:
        """Set the strength of the first step, or of the step at which training is resumed.

        Raises:
            ValueError: The run is over before the strength is 1, or the model is not patched.
        """
        if isinstance(self.steps, int) and self.steps > state.max_steps:
            raise ValueError(
                f"`steps`: expected at most the {state.max_steps} steps of this run, got {self.steps}: it would end "
                "with a role layer that is in force only in part"
            )
        set_strength(kw["model"], self.strength(state.global_step, state.max_steps))

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kw: Any) -> None:
        """Set the strength of the next step."""
        set_strength(kw["model"], self.strength(state.global_step, state.max_steps))
