"""Processes that do jobs in parallel, such as compilations: one that is killed costs its own job alone."""

from __future__ import annotations

import math
import multiprocessing
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from typing import Any, NamedTuple


class Lost(NamedTuple):
    """Why a job has no result."""

    reason: str


def work(connection: Connection, function: Callable[[Any], Any]) -> None:
    """A process of a `Crew`: results of jobs, until there are no more or the device is out of order."""
    alive = True
    while alive:
        try:
            job = connection.recv()
        except EOFError:  # the parent is gone
            return
        if job is None:
            return
        result: Any
        try:
            result = function(job[0])
        except Exception as error:  # a compiler's crash is a result here
            result = Lost(f"{type(error).__name__}: {' '.join(str(error).split())[:300]}")
            alive = "CUDA error" not in result.reason and "AcceleratorError" not in result.reason
        connection.send((result, alive))


class Crew:
    """Processes that do jobs in parallel; one that dies or hangs costs its own job alone.

    Args:
        function: What is done to a job; it stands in a module, and both it and its jobs can be sent to a process.
    """

    def __init__(self, function: Callable[[Any], Any], size: int) -> None:
        self.function, self.size = function, size
        self.idle: list[tuple[Any, Connection]] = []

    def hire(self) -> tuple[Any, Connection]:
        """A new process."""
        context = multiprocessing.get_context("spawn")
        here, there = context.Pipe()
        process = context.Process(target=work, args=(there, self.function), daemon=True)
        process.start()
        there.close()
        return process, here

    def member(self) -> tuple[Any, Connection]:
        """A process without a job."""
        while self.idle:
            process, connection = self.idle.pop()
            if process.is_alive():
                return process, connection
        return self.hire()

    def run(self, jobs: Sequence[Any], limit: float, until: float = math.inf) -> Iterator[tuple[Any, Any]]:
        """Each job with its result or `Lost`, as they come. `limit`: seconds a job; `until`: end, monotonic()."""
        waiting = deque(jobs)
        busy: dict[Connection, tuple[Any, Any, float]] = {}
        while waiting or busy:
            while waiting and len(busy) < self.size and time.monotonic() < until:
                process, connection = self.member()
                try:
                    connection.send((waiting[0],))
                except ConnectionError:  # killed while it was idle
                    continue
                busy[connection] = (process, waiting.popleft(), min(time.monotonic() + limit, until))
            if time.monotonic() >= until:
                while waiting:
                    yield waiting.popleft(), Lost("no time left")
            ready = wait(list(busy), max(min((end for *_, end in busy.values()), default=0.0) - time.monotonic(), 0.0))
            for connection in [c for c in busy if c in ready]:
                process, job, _ = busy.pop(connection)
                try:
                    result, alive = connection.recv()
                except (EOFError, ConnectionError):
                    process.join()
                    result, alive = Lost(f"its process died with exit code {process.exitcode}"), False
                if alive:
                    self.idle.append((process, connection))
                yield job, result
            for connection, (process, job, end) in list(busy.items()):
                if time.monotonic() >= end:
                    process.kill()
                    del busy[connection]
                    yield job, Lost("took too long")

    def close(self) -> None:
        """End its processes."""
        for process, connection in self.idle:
            with suppress(ConnectionError):  # killed while it was idle
                connection.send(None)
            process.join()
        self.idle = []
