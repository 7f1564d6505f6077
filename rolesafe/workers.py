"""Parallel jobs in single-threaded worker processes, with progress bars."""

from __future__ import annotations

import gc
import math
import multiprocessing
import os
import signal
import threading
import time
import traceback
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from rolesafe.files import write_whole
from rolesafe.terminal import first_line, guard_terminal, one_line

Job = tuple[Any, ...]
"""Identity of a job: strings and numbers."""


@dataclass(frozen=True)
class Update:
    """Progress of a job.

    Attributes:
        job: The job.
        stage: "training", "measuring", an attack's label, ..., "done" or "failed".
        fraction: Fraction done, 0 to 1.
        run: Measurements so far.
        error: Reason of a failure, on one line.
        trace: Traceback, if there is one.
    """

    job: Job
    stage: str
    fraction: float
    run: Any = None
    error: str | None = None
    trace: str | None = None


Tell = Callable[[Update], None]
Work = Callable[[Job, Tell], None]
"""Function that does a job; its last update has the stage "done". Must be picklable."""


def updates(
    work: Work,
    jobs: Sequence[Job],
    workers: int | None = None,
    *,
    limit: float = math.inf,
    until: float = math.inf,
    preload: Sequence[str] | None = None,
) -> Generator[Update, None, None]:
    """Run the jobs in parallel and yield their updates. A failed job ends with the stage "failed"; the others continue.

    Args:
        work: Does one job.
        jobs: Jobs in starting order.
        workers: Number of processes; default: one per core (one on a GPU), at most one per job.
        limit: Seconds that one job may take before its process is killed and the job fails.
        until: Time of `time.monotonic` at which all jobs that are not done fail.
        preload: Modules that every job imports; default: those of a training run. Only the first call in a process
            has an effect.

    Yields:
        Updates in order of arrival.
    """
    count = min(len(jobs), workers or _default_workers())
    context = _context(PRELOADED if preload is None else preload)
    waiting = list(jobs)
    # a pipe per job: a process killed while writing would leave a shared queue locked
    alive: dict[Connection, tuple[Job, Any, float]] = {}
    try:
        while waiting or alive:
            if time.monotonic() >= until:
                late, waiting = waiting, []
                yield from (Update(job, "failed", 0.0, error="no time left") for job in late)
            while waiting and len(alive) < count:
                job = waiting.pop(0)
                here, there = context.Pipe(duplex=False)
                process = context.Process(target=_child, args=(work, job, there), daemon=True)
                try:
                    process.start()
                except OSError as error:
                    here.close()
                    yield Update(job, "failed", 0.0, error=f"no process could be started: {first_line(error)}")
                else:
                    alive[here] = job, process, min(time.monotonic() + limit, until)
                finally:
                    there.close()  # otherwise the end of the process would not close the pipe
            end = min((end for *_, end in alive.values()), default=-math.inf)
            for connection in wait(list(alive), None if end == math.inf else max(end - time.monotonic(), 0.0)):
                assert isinstance(connection, Connection)
                job, process, _ = alive[connection]
                try:
                    update = connection.recv()
                except (EOFError, ConnectionError):
                    process.join(_PATIENCE)
                    update = Update(job, "failed", 0.0, error=_why_ended(process.exitcode))
                if update.stage in ("done", "failed"):
                    del alive[connection]
                    _end(process, connection, _PATIENCE)
                yield update
            for connection, (job, process, end) in list(alive.items()):
                if time.monotonic() >= end:
                    del alive[connection]
                    process.kill()
                    _end(process, connection, _PATIENCE)
                    yield Update(job, "failed", 0.0, error="took too long")
    finally:
        for connection, (_, process, _) in alive.items():
            process.terminate()
            _end(process, connection, _PATIENCE)


class Lost(NamedTuple):
    """Reason why a job has no result, on one line."""

    reason: str


def results(
    function: Callable[..., Any],
    jobs: Sequence[Job],
    workers: int | None = None,
    *,
    limit: float = math.inf,
    until: float = math.inf,
    preload: Sequence[str] | None = None,
) -> Iterator[tuple[Job, Any]]:
    """Yield each job with ``function(*job)``, or with :class:`Lost`, as they end; arguments as for :func:`updates`.

    Args:
        function: Picklable, and so are its arguments and results.
    """
    work = partial(_call, function)
    with closing(updates(work, jobs, workers, limit=limit, until=until, preload=preload)) as found:
        for update in found:
            yield update.job, Lost(str(update.error)) if update.stage == "failed" else update.run


def _call(function: Callable[..., Any], job: Job, tell: Tell) -> None:
    tell(Update(job, "done", 1.0, run=function(*job)))


_PATIENCE = 10.0
"""Seconds until a process that should have ended is killed."""


def _end(process: Any, connection: Connection, seconds: float) -> None:
    process.join(seconds)
    if process.is_alive():
        process.kill()
        process.join()
    connection.close()


def _why_ended(code: int | None) -> str:
    if code is not None and code < 0:
        name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
        return f"its process was ended by {name}" + (", as when memory runs out" if name == "SIGKILL" else "")
    return f"its process died with code {code}"


def failures(failed: dict[Job, Update], folder: Path) -> str:
    """Return one line about the failed jobs, and write their tracebacks into `folder`.

    Args:
        failed: Last update of each job.
        folder: Created if there is a traceback to write.

    Raises:
        OSError: A traceback cannot be written.
    """
    lines = []
    for job, update in failed.items():
        name = " ".join(map(str, job))
        line = f"{name}: {update.error}"
        if update.trace is not None:
            path = write_whole(folder / f"{'-'.join(map(str, job))}.txt", update.trace)
            line += f" (traceback in {path})"
        lines.append(line)
    return "; ".join(lines)


@contextmanager
def progress_bars(console: Console, jobs: Sequence[Job], todo: Sequence[Job]) -> Iterator[Tell]:
    """Show a bar per job, of many jobs only running ones; yield the function to call with every update."""
    columns = (
        TextColumn("{task.description:<16}", markup=False),
        BarColumn(),
        TextColumn("{task.fields[stage]}", markup=False),
        TimeElapsedColumn(),
    )
    few = len(jobs) <= 16
    with Progress(*columns, console=console, refresh_per_second=4) as progress:  # shares the jobs' cores
        bars: dict[Job, TaskID] = {}
        for job in jobs:
            stage = "waiting" if job in todo else "done before"
            name = one_line(" ".join(map(str, job)))
            bars[job] = progress.add_task(name, total=1.0, stage=stage, start=False, visible=few)
            progress.update(bars[job], completed=0.0 if job in todo else 1.0)

        def tell(update: Update) -> None:
            ended = update.stage in ("done", "failed")
            progress.start_task(bars[update.job])
            shown = {"completed": update.fraction, "stage": one_line(update.stage), "visible": few or not ended}
            progress.update(bars[update.job], **shown)  # type: ignore[arg-type]
            if ended:
                progress.stop_task(bars[update.job])

        yield tell


PRELOADED = ("torch", "transformers.models.llama.modeling_llama", "rolesafe.training.fit", "rolesafe.evaluation.mass")
"""Slow imports that every job needs."""


def _context(preload: Sequence[str]) -> Any:
    """Return the start method: a fork server with the modules `preload`, or spawn where there is none.

    A fork of this process would share its thread pools.
    """
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(preload))
    return context


def _child(work: Work, job: Job, news: Connection) -> None:
    guard_terminal()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent handles it
    threading.Thread(target=_end_with_parent, daemon=True).start()
    gc.freeze()  # a collection over all imported objects takes a second
    try:
        import torch

        torch.set_num_threads(1)
        work(job, news.send)
    except Exception as error:
        reason = f"{type(error).__name__}: {first_line(error)}"
        news.send(Update(job, "failed", 0.0, error=reason, trace=traceback.format_exc()))


def _end_with_parent() -> None:
    """End this process with its parent: a killed parent cannot end its children."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _default_workers() -> int:
    import torch

    return 1 if torch.cuda.is_available() else os.cpu_count() or 1
