"""The stages of a run, under one clock: the correctness gate, the benchmark, tuning.

A stage takes what its `State` knows, writes each result as soon as it has it, and returns when its time ends.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.throughput import work
from benchmarks.throughput.cells import EXPECTED, Cell, Check, all_checks, checks_of, compiled_ahead
from benchmarks.throughput.gate import (
    DTYPE,
    FAILED,
    NOT_CHECKED,
    PASSED,
    UNAVAILABLE,
    Verdict,
    of_check,
    shape_of,
    worst,
)
from benchmarks.throughput.record import Record, render
from benchmarks.throughput.session import slow_cases
from rolesafe.files import read_json, write_whole
from rolesafe.workers import Lost
from tools import checks
from tools.calls import Call
from tools.gpu import Machine
from tools.timing import Clock

CHECK_LIMIT = 90.0
"""Seconds of one check or compilation, the start of its process included."""
GATE_SHARE = 0.45
"""Share of the time in which the gate, and compilation, have to end."""
CELL_LIMIT = 60.0
"""Least limit of a cell: its process may have to start, and to compile what nothing compiled before."""
SLACK = 3.0
"""Limit of a cell by the seconds that it is expected to take."""
SOFT = 0.7
"""Share of the limit after which a cell measures no further rounds."""
TUNE_LEAST = 60.0
"""Seconds that tuning needs for a first result."""
LATE = "no time left"


@dataclass
class State:
    """Results, clock and machine that the stages share.

    Attributes:
        out: Folder of the results.
        clock: Of the whole run.
        cells: Cells to measure, in order.
        seconds: Duration of each stage.
        failures: Results that are wrong, and crashes.
        unfinished: Checks that time did not suffice for; cells are in the record.
        checks: Checks of the kernels by name, those of an earlier call included.
        skipped: Reasons of cases that took too long to compile, by key of the cell and case.
    """

    machine: Machine
    out: Path
    record: Record
    clock: Clock
    cells: Sequence[Cell]
    say: Callable[[str], None]
    seconds: dict[str, float] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)
    unfinished: list[str] = field(default_factory=list)
    checks: dict[str, dict[str, Any]] = field(default_factory=dict)
    skipped: dict[str, dict[str, str]] = field(default_factory=dict)

    def left(self) -> list[Cell]:
        """Return the cells to measure: those that were lost in an earlier run come last."""
        lost = self.record.data["lost"]
        waiting = [cell for cell in self.cells if not self.record.has(cell.key) or self.stale(cell)]
        return sorted(waiting, key=lambda cell: cell.key in lost)

    def stale(self, cell: Cell) -> bool:
        """Return True for a measured cell with a case that failed or was not checked, and that the gate passes now."""
        cases = self.record.data["cells"].get(cell.key, {}).get("cases", {})
        failed = [name for name, case in cases.items() if "failed" in case or case.get("unavailable") == NOT_CHECKED]
        if cell.shape is None:
            return bool(failed)
        dim, decode = cell.shape.dim, not cell.shape.square
        return any(worst(self.record.data["gate"], name, dim, decode)[0] == PASSED for name in failed)

    def checked(self, check: Check) -> bool:
        """Return True where the gate has a verdict."""
        return any((v["case"], v["shape"]) == (check.case, str(check.shape)) for v in self.record.data["gate"])


def gate(state: State) -> None:
    """Check the cases of all cells that are left, and run all checks of the kernels; compile for the cells.

    All run in parallel and in this order, so the gate, the longest compilations and the checks share the processes.
    Cases are checked again in a resumed run: that compiles them.
    """
    record = state.record
    names = [name for name in checks.all_checks() if not state.checks.get(name, {}).get("ok")]
    # what failed in an earlier run, or was not reached, is checked whatever is measured
    failed = {(v["case"], v["shape"]) for v in record.failures}
    cells = state.left()
    every = all_checks(state.cells)
    again = [check for check in every if (check.case, str(check.shape)) in failed or not state.checked(check)]
    asked = list(dict.fromkeys([*all_checks(cells), *again]))
    jobs: list[tuple[str, Any, Any]] = [("gate", check, None) for check in asked]
    jobs += [("check", name, None) for name in names]
    jobs += [("compile", case.name, cell) for case, cell in compiled_ahead(cells)]
    until = state.machine.now() + max(min(GATE_SHARE * state.clock.budget, state.clock.left()), 0.0)
    for job, found in state.machine.run_all(one_job, jobs, limit=CHECK_LIMIT, until=until):
        late = isinstance(found, Lost) and state.machine.now() >= until
        kind, what, cell = job
        if kind == "gate":
            add_verdict(state, what, found, late)
        elif kind == "check":
            add_check(state, what, found, late)
        elif reason := found.reason if isinstance(found, Lost) else found:
            state.say(f"compile {what}, {cell.key}: {LATE if late else reason}")
            # the cell tries again and records what comes of it, unless it would be lost with it
            if isinstance(found, Lost) and not late:
                state.skipped.setdefault(cell.key, {})[what] = f"compiled and run once, beforehand: {reason}"
    verdicts = record.data["gate"]
    passed = sum(verdict["status"] == PASSED for verdict in verdicts)
    held = sum(check["ok"] is True for check in state.checks.values())
    state.say(f"gate: {passed} of {len(verdicts)} cases and {held} of {len(state.checks)} checks passed")


def one_job(kind: str, what: Any, cell: Any) -> Any:
    """Run one job of the gate, in a process of its own."""
    if kind == "gate":
        return work.check_case(what)
    return checks.run_check(what) if kind == "check" else work.compile_case(what, cell)


def add_verdict(state: State, check: Check, found: Any, late: bool) -> None:
    """Store the verdict on a case. A lost check of the fused kernel is a failure, unless time ended it."""
    case = work.BY_NAME[check.case]
    if late:
        if not state.checked(check):
            state.unfinished.append(f"gate {check.case}, {check.shape}")
        return
    if isinstance(found, Lost):
        status = FAILED if case.own else UNAVAILABLE
        shape = check.shape
        verdict = Verdict(case.name, DTYPE, str(shape), shape.dim, not shape.square, status, reason=found.reason)
        found = verdict.as_json()
    state.record.add_verdict(found)
    if found["status"] != PASSED:
        state.say(f"gate {check.case}, {check.shape}: {found['status'].upper()}: {found['reason']}")


def read_checks(path: Path) -> dict[str, dict[str, Any]]:
    """Return the checks of an earlier call, by name."""
    if not path.exists():
        return {}
    return {one["name"]: one for one in read_json(path, "checks of the kernels")["checks"]}


def add_check(state: State, name: str, found: Any, late: bool) -> None:
    """Store a check, unless time ended one that failed before. One that failed refuses the cases of its features."""
    if late:
        state.unfinished.append(f"check {name}")
        found = state.checks.get(name, {"name": name, "ok": None, "detail": LATE})
    elif isinstance(found, Lost):
        found = {"name": name, "ok": False, "detail": found.reason}
    state.checks[name] = found
    about = {"environment": state.record.data["environment"], "checks": list(state.checks.values())}
    write_whole(state.out / "checks.json", render(about))
    if found["ok"]:
        state.record.drop_verdicts(shape_of(name))
    elif found["ok"] is False:
        state.say(f"check {name}: WRONG: {found['detail']}")
        for verdict in of_check(found, call_of(checks.all_checks()[name])):
            state.record.add_verdict(verdict.as_json())


def call_of(check: Any) -> Call | None:
    """Return the call of a check by pointers; None for one that reads by descriptors, which no cell does."""
    first = check.args[0]
    return first if isinstance(first, Call) else None


def benchmark(state: State) -> None:
    """Measure the cells that are left, one after the other; a cell that is expected to take too long is left out."""
    record, clock = state.record, state.clock
    cells = state.left()
    record.plan([cell.key for cell in state.cells], LATE)
    if cells and clock.left() > 0:
        found = state.machine.run(work.measure_ceilings, limit=min(CELL_LIMIT, clock.left()))
        if isinstance(found, Lost):
            state.failures.append(f"ceilings: {found.reason}")
        elif not record.data["ceilings"]:
            record.data["ceilings"] = found
            record.save()
    took: dict[str, float] = {}
    for cell in cells:
        expected = took.get(cell.suite, EXPECTED[cell.suite])
        if clock.left() < expected:
            reason = f"needs about {expected:.0f} s, and {max(clock.left(), 0):.0f} s were left"
            record.leave_out(cell.key, reason)
            continue
        own = [check for check in checks_of(cell) if work.BY_NAME[check.case].own]
        if unchecked := [check.case for check in own if not state.checked(check)]:
            record.leave_out(cell.key, f"the gate did not check {', '.join(unchecked)}")
            continue
        begin = state.machine.now()
        if measure(state, cell, min(max(SLACK * expected, CELL_LIMIT), clock.left())):
            took[cell.suite] = state.machine.now() - begin


def measure(state: State, cell: Cell, limit: float) -> bool:
    """Measure one cell for at most `limit` seconds; store it, or the reason why it is not measured and return False."""
    record = state.record
    record.begin(cell.key)
    known = (record.data["gate"], record.data["ceilings"], slow_cases(record.data["cells"]))
    skipped = state.skipped.get(cell.key, {})
    found = state.machine.run(work.measure_cell, cell, *known, skipped, SOFT * limit, limit=limit)
    if not isinstance(found, Lost):
        record.add_cell(cell.key, found, "profile" if cell.suite == "profile" else "cells")
        state.say(f"{cell.key}: {said_of(found)}")
        return True
    if state.clock.left() <= 0:
        record.leave_out(cell.key, f"{LATE}: {found.reason}")
    else:
        record.leave_out(cell.key, found.reason, lost=True)
        state.say(f"{cell.key}: LOST: {found.reason}")
    return False


def said_of(cell: dict[str, Any]) -> str:
    """Return the times of a cell and what is absent from it, for a line of progress."""
    if "cases" not in cell:
        return cell.get("unavailable") or f"{len(cell['kernels'])} kernels"
    timed = [f"{name} {case['p50_ms']:.3g}" for name, case in cell["cases"].items() if "p50_ms" in case]
    absent = [name for name, case in cell["cases"].items() if "p50_ms" not in case]
    return f"ms {', '.join(timed)}" + (f"; not timed: {', '.join(absent)}" if absent else "")


def tune(state: State) -> None:
    """Tune with the time that is left. The table that results is in the folder; the committed one stays as it is.

    A second try continues from the log where the first one died.
    """
    clock = state.clock
    if clock.left() < TUNE_LEAST:
        state.say(f"tuning needs {TUNE_LEAST:.0f} s, and {max(clock.left(), 0):.0f} s are left")
    for _ in range(2):
        left = clock.left()
        if left < TUNE_LEAST:
            return
        arguments = ["-m", "tools.tune", "--tables", str(state.out), "--log", str(state.out / "tuning.jsonl")]
        reason = state.machine.command([*arguments, "--budget", f"{left - 15:.0f}"], left)
        if not reason:
            return
        if clock.left() <= 0:
            state.say(f"tuning ended by the clock: {reason}")
        elif reason != "exit status 1":  # 1: entries without a result
            state.failures.append(f"tuning: {reason}")


def tuned(out: Path) -> list[dict[str, Any]]:
    """Return the results in the log of tuning."""
    path = out / "tuning.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    found = []
    for line in lines:
        try:
            entry = json.loads(line)
        except json.JSONDecodeError:  # cut short
            continue
        found += [entry] if entry.get("kind") == "result" else []
    return found
