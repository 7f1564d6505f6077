"""Progress of a training: a bar with loss, tokens per second and time left; a clean stop on Ctrl-C."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from transformers import TrainerCallback

MARKER = "complete"
"""File name that marks a complete checkpoint."""


class TrainingProgress(TrainerCallback):
    """Progress bar on a terminal; elsewhere a line for each logged loss.

    Args:
        console: Console of the output.
        trainer: Callable that returns the trainer, the source of the token count.
        tell: Callback for the finished share of the steps.
    """

    def __init__(self, console: Console, trainer: Any, tell: Callable[[float], None] | None = None) -> None:
        self.console = console
        self.tell = tell
        self.trainer = trainer
        self.loss = "-"
        self._bar: Progress | None = None
        self._started = 0.0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._started = time.perf_counter()
        self._first = state.global_step
        if self.console.is_terminal:
            self._bar = Progress(
                TextColumn("training"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("loss {task.fields[loss]}, {task.fields[rate]} tokens/s"),
                TimeElapsedColumn(),
                TextColumn("left"),
                TimeRemainingColumn(),
                console=self.console,
                refresh_per_second=2,
            )
            self._bar.start()
            self._task = self._bar.add_task("", total=state.max_steps, completed=state.global_step, loss="-", rate="-")

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.tell is not None:
            self.tell(state.global_step / state.max_steps)
        if self._bar is not None:
            self._bar.update(self._task, completed=state.global_step, loss=self.loss, rate=f"{self.rate:,.0f}")

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if "loss" not in (logs or {}):
            return
        self.loss = f"{logs['loss']:.3f}"
        done = state.global_step - self._first
        if self._bar is None and done:
            seconds = (time.perf_counter() - self._started) / done * (state.max_steps - state.global_step)
            self.console.print(
                f"step {state.global_step}/{state.max_steps}  loss {self.loss}  {self.rate:,.0f} tokens/s  "
                f"{timedelta(seconds=round(seconds))} left",
                highlight=False,
            )

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.stop()

    def stop(self) -> None:
        """Remove the bar and restore the terminal, also after an error."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    @property
    def rate(self) -> float:
        """Number of tokens per second since the training started or resumed."""
        return float(self.trainer().tokens_seen / max(1e-9, time.perf_counter() - self._started))


class MarkCheckpoints(TrainerCallback):
    """Mark complete checkpoints, so that an incomplete one is never resumed."""

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        (Path(args.output_dir) / f"checkpoint-{state.global_step}" / MARKER).touch()


class StopOnInterrupt(TrainerCallback):
    """Save and stop at the end of the step in which Ctrl-C was pressed."""

    def __init__(self) -> None:
        self.pressed = False

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.pressed:
            control.should_save = True
            control.should_training_stop = True

    @contextmanager
    def listening(self, console: Console) -> Iterator[None]:
        """Catch Ctrl-C; a second one ends the program at once. No effect outside of the main thread."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def note(number: int, frame: Any) -> None:
            if self.pressed:
                raise KeyboardInterrupt
            self.pressed = True
            console.print("Stopping after this step, with a checkpoint. Press Ctrl-C again to stop now.")

        before = signal.signal(signal.SIGINT, note)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)


@contextmanager
def counting(console: Console, text: str) -> Iterator[Any]:
    """Show a bar labelled `text` and yield a callback for the number done and the total."""
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=console,
        transient=not console.is_terminal,
        disable=not console.is_terminal,
    ) as bar:
        task = bar.add_task(text, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
