"""Work on a GPU in other processes, each call under a limit: a crash or a hang ends that call, not the run.

`Machine` is all that a run needs from its machine: a clock, one warm process for what is timed, many processes for
what is compiled and checked, and commands. `Processes` is the machine at hand; the tests have a substitute with a clock
and a GPU of its own (``tests/benchmarks/machine.py``).
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures import TimeoutError as Late  # Python 3.10 has two errors of this name
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from typing import Any, Protocol

from rolesafe.terminal import first_line, guard_terminal
from rolesafe.workers import Job, Lost, results
from tools import PRELOAD, ROOT

Work = Callable[..., Any]
"""Function of a module: picklable, and so are its arguments and its result."""

START = 120.0
"""Seconds that a process may take to start."""


class Machine(Protocol):
    """A machine with a GPU."""

    def now(self) -> float:
        """Return seconds of a clock that only advances."""

    def run(self, work: Work, *arguments: Any, limit: float) -> Any:
        """Return ``work(*arguments)``, run alone on the GPU, or `Lost` with the reason, in `limit` seconds at most."""

    def run_all(self, work: Work, jobs: Sequence[Job], *, limit: float, until: float) -> Iterator[tuple[Job, Any]]:
        """Run ``work(*job)`` in parallel, begun in the order of `jobs`; yield each job as it ends, with its result.

        `Lost` instead of a result: it failed, took longer than `limit` seconds, or was not done at the time `until`.
        """

    def command(self, arguments: Sequence[str], limit: float) -> str:
        """Run Python with `arguments` in the repository; return the reason of a failure, empty where there is none."""


class Processes:
    """The machine at hand.

    Args:
        workers: Processes that compile and check.
        preload: Modules that all processes need.
    """

    def __init__(self, workers: int, preload: Sequence[str] = PRELOAD) -> None:
        self.workers, self.preload = workers, preload
        self._pool: ProcessPoolExecutor | None = None
        self._pid = 0

    def now(self) -> float:
        """Return the time of `time.monotonic`."""
        return time.monotonic()

    def run(self, work: Work, *arguments: Any, limit: float) -> Any:
        """Run `work` in a process that is kept for the next call; a lost call ends it."""
        end = self.now() + limit
        try:
            pool = self._pool or self._start(min(limit, START))
            future = pool.submit(work, *arguments)
            return future.result(max(end - self.now(), 0.0))
        except BrokenProcessPool:
            reason = "its process died"
        except (Late, TimeoutError) as error:
            reason = f"took more than {limit:.0f} s" if self.now() >= end else f"TimeoutError: {first_line(error)}"
        except Exception as error:  # whatever it was: the reason is recorded, and the process is not used again
            reason = f"{type(error).__name__}: {first_line(error)}"
        self.close()
        return Lost(reason)

    def _start(self, limit: float) -> ProcessPoolExecutor:
        self._pool = ProcessPoolExecutor(1, mp_context=_context(self.preload), initializer=_guard)
        self._pid = self._pool.submit(os.getpid).result(limit)
        return self._pool

    def run_all(self, work: Work, jobs: Sequence[Job], *, limit: float, until: float) -> Iterator[tuple[Job, Any]]:
        """Run every job in a process of its own, `workers` at a time."""
        return results(work, jobs, self.workers, limit=limit, until=until, preload=self.preload)

    def command(self, arguments: Sequence[str], limit: float) -> str:
        """Run Python in a process group of its own, which is killed after `limit` seconds."""
        path = os.pathsep.join([str(ROOT), str(ROOT / "kernels"), *filter(None, [os.environ.get("PYTHONPATH")])])
        setting = {**os.environ, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1"}
        process = subprocess.Popen([sys.executable, *arguments], cwd=ROOT, env=setting, start_new_session=True)
        try:
            status = process.wait(max(limit, 0.0))
        except subprocess.TimeoutExpired:
            return f"took more than {limit:.0f} s"
        finally:
            with suppress(ProcessLookupError):  # also what the process left running
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        return f"exit status {status}" if status else ""

    def close(self) -> None:
        """Kill the warm process, which may hang in the driver."""
        pool, self._pool = self._pool, None
        if pool is None:
            return
        if self._pid:
            with suppress(ProcessLookupError):
                os.kill(self._pid, signal.SIGKILL)
        self._pid = 0
        pool.shutdown(wait=False, cancel_futures=True)


def _context(preload: Sequence[str]) -> Any:
    """Return a fork server, as for `results`: a fork of this process would share its CUDA context."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(preload))
    return context


def _guard() -> None:
    """Prepare the warm process: Ctrl-C is the parent's, and a killed parent takes it along."""
    guard_terminal()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
