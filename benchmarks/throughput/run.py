"""A run: correctness gate, benchmark, tuning with the time that is left; in this order, under one clock."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.throughput import stages, work
from benchmarks.throughput.cells import Cell, all_cells
from benchmarks.throughput.markdown import short_lines
from benchmarks.throughput.record import Record
from benchmarks.throughput.stages import State
from benchmarks.throughput.targets import evaluate
from rolesafe.files import write_whole
from rolesafe.workers import Lost
from tools.gpu import Machine
from tools.timing import Clock

STAGES: dict[str, Callable[[State], None]] = {
    "gate": stages.gate,
    "benchmark": stages.benchmark,
    "tune": stages.tune,
}
MOST_FILES, MOST_BYTES = 8, 16 * 2**20
"""Limits of the folder of the results."""
START_LIMIT = 60.0
"""Seconds in which the GPU has to answer the first question."""
MARGIN = 20.0
"""Seconds of the time kept for the start of Python before the clock and for the end of processes."""
PASSED, WRONG, UNFINISHED = 0, 1, 3
"""Exit statuses: everything asked for is measured; something is wrong; time did not suffice, rerun the command."""


def show(text: str) -> None:
    """Print a line at once: the run may be killed."""
    print(text, flush=True)


def run(
    machine: Machine,
    out: Path,
    seconds: float,
    commit: str,
    cells: Sequence[Cell],
    chosen: Sequence[str] = tuple(STAGES),
    say: Callable[[str], None] = show,
) -> int:
    """Run the `chosen` stages in at most `seconds`, write all results into `out`, and return the exit status.

    A folder with the results of an earlier call of the same sources on the same GPU is continued.

    Raises:
        CannotResume: `out` holds results of other sources, or of another machine.
    """
    clock = Clock(seconds - MARGIN, machine.now)
    for part in out.glob(".*.part"):  # of a call that was killed while it wrote
        part.unlink()
    about = machine.run(work.find_environment, commit, limit=min(START_LIMIT, clock.left()))
    if isinstance(about, Lost):
        say(f"the GPU does not answer: {about.reason}")
        return WRONG
    settings = {
        "cells": [cell.key for cell in cells],
        "not_asked": [cell.key for cell in all_cells() if cell not in cells],
        "budget_s": seconds,
        "stages": list(chosen),
        "causal": True,
    }
    record = Record(out / "throughput.json", about, settings)
    record.resume()

    def tell(text: str) -> None:
        say(f"[{clock.spent():5.0f} s] {text}")

    state = State(machine, out, record, clock, cells, tell)
    state.checks = stages.read_checks(out / "checks.json")
    tell(f"{about['gpu']}, torch {about['torch']}, triton {about['triton']}, commit {about['commit']}")
    record.plan([cell.key for cell in cells], stages.LATE)
    for name, stage in STAGES.items():
        if name not in chosen:
            continue
        begin = clock.spent()
        tell(f"== {name}, {clock.left():.0f} s left")
        stage(state)
        state.seconds[name] = round(clock.spent() - begin, 1)
        finish(state, ended=False)
    status = finish(state, ended=True)
    say("\n".join(short_lines(record.data, [cell.key for cell in cells if cell.in_table])))
    return status


def finish(state: State, ended: bool) -> int:
    """Write the summary, after every stage; print it at the end. Return the exit status so far."""
    record = state.record
    record.data["targets"] = evaluate(record.data)
    record.save()
    wrong = [*all_failures(state), *too_large(state.out)]
    absent = record.data["not_measured"] if "benchmark" in record.data["settings"]["stages"] else {}
    status = WRONG if wrong else UNFINISHED if state.unfinished or absent else PASSED
    found = stages.tuned(state.out)
    summary = {
        "environment": record.data["environment"],
        "ended": ended,
        "status": status,
        "seconds": {**state.seconds, "all": round(state.clock.spent(), 1)},
        "failures": wrong,
        "unfinished": state.unfinished,
        "not_measured": absent,
        "tuned": found,
    }
    write_whole(state.out / "summary.json", json.dumps(summary, indent=1) + "\n")
    if ended:
        for line in wrong:
            state.say(f"WRONG: {line}")
        held = sum(check["ok"] is True for check in state.checks.values())
        measured = len(state.cells) - len([cell for cell in state.cells if not record.has(cell.key)])
        state.say(
            f"{held} of {len(state.checks)} checks passed, {measured} of {len(state.cells)} cells measured, "
            f"{len(found)} launch-table entries tuned; results in {state.out}"
        )
        if status == UNFINISHED:
            state.say("Rerun the command to measure the rest.")
    return status


def all_failures(state: State) -> list[str]:
    """Return what is wrong: checks, verdicts, cases that raised, lost cells, crashes."""
    data = state.record.data
    found = [f"check {one['name']}: {one['detail']}" for one in state.checks.values() if one["ok"] is False]
    verdicts = [v for v in state.record.failures if not v["shape"].startswith("check ")]
    found += [f"gate {v['case']}, {v['dtype']}, {v['shape']}: {v['reason']}" for v in verdicts]
    refused = {v["case"] for v in state.record.failures}
    found += [line for case, line in failed_cases(data) if case not in refused]
    found += [f"{key}: {data['not_measured'].get(key, 'lost')}" for key in data["lost"] if not state.record.has(key)]
    return found + state.failures


def failed_cases(data: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield the cases of the fused kernel, and models, that raised while they were timed, with a line each."""
    for key, cell in data["cells"].items():
        for name, case in cell["cases"].items():
            if "failed" in case:
                yield name, f"{key}, {name}: {case['failed']}"


def too_large(out: Path) -> list[str]:
    """Return a line where the folder exceeds its limits."""
    sizes = [path.stat().st_size for path in out.rglob("*") if path.is_file()]
    if len(sizes) <= MOST_FILES and sum(sizes) <= MOST_BYTES:
        return []
    return [f"{out}: expected {MOST_FILES} files and {MOST_BYTES} bytes at most, got {len(sizes)} and {sum(sizes)}"]
