"""State and methods that the suites share, in the process that measures one cell."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any, TypeVar

import torch

from benchmarks.throughput.attempt import attempt
from benchmarks.throughput.cases import CASES, Case
from benchmarks.throughput.gate import PASSED, worst
from tools.inputs import Shape
from tools.timing import Clock, Plan, Timer, Times, estimate, interleave, quantiles, ratios

T = TypeVar("T")
Absent = dict[str, dict[str, str]]
"""Cases that are not timed: by name, "failed", "unavailable" or "skipped" with the reason."""


@dataclass
class Session:
    """Device, verdicts, clock and timers of one cell.

    Attributes:
        clock: Of the cell. When `PREPARED` of its time is spent no further case is prepared, and when all of it is
            spent the rounds end.
        timer: Times the GPU alone. `launching`: counts launches too.
        gate: Verdicts of the gate.
        ceilings: Of the same run; empty where they are unknown.
        slow: Tokens per row and milliseconds of cases that took long, by suite, case and head dim.
        skipped: Reasons of cases that are not tried.
    """

    device: torch.device
    clock: Clock
    timer: Timer
    launching: Timer
    gate: Sequence[dict[str, Any]] = ()
    ceilings: Mapping[str, Any] = field(default_factory=dict)
    plan: Plan = field(default_factory=Plan)
    cases: Sequence[Case] = CASES
    slow: Mapping[tuple[str, str, int], tuple[int, float]] = field(default_factory=dict)

    skipped: Mapping[str, str] = field(default_factory=dict)

    LONGEST_CALL_MS = 4000.0
    PREPARED = 0.6

    def refused(self, case: Case, shape: Shape) -> dict[str, str] | None:
        """Return the entry of the record for a case that is not timed at a shape; None if it is timed."""
        # first: such a case is not checked
        if skipped := case.skipped(shape) or self.skipped.get(case.name):
            return {"skipped": skipped}
        status, reason = worst(self.gate, case.name, shape.dim, not shape.square)
        if status != PASSED:
            return {status: reason}
        if self.clock.spent() >= self.PREPARED * self.clock.budget:
            return {"skipped": f"{self.clock.spent():.0f} of the {self.clock.budget:.0f} s of this cell were spent"}
        return None

    def too_slow(self, suite: str, case: Case, shape: Shape) -> dict[str, str] | None:
        """Return the entry of a case that was slow at a smaller T; None if it is timed."""
        length, ms = self.slow.get((suite, case.name, shape.dim), (shape.keys, 0.0))
        seconds = ms * shape.keys / length / 1e3
        if 1e3 * seconds <= self.LONGEST_CALL_MS:
            return None
        return {"skipped": f"one call would take about {seconds:.0f} s (it took {ms / 1e3:.1f} s at {length} keys)"}

    def prepare(self, cases: Sequence[Case], shape: Shape, build: Callable[[Case], T]) -> tuple[dict[str, T], Absent]:
        """Build the cases that the gate passed, by name; and the entries of the others."""
        ready: dict[str, T] = {}
        absent: Absent = {}
        for case in cases:
            no = self.refused(case, shape)
            if no is None:
                made, reason = attempt(partial(build, case), self.device)
                if made is None:
                    no = case.absent(reason)
                else:
                    ready[case.name] = made
            if no is not None:
                absent[case.name] = no
        return ready, absent

    def time_cell(
        self,
        suite: str,
        shape: Shape | dict[str, Any],
        calls: Mapping[str, Callable[[], Any]],
        absent: Absent,
        details: Callable[[str, float], dict[str, Any]],
        pairs: Sequence[tuple[str, str]],
        *,
        timer: Timer | None = None,
        rounds: int | None = None,
        count: int = 0,
    ) -> dict[str, Any]:
        """Warm up and time the calls of one cell; return the cell.

        Args:
            details: Fields of a case besides its times, from its name and median milliseconds.
            rounds: Fixed number of rounds; default: by the estimated time.
            count: Caches that one call reads; times are those of one cache. 0: the call reads none.
        """
        timer, absent = timer or self.timer, dict(absent)
        peers = {case.name for case in self.cases if not case.own}
        guesses: dict[str, float] = {}
        once: dict[str, float] = {}  # too slow for rounds
        for name, call in calls.items():
            ms, reason = attempt(partial(warm, call, timer, rounds is None), self.device)
            if ms is None:
                absent[name] = {"unavailable" if name in peers else "failed": reason}
            elif 3 * ms / 1e3 > self.clock.left():
                once[name] = ms
            else:
                guesses[name] = ms
        plan = self.plan if rounds is None else self.plan.fixed(rounds)
        whole = interleave({name: calls[name] for name in guesses}, guesses, timer, plan, self.clock.over)
        whole |= {name: {0: ms} for name, ms in once.items()}
        times: Times = {name: {turn: ms / (count or 1) for turn, ms in found.items()} for name, found in whole.items()}
        extra: dict[str, dict[str, Any]] = dict(absent)
        extra |= {name: details(name, quantiles(list(found.values()))["p50_ms"]) for name, found in times.items()}
        return cell(suite, shape, times, extra, pairs) | ({"caches": count} if count else {})


def warm(call: Callable[[], Any], timer: Timer, guess: bool) -> float:
    """Run a call once; return its estimated milliseconds, or 1 without `guess`."""
    call()
    return estimate(call, timer) if guess else 1.0


def slow_cases(cells: Mapping[str, dict[str, Any]]) -> dict[tuple[str, str, int], tuple[int, float]]:
    """Return the longest measured calls of a record of more than 200 ms: keys and milliseconds; see `Session`."""
    found: dict[tuple[str, str, int], tuple[int, float]] = {}
    for one in cells.values():
        shape = one["shape"]
        for name, case in one["cases"].items() if "dim" in shape else ():
            place = (one["suite"], name, shape["dim"])
            if case.get("p50_ms", 0.0) > 200 and case["p50_ms"] > found.get(place, (0, 0.0))[1]:
                found[place] = (shape["keys"], case["p50_ms"])
    return found


def cell(
    suite: str, shape: Shape | dict[str, Any], times: Times, extra: dict[str, dict[str, Any]],
    pairs: Sequence[tuple[str, str]],
) -> dict[str, Any]:  # fmt: skip
    """Return one cell of the record: times of the cases that ran, further fields, ratios."""
    cases: dict[str, dict[str, Any]] = {
        name: quantiles(list(ms.values())) | {"rounds": len(ms)} for name, ms in times.items() if ms
    }
    for name, more in extra.items():
        cases.setdefault(name, {}).update(more)
    about = asdict(shape) if isinstance(shape, Shape) else shape
    return {"suite": suite, "shape": about, "cases": cases, "ratios": ratios(times, pairs)}
