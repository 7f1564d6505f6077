"""Jobs side by side, each in a process of its own with one thread, and one progress bar for each."""

from __future__ import annotations

import gc
import multiprocessing
import os
import queue
import signal
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

Job = tuple[Any, ...]
"""What tells one job from another: strings and numbers."""


@dataclass(frozen=True)
class Update:
    """What a job tells while it runs.

    Attributes:
        job: Which one.
        stage: "training", "measuring", an attack's label, ..., "done" or "failed".
        fraction: How much of the job is done, 0 to 1.
        run: What has been measured so far.
        error: Where it failed: the traceback.
    """

    job: Job
    stage: str
    fraction: float
    run: Any = None
    error: str | None = None


Tell = Callable[[Update], None]
Work = Callable[[Job, Tell], None]
"""Does a job; its last update has the stage "done". It has to be picklable: a function of a module, or a partial."""


def updates(work: Work, jobs: Sequence[Job], workers: int | None = None) -> Iterator[Update]:
    """What the jobs tell, as they tell it. A job that fails ends with the stage "failed"; the others go on.

    Args:
        work: Does one job.
        jobs: In the order they are started in.
        workers: Processes at a time; default: one per core (one on a GPU), at most one per job.
    """
    count = min(len(jobs), workers or _default_workers())
    context = _context()
    told: Any = context.Queue()
    waiting = list(jobs)
    alive: dict[Job, Any] = {}
    try:
        while waiting or alive:
            while waiting and len(alive) < count:
                job = waiting.pop(0)
                process = context.Process(target=_child, args=(work, job, told), daemon=True)
                process.start()
                alive[job] = process
            try:
                update = told.get(timeout=1.0)
            except queue.Empty:
                for job, process in list(alive.items()):
                    if not process.is_alive() and told.empty():
                        del alive[job]
                        error = f"{job}: its process died with code {process.exitcode}"
                        yield Update(job, "failed", 0.0, error=error)
                continue
            yield update
            if update.stage in ("done", "failed"):
                alive.pop(update.job).join()
    finally:
        for process in alive.values():
            process.terminate()


@contextmanager
def progress_bars(console: Console, jobs: Sequence[Job], todo: Sequence[Job]) -> Iterator[Tell]:
    """One bar for each job; of more than a screenful only those that run. Yields what to call with every update."""
    columns = TextColumn("{task.description:<16}"), BarColumn(), TextColumn("{task.fields[stage]}"), TimeElapsedColumn()
    few = len(jobs) <= 16
    with Progress(*columns, console=console, refresh_per_second=4) as progress:  # it shares the jobs' cores
        bars: dict[Job, TaskID] = {}
        for job in jobs:
            stage = "waiting" if job in todo else "done before"
            name = " ".join(map(str, job))
            bars[job] = progress.add_task(name, total=1.0, stage=stage, start=False, visible=few)
            progress.update(bars[job], completed=0.0 if job in todo else 1.0)

        def tell(update: Update) -> None:
            ended = update.stage in ("done", "failed")
            progress.start_task(bars[update.job])
            progress.update(bars[update.job], completed=update.fraction, stage=update.stage, visible=few or not ended)
            if ended:
                progress.stop_task(bars[update.job])

        yield tell


PRELOADED = ("torch", "transformers.models.llama.modeling_llama", "rolesafe.training.fit", "rolesafe.evaluation.mass")
"""What takes seconds to import and every job imports."""


def _context() -> Any:
    """How processes are started: never forked from this one, whose thread pools they would share, but from a server
    that has imported what they need and done nothing else; where there is no such server, from nothing."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(PRELOADED))
    return context


def _child(work: Work, job: Job, told: Any) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides
    threading.Thread(target=_end_with_parent, daemon=True).start()
    gc.freeze()  # what was imported stays: looking through it for garbage takes a second of a job's time
    try:
        import torch

        torch.set_num_threads(1)
        work(job, told.put)
    except Exception:
        told.put(Update(job, "failed", 0.0, error=traceback.format_exc()))


def _end_with_parent() -> None:
    """A parent that was killed cannot end its children: they would go on, unseen."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _default_workers() -> int:
    import torch

    return 1 if torch.cuda.is_available() else os.cpu_count() or 1
