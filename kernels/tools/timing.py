"""Times in milliseconds, quantiles, and ratios of times that were taken in the same rounds.

``triton.testing.do_bench`` times one call for 100 ms, then the next. The calls compared here take turns instead, round
by round, so a change of clocks or temperature meets all of them, and a ratio is the median over rounds of the ratio
within a round. `tests/benchmarks/test_timing.py` shows the difference: with a clock that drifts by 10% a round, the
interleaved ratio stays exact while quantiles of the same times spread 1.5-fold.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

Timer = Callable[[Sequence[Callable[[], Any]]], list[float]]
"""Runs calls one after the other and returns the milliseconds of each."""
Times = dict[str, dict[int, float]]
"""Milliseconds by name of the call and round."""

RESAMPLES = 2000


class CudaTimer:
    """Time calls by CUDA events, with the L2 cache overwritten before each.

    Args:
        device: The GPU.
        ahead: Keep the GPU busy first, so that the CPU gets ahead and no launch is timed. False: every call starts on
            an idle GPU and its launches count.
    """

    FLUSH_BYTES = 256 * 2**20  # several times the L2 of any GPU so far
    BUSY_CYCLES = 5_000_000  # 3 ms

    def __init__(self, device: torch.device, ahead: bool = True) -> None:
        self.device, self.ahead = device, ahead
        self.flush = torch.empty(self.FLUSH_BYTES, dtype=torch.int8, device=device)

    def __call__(self, calls: Sequence[Callable[[], Any]]) -> list[float]:
        cuda: Any = torch.cuda
        cuda.synchronize(self.device)
        if self.ahead:
            cuda._sleep(self.BUSY_CYCLES)
        events = []
        for call in calls:
            self.flush.zero_()
            if not self.ahead:
                cuda.synchronize(self.device)
            start, stop = (cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            call()
            stop.record()
            events.append((start, stop))
        cuda.synchronize(self.device)
        return [start.elapsed_time(stop) for start, stop in events]


def wall_timer(calls: Sequence[Callable[[], Any]]) -> list[float]:
    """Time calls on a CPU."""
    found = []
    for call in calls:
        start = time.perf_counter()
        call()
        found.append((time.perf_counter() - start) * 1e3)
    return found


class Clock:
    """Seconds since the start, of a `budget`."""

    def __init__(self, budget: float, now: Callable[[], float] = time.monotonic) -> None:
        self.budget, self.now = budget, now
        self.start = now()

    def spent(self) -> float:
        return self.now() - self.start

    def left(self) -> float:
        return self.budget - self.spent()

    def over(self) -> bool:
        return self.spent() >= self.budget


@dataclass(frozen=True)
class Plan:
    """Rounds of a call: about `budget_ms` in all, `least` to `most` rounds, and 2 where one takes `slow_ms`."""

    budget_ms: float = 150.0
    least: int = 5
    most: int = 40
    slow_ms: float = 1000.0

    def rounds(self, ms: float) -> int:
        """Return the rounds of a call that takes `ms`."""
        if ms >= self.slow_ms:
            return 2
        return min(self.most, max(self.least, int(self.budget_ms / max(ms, 1e-3))))

    def fixed(self, rounds: int) -> Plan:
        """Return a plan with the same number of rounds for every call."""
        return replace(self, least=rounds, most=rounds, slow_ms=float("inf"))


def estimate(call: Callable[[], Any], timer: Timer, slow_ms: float = Plan.slow_ms) -> float:
    """Return the milliseconds of a call that ran before, after one more to warm up where that is cheap."""
    first = timer([call])[0]
    return first if first >= slow_ms else timer([call])[0]


def spread(rounds: int, total: int) -> set[int]:
    """Return `rounds` of `total` rounds, evenly spread."""
    if rounds >= total:
        return set(range(total))
    return {round(i * (total - 1) / max(rounds - 1, 1)) for i in range(rounds)}


def interleave(
    calls: Mapping[str, Callable[[], Any]],
    guesses: Mapping[str, float],
    timer: Timer,
    plan: Plan,
    stop: Callable[[], bool] = lambda: False,
) -> Times:
    """Time `calls` in rounds; each round starts with another call, and slow calls take part in few rounds.

    Args:
        guesses: Milliseconds of each call.
        stop: Asked after every round, from the second on.
    """
    wanted = {name: plan.rounds(guesses[name]) for name in calls}
    total = max(wanted.values(), default=0)
    chosen = {name: spread(rounds, total) for name, rounds in wanted.items()}
    times: Times = {name: {} for name in calls}
    for turn in range(total):
        names = [name for name in calls if turn in chosen[name]]
        first = turn % max(len(names), 1)
        names = names[first:] + names[:first]
        for name, ms in zip(names, timer([calls[name] for name in names]), strict=True):
            times[name][turn] = ms
        if turn and stop():
            break
    return times


def time_rounds(calls: Sequence[Callable[[], Any]], rounds: int, timer: Timer) -> list[list[float]]:
    """Return the milliseconds of each call in each of `rounds` interleaved rounds."""
    named = {str(place): call for place, call in enumerate(calls)}
    times = interleave(named, dict.fromkeys(named, 0.0), timer, Plan().fixed(rounds))
    return [list(own.values()) for own in times.values()]


def peak_mib(call: Callable[[], Any], device: torch.device) -> float | None:
    """Return the MiB that the peak of allocated memory rises by during a call; None where the device does not count."""
    if device.type != "cuda":
        return None
    torch.cuda.synchronize(device)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    call()
    torch.cuda.synchronize(device)
    return (torch.cuda.max_memory_allocated(device) - before) / 2**20


def quantiles(ms: Sequence[float]) -> dict[str, float]:
    """Return the 20th, 50th and 80th percentile of times."""
    found = torch.tensor(ms, dtype=torch.float64).quantile(torch.tensor([0.2, 0.5, 0.8], dtype=torch.float64))
    return dict(zip(("p20_ms", "p50_ms", "p80_ms"), found.tolist(), strict=True))


def bootstrap_median(values: Sequence[float], seed: int = 0) -> dict[str, float]:
    """Return the median of `values` and its percentile-bootstrap 95% interval, reproducible by `seed`."""
    x = torch.tensor(values, dtype=torch.float64)
    generator = torch.Generator().manual_seed(seed)
    drawn = x[torch.randint(len(x), (RESAMPLES, len(x)), generator=generator)].quantile(0.5, dim=1)
    low, high = drawn.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return {"median": float(x.quantile(0.5)), "low": low, "high": high, "rounds": len(values)}


def ratio(numerator: Mapping[int, float], denominator: Mapping[int, float]) -> dict[str, float] | None:
    """Return the ratio of two times: median over the rounds that both took part in, with its interval."""
    shared = sorted(set(numerator) & set(denominator))
    return bootstrap_median([numerator[r] / denominator[r] for r in shared]) if shared else None


def ratios(times: Mapping[str, Mapping[int, float]], pairs: Sequence[tuple[str, str]]) -> dict[str, dict[str, float]]:
    """Return `ratio` of every pair that was timed, under ``"a / b"``."""
    found = {f"{a} / {b}": ratio(times[a], times[b]) for a, b in pairs if a in times and b in times}
    return {name: value for name, value in found.items() if value is not None}
