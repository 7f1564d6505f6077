"""Progress bar for the `progress` argument of attacks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from rolesafe.attacks.replies import Progress as Update
from rolesafe.terminal import one_line


@contextmanager
def progress_bar(description: str = "attack", console: Console | None = None) -> Iterator[Update]:
    """Draw a bar of the finished examples: ``with progress_bar("gcg") as update: attack(..., progress=update)``.

    Args:
        description: Text in front of the bar.
        console: Console to draw on; default: standard error.
    """
    columns = TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    with Progress(*columns, TimeRemainingColumn(), console=console or Console(stderr=True)) as progress:
        task = progress.add_task(one_line(description), total=None)

        def update(done: int, total: int) -> None:
            progress.update(task, completed=done, total=total)

        yield update
