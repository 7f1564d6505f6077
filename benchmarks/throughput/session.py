"""State and methods that the suites of a run share."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any, TypeVar

import torch
from rich.console import Console

from benchmarks.throughput.attempt import attempt
from benchmarks.throughput.cases import CASES, Case
from benchmarks.throughput.gate import PASSED, worst
from benchmarks.throughput.record import Record
from tools.inputs import Shape
from tools.timing import Clock, Plan, Timer, Times, estimate, interleave, quantiles, ratios

T = TypeVar("T")
Absent = dict[str, dict[str, str]]
"""Cases that are not timed: by name, "failed", "unavailable" or "skipped" with the reason."""


@dataclass
class Session:
    """Device, record, clock and timers.

    Attributes:
        timer: Times the GPU alone. `launching`: counts launches too.
        slow: Tokens per row and milliseconds of cases that took long, by kind of measurement, case and head dim.
    """

    device: torch.device
    record: Record
    clock: Clock
    timer: Timer
    launching: Timer
    plan: Plan = field(default_factory=Plan)
    console: Console = field(default_factory=Console)
    cases: Sequence[Case] = CASES
    slow: dict[tuple[str, ...], tuple[int, float]] = field(default_factory=dict)

    LONGEST_CALL_MS = 4000.0

    def say(self, text: str) -> None:
        """Print one line of progress, with the time."""
        self.console.print(f"[{self.clock.spent():5.0f} s] {text}", markup=False, highlight=False, soft_wrap=True)

    def refused(self, case: Case, shape: Shape) -> dict[str, str] | None:
        """Return the entry of the record for a case that is not timed at a shape; None if it is timed."""
        status, reason = worst(self.record.data["gate"], case.name, shape.dim, not shape.square)
        if status != PASSED:
            return {status: reason}
        skipped = case.skipped(shape)
        return {"skipped": skipped} if skipped else None

    def too_slow(self, kind: str, case: Case, shape: Shape) -> dict[str, str] | None:
        """Return the entry of a case that was slow at a smaller T; None if it is timed."""
        length, ms = self.slow.get((kind, case.name, str(shape.dim)), (shape.keys, 0.0))
        seconds = ms * shape.keys / length / 1e3
        if 1e3 * seconds <= self.LONGEST_CALL_MS:
            return None
        return {"skipped": f"one call would take about {seconds:.0f} s (it took {ms / 1e3:.1f} s at {length} keys)"}

    def note_slow(self, kind: str, case: Case, shape: Shape, ms: float) -> None:
        if ms > 200:
            self.slow[kind, case.name, str(shape.dim)] = (shape.keys, ms)

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
        key: str,
        suite: str,
        shape: Shape | dict[str, Any],
        calls: Mapping[str, Callable[[], Any]],
        absent: Absent,
        details: Callable[[str, float], dict[str, Any]],
        pairs: Sequence[tuple[str, str]],
        unit: str,
        *,
        timer: Timer | None = None,
        rounds: int | None = None,
        count: int = 0,
    ) -> dict[str, float]:
        """Warm up, time and record one cell; return the estimated milliseconds of each call.

        Args:
            details: Fields of a case besides its times, from its name and median milliseconds; holds `unit`.
            unit: Field that the line of progress shows.
            rounds: Fixed number of rounds; default: by the estimated time.
            count: Caches that one call reads; times are those of one cache. 0: the call reads none.
        """
        timer, absent = timer or self.timer, dict(absent)
        peers = {case.name for case in self.cases if not case.own}
        guesses: dict[str, float] = {}
        for name, call in calls.items():
            ms, reason = attempt(partial(warm, call, timer, rounds is None), self.device)
            if ms is None:
                absent[name] = {"unavailable" if name in peers else "failed": reason}
            else:
                guesses[name] = ms
        plan = self.plan if rounds is None else self.plan.fixed(rounds)
        whole = interleave({name: calls[name] for name in guesses}, guesses, timer, plan, self.clock.over)
        times: Times = {name: {turn: ms / (count or 1) for turn, ms in found.items()} for name, found in whole.items()}
        extra: dict[str, dict[str, Any]] = dict(absent)
        extra |= {name: details(name, quantiles(list(found.values()))["p50_ms"]) for name, found in times.items()}
        self.record.add_cell(key, cell(suite, shape, times, extra, pairs) | ({"caches": count} if count else {}))
        said = ", ".join(f"{name} {extra[name][unit]:.0f}" for name in times)
        self.say(f"{key}: {unit} {said}" + (f"; not timed: {', '.join(absent)}" if absent else ""))
        return guesses


def warm(call: Callable[[], Any], timer: Timer, guess: bool) -> float:
    """Run a call once; return its estimated milliseconds, or 1 without `guess`."""
    call()
    return estimate(call, timer) if guess else 1.0


@dataclass(frozen=True)
class Job:
    """A piece of a run: `keys` of the cells it writes, and its place in the order (0 first)."""

    keys: tuple[str, ...]
    urgency: float
    run: Callable[[Session], None]


def cell(
    suite: str, shape: Shape | dict[str, Any], times: Times, extra: dict[str, dict[str, Any]],
    pairs: Sequence[tuple[str, str]],
) -> dict[str, Any]:  # fmt: skip
    """Return one cell of the record: times of the cases that ran, further fields, ratios."""
    cases = {name: quantiles(list(ms.values())) | {"rounds": len(ms)} for name, ms in times.items() if ms}
    for name, more in extra.items():
        cases.setdefault(name, {}).update(more)
    about = asdict(shape) if isinstance(shape, Shape) else shape
    return {"suite": suite, "shape": about, "cases": cases, "ratios": ratios(times, pairs)}
