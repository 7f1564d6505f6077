"""A machine with a clock and a GPU of its own: every call takes scripted seconds, and may fail, hang or be killed."""

from __future__ import annotations

import heapq
import json
import math
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.throughput import stages, work
from benchmarks.throughput.cells import Cell, Check, cases_of
from benchmarks.throughput.gate import PASSED, Verdict
from benchmarks.throughput.model import PAIRS as MODEL_PAIRS
from benchmarks.throughput.model import PRESETS, UNPATCHED, Size, refusals
from benchmarks.throughput.session import Session, cell
from rolesafe.workers import Lost
from tests.benchmarks.records import ENVIRONMENT, timed
from tests.benchmarks.test_inputs import CPU
from tools.timing import Clock

HANG = math.inf


class Killed(BaseException):
    """The process was killed: nothing of it runs any more. What was on disk lies in the folder `killed`."""


class FakeMachine:
    """A `Machine`.

    Args:
        seconds: Seconds of a call by its label; `HANG` for one that does not end.
        workers: Processes that check and compile.
        kill: Label of the call in the middle of which the run is killed.
        out: Folder of the results, of which `seen` keeps the names of the files before every call.

    Attributes:
        wrong: Labels of checks, and of cases in a check, with a wrong result.
        broken: Reasons by label of calls that end with an error.
        tuning: Seconds after which tuning ends, if its budget does not end it: `HANG` for a hang.
        calls: Time of the clock at the begin and the end, and label, of every call in order of their begin.
    """

    def __init__(
        self,
        out: Path,
        seconds: Callable[[str], float] = lambda label: 5.0,
        workers: int = 14,
        kill: str = "",
    ) -> None:
        self.out, self.seconds, self.workers, self.kill = out, seconds, workers, kill
        self.time = 1000.0
        self.wrong: set[str] = set()
        self.broken: dict[str, str] = {}
        self.calls: list[tuple[float, float, str]] = []
        self.seen: dict[str, dict[str, bytes]] = {}
        self.tuning = 1e6

    def now(self) -> float:
        return self.time

    def labels(self, start: str = "") -> list[str]:
        """Return the labels of the calls that begin with `start`, in order."""
        return [label for _, _, label in self.calls if label.startswith(start)]

    def run(self, work_: Callable[..., Any], *arguments: Any, limit: float) -> Any:
        assert limit > 0
        label = f"{work_.__name__} {arguments[0].key if arguments and isinstance(arguments[0], Cell) else ''}".strip()
        self.look(label)
        begin, took = self.time, self.seconds(label)
        self.calls.append((begin, begin + min(took, limit), label))
        if label == self.kill:
            shutil.copytree(self.out, self.out.parent / "killed")
            raise Killed
        self.time += min(took, limit)
        if took > limit:
            return Lost(f"took more than {limit:.0f} s")
        return Lost(self.broken[label]) if label in self.broken else self.answer(work_, arguments)

    def answer(self, work_: Callable[..., Any], arguments: Sequence[Any]) -> Any:
        if work_ is work.find_environment:
            return {**ENVIRONMENT, "commit": arguments[0]}
        if work_ is work.measure_ceilings:
            return {"matmul_tflops": 790.0, "matmul_side": 8192, "copy_gb_per_s": 4000.0, "copied_bytes": 1}
        assert work_ is work.measure_cell
        return measured(*arguments)

    def run_all(
        self, work_: Callable[..., Any], jobs: Sequence[tuple[Any, ...]], *, limit: float, until: float
    ) -> Iterator[tuple[tuple[Any, ...], Any]]:
        assert work_ is stages.one_job
        waiting, running = list(enumerate(jobs)), []
        while waiting or running:
            while waiting and len(running) < self.workers and self.time < until:
                place, job = waiting.pop(0)
                label = label_of(job)
                self.look(label)
                end = self.time + min(self.seconds(label), limit)
                self.calls.append((self.time, min(end, until), label))
                heapq.heappush(
                    running, (min(end, until), place, job, self.seconds(label) > min(limit, until - self.time))
                )
            if not running:
                yield from ((job, Lost("no time left")) for _, job in waiting)
                return
            self.time, _, job, lost = heapq.heappop(running)
            label = label_of(job)
            if label == self.kill:
                shutil.copytree(self.out, self.out.parent / "killed")
                raise Killed
            if lost:
                yield job, Lost("took too long")
            elif label in self.broken:
                yield job, Lost(self.broken[label])
            else:
                yield job, self.checked(job, label)

    def checked(self, job: tuple[Any, ...], label: str) -> Any:
        kind, what, _ = job
        if kind == "compile":
            return ""
        detail = "out max 7, allowed 1" if label in self.wrong else ""
        if kind == "check":
            return {"name": what, "ok": not detail, "seconds": 1.0, "detail": detail}
        return verdict_of(what, detail).as_json()

    def command(self, arguments: Sequence[str], limit: float) -> str:
        """Tune an entry in every 50 s, as `tools.tune` does: its log and its table grow entry by entry."""
        options = dict(zip(arguments[2::2], arguments[3::2], strict=True))
        assert arguments[1] == "tools.tune"
        assert float(options["--budget"]) < limit
        self.look("tune")
        begin, end = self.time, self.time + min(float(options["--budget"]), self.tuning)
        self.calls.append((begin, min(end, begin + limit), "tune"))
        log = Path(options["--log"])
        done = len(log.read_text().splitlines()) if log.exists() else 0
        while self.time + 50 <= end and done < 8:
            self.time += 50
            done += 1
            with log.open("a") as file:
                file.write(json.dumps({"kind": "result", "bits": 16, "width": 128, "kernel": f"{done}"}) + "\n")
            (Path(options["--tables"]) / "sm_90.json").write_text("{}")
        if self.kill == "tune":
            shutil.copytree(self.out, self.out.parent / "killed")
            raise Killed
        if done == 8:
            return ""
        self.time = begin + limit if self.tuning == HANG else end
        return f"took more than {limit:.0f} s" if self.tuning == HANG else self.broken.get("tune", "exit status 1")

    def look(self, label: str) -> None:
        """Keep what is on disk when a call begins."""
        self.seen[label] = {path.name: path.read_bytes() for path in self.out.rglob("*") if path.is_file()}


def label_of(job: tuple[Any, ...]) -> str:
    kind, what, cell_ = job
    if kind == "gate":
        return f"gate {what.case} {what.shape}"
    return f"{kind} {what}" if kind == "check" else f"compile {what} {cell_.key}"


def verdict_of(check: Check, detail: str) -> Verdict:
    shape = check.shape
    status = "failed" if detail else PASSED
    return Verdict(check.case, "bfloat16", str(shape), shape.dim, not shape.square, status, reason=detail)


def measured(
    one: Cell, gate: list[dict[str, Any]], ceilings: dict[str, Any], slow: Any, skipped: Any, seconds: float
) -> dict[str, Any]:
    """Return a cell with made-up times of the cases that the real gate of a session lets through."""
    session = Session(CPU, Clock(1e9), None, None, gate=gate, ceilings=ceilings, slow=slow, skipped=skipped)
    if one.suite == "profile":
        return {"kernels": []}
    if one.shape is None:
        size = Size()
        absent = refusals(session, size, (False,))
        times = {name: {0: 100.0, 1: 101.0} for name in (UNPATCHED, *PRESETS) if name not in absent}
        extra = {**{name: {"tokens_per_s": 1.0, "peak_mib": 1.0} for name in times}, **absent}
        return cell(one.suite, {"batch": size.batch, "length": size.length}, times, extra, MODEL_PAIRS)
    refused = {case.name: no for case in cases_of(one) if (no := session.refused(case, one.shape)) is not None}
    return timed(one.suite, one.shape, refused)
