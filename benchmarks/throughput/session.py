"""What the suites of a run share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from rich.console import Console

from benchmarks.throughput.cases import Case
from benchmarks.throughput.gate import PASSED, verdict_of
from benchmarks.throughput.ratios import quantiles, ratios
from benchmarks.throughput.record import Record
from benchmarks.throughput.shapes import Shape
from benchmarks.throughput.timing import Clock, Plan, Timer, Times


@dataclass
class Session:
    """Device, record, clock and timers.

    Attributes:
        timer: Times the GPU alone. `launching`: counts launches too.
        slow: Tokens per row and milliseconds of cases that took long, by case and kind of measurement.
    """

    device: torch.device
    record: Record
    clock: Clock
    timer: Timer
    launching: Timer
    plan: Plan = field(default_factory=Plan)
    console: Console = field(default_factory=Console)
    slow: dict[tuple[str, ...], tuple[int, float]] = field(default_factory=dict)

    LONGEST_CALL_MS = 4000.0

    def say(self, text: str) -> None:
        """One line of progress, with the time."""
        self.console.print(f"[{self.clock.spent():5.0f} s] {text}", markup=False, highlight=False, soft_wrap=True)

    def refused(self, case: Case, shape: Shape) -> dict[str, str] | None:
        """Why a case is not timed at a shape, as it is written down; None if it is."""
        status, reason = verdict_of(self.record.data["gate"], case.name, shape.dim, not shape.square)
        if status != PASSED:
            return {status: reason}
        large = case.too_large(shape)
        return {"skipped": large} if large else None

    def too_slow(self, kind: str, case: Case, shape: Shape) -> dict[str, str] | None:
        """A case whose time grows with T and was long at a smaller T is left out."""
        length, ms = self.slow.get((kind, case.name, str(shape.dim)), (shape.keys, 0.0))
        expected = ms * shape.keys / length
        if expected <= self.LONGEST_CALL_MS:
            return None
        return {
            "skipped": f"one call would take about {expected / 1e3:.0f} s (it took {ms / 1e3:.1f} s at {length} keys)"
        }

    def note_slow(self, kind: str, case: Case, shape: Shape, ms: float) -> None:
        if ms > 200:
            self.slow[kind, case.name, str(shape.dim)] = (shape.keys, ms)


@dataclass(frozen=True)
class Job:
    """A piece of a run: `keys` of the cells it writes, and how urgent it is (0 first)."""

    keys: tuple[str, ...]
    urgency: float
    run: Callable[[Session], None]


def cell(
    suite: str, shape: Shape | dict[str, Any], times: Times, extra: dict[str, dict[str, Any]],
    pairs: tuple[tuple[str, str], ...],
) -> dict[str, Any]:  # fmt: skip
    """One cell as it is written down: times of the cases that ran, what is known beside them, ratios."""
    cases = {name: quantiles(list(ms.values())) | {"rounds": len(ms)} for name, ms in times.items() if ms}
    for name, more in extra.items():
        cases.setdefault(name, {}).update(more)
    about = asdict(shape) if isinstance(shape, Shape) else shape
    return {"suite": suite, "shape": about, "cases": cases, "ratios": ratios(times, pairs)}
