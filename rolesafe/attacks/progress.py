"""A progress bar for attacks: what to pass as their `progress`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from rolesafe.attacks.replies import Progress as Tell
from rolesafe.terminal import one_line


@contextmanager
def progress_bar(description: str = "attack", console: Console | None = None) -> Iterator[Tell]:
    """``with progress_bar("gcg") as tell: attack(..., progress=tell)``: a bar of the examples that are done.

    Args:
        description: In front of the bar.
        console: Where it is drawn; default: standard error.
    """
    columns = TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    with Progress(*columns, TimeRemainingColumn(), console=console or Console(stderr=True)) as progress:
        task = progress.add_task(one_line(description), total=None)

        def tell(done: int, total: int) -> None:
            progress.update(task, completed=done, total=total)

        yield tell
