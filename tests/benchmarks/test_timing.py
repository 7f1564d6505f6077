"""Rounds, quantiles and ratios, with scripted timers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest

from benchmarks.throughput.attempt import attempt, shorten
from tests.benchmarks.test_inputs import CPU
from tools.timing import (
    Clock,
    Plan,
    bootstrap_median,
    estimate,
    interleave,
    peak_mib,
    quantiles,
    ratio,
    ratios,
    spread,
    time_rounds,
    wall_timer,
)


class FakeTimer:
    """Gives every call the milliseconds it returns, times a factor that drifts from round to round."""

    def __init__(self, drift: float = 0.0) -> None:
        self.drift, self.rounds = drift, 0
        self.seen: list[list[str]] = []

    def __call__(self, calls: Sequence[Callable[[], Any]]) -> list[float]:
        self.rounds += 1
        return [call() * (1 + self.drift * self.rounds) for call in calls]


def test_interleave_slow_calls_take_few_turns() -> None:
    timer = FakeTimer()
    calls = {"fast": lambda: 1.0, "middle": lambda: 20.0, "slow": lambda: 2000.0}
    guesses = {"fast": 1.0, "middle": 20.0, "slow": 2000.0}
    times = interleave(calls, guesses, timer, Plan(budget_ms=150, least=5, most=40))
    assert {name: len(found) for name, found in times.items()} == {"fast": 40, "middle": 7, "slow": 2}
    assert set(times["slow"]) == {0, 39}
    assert timer.rounds == 40


def test_interleave_rotates_the_first_call() -> None:
    order: list[str] = []

    def call(name: str) -> Callable[[], float]:
        return lambda: order.append(name) or 1.0  # type: ignore[func-returns-value]

    names = ("a", "b", "c")
    interleave({n: call(n) for n in names}, dict.fromkeys(names, 50.0), FakeTimer(), Plan(least=3, most=3))
    assert order == ["a", "b", "c", "b", "c", "a", "c", "a", "b"]


def test_interleave_stops_after_two_rounds() -> None:
    times = interleave({"a": lambda: 1.0}, {"a": 1.0}, FakeTimer(), Plan(), stop=lambda: True)
    assert len(times["a"]) == 2


def test_ratio_is_free_of_drift() -> None:
    times = interleave(
        {"a": lambda: 3.0, "b": lambda: 2.0}, {"a": 3.0, "b": 2.0}, FakeTimer(drift=0.1), Plan(least=20, most=20)
    )
    assert quantiles(list(times["a"].values()))["p80_ms"] > 1.5 * quantiles(list(times["a"].values()))["p20_ms"]
    found = ratio(times["a"], times["b"])
    assert found is not None
    assert [found[name] for name in ("median", "low", "high")] == pytest.approx([1.5] * 3)


def test_time_rounds_of_calls() -> None:
    assert time_rounds([lambda: 1.0, lambda: 3.0], 4, FakeTimer()) == [[1.0] * 4, [3.0] * 4]


def test_ratio_takes_shared_rounds() -> None:
    found = ratio({0: 2.0, 1: 100.0, 2: 4.0}, {0: 1.0, 2: 2.0})
    assert found is not None
    assert (found["median"], found["rounds"]) == (2.0, 2)
    assert ratio({0: 1.0}, {1: 1.0}) is None
    assert set(ratios({"a": {0: 1.0}, "b": {0: 2.0}}, [("a", "b"), ("a", "absent")])) == {"a / b"}


def test_bootstrap_median_repeats() -> None:
    values = [1.0, 1.1, 1.2, 1.3, 5.0]
    found = bootstrap_median(values)
    assert found["low"] <= found["median"] == 1.2 <= found["high"]
    assert found == bootstrap_median(values)
    assert found["low"] >= 1.0
    assert found["high"] <= 5.0


def test_quantiles_of_known_numbers() -> None:
    assert quantiles([0.0, 1.0, 2.0, 3.0, 4.0, 5.0]) == {"p20_ms": 1.0, "p50_ms": 2.5, "p80_ms": 4.0}


@pytest.mark.parametrize(("rounds", "total"), [(2, 40), (7, 40), (40, 40), (50, 40), (1, 5)])
def test_spread_is_even(rounds: int, total: int) -> None:
    chosen = spread(rounds, total)
    assert len(chosen) == min(rounds, total)
    assert chosen <= set(range(total))


def test_estimate_warms_up_fast_calls() -> None:
    timer = FakeTimer()
    assert estimate(lambda: 5.0, timer) == 5.0
    assert timer.rounds == 2
    assert estimate(lambda: 5000.0, timer) == 5000.0
    assert timer.rounds == 3


def test_clock_counts_from_its_start() -> None:
    seconds = iter([10.0, 14.0, 15.0])
    clock = Clock(5.0, now=lambda: next(seconds))
    assert not clock.over()
    assert clock.over()


def test_attempt_error_gives_reason() -> None:
    def call() -> None:
        raise RuntimeError("No available\n kernel.")

    assert attempt(call, CPU) == (None, "RuntimeError: No available kernel.")
    assert attempt(lambda: 3, CPU) == (3, "")
    assert len(shorten("x" * 1000, 100)) == 100


def test_attempt_raises_unknown_errors() -> None:
    def call() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        attempt(call, CPU)


def test_wall_timer_and_peak_on_cpu() -> None:
    assert all(ms >= 0 for ms in wall_timer([lambda: 1, lambda: 2]))
    assert peak_mib(lambda: None, CPU) is None
