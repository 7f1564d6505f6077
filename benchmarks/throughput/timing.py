"""Times in milliseconds. Cases take turns, so a change of clocks or heat meets all of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

Timer = Callable[[Sequence[Callable[[], Any]]], list[float]]
"""Runs calls one after the other and returns the milliseconds of each."""
Times = dict[str, dict[int, float]]
"""Milliseconds by case and round."""


class CudaTimer:
    """Times by CUDA events, with the L2 cache overwritten before every call.

    Args:
        device: The GPU.
        ahead: Whether the GPU is kept busy first, so that the CPU gets ahead and no launch is timed. False: every call
            starts on an idle GPU and its launches count.
    """

    FLUSH_BYTES = 256 * 2**20  # several times the L2 of any GPU so far
    BUSY_CYCLES = 5_000_000  # 3 ms

    def __init__(self, device: torch.device, ahead: bool = True) -> None:
        self.device, self.ahead = device, ahead
        self.flush = torch.empty(self.FLUSH_BYTES, dtype=torch.int8, device=device)

    def __call__(self, calls: Sequence[Callable[[], Any]]) -> list[float]:
        torch.cuda.synchronize(self.device)
        if self.ahead:
            torch.cuda._sleep(self.BUSY_CYCLES)
        events = []
        for call in calls:
            self.flush.zero_()
            if not self.ahead:
                torch.cuda.synchronize(self.device)
            start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            call()
            stop.record()
            events.append((start, stop))
        torch.cuda.synchronize(self.device)
        return [start.elapsed_time(stop) for start, stop in events]


def wall_timer(calls: Sequence[Callable[[], Any]]) -> list[float]:
    """Times on a CPU."""
    found = []
    for call in calls:
        start = time.perf_counter()
        call()
        found.append((time.perf_counter() - start) * 1e3)
    return found


class Clock:
    """Seconds since the start, of `budget` seconds."""

    def __init__(self, budget: float, now: Callable[[], float] = time.monotonic) -> None:
        self.budget, self.now = budget, now
        self.start = now()

    def spent(self) -> float:
        return self.now() - self.start

    def over(self) -> bool:
        return self.spent() >= self.budget


@dataclass(frozen=True)
class Plan:
    """How long a case is timed: about `budget_ms`, in `least` to `most` rounds, and in 2 where one takes `slow_ms`."""

    budget_ms: float = 150.0
    least: int = 5
    most: int = 40
    slow_ms: float = 1000.0

    def rounds(self, ms: float) -> int:
        """Rounds of a case that takes `ms`."""
        if ms >= self.slow_ms:
            return 2
        return min(self.most, max(self.least, int(self.budget_ms / max(ms, 1e-3))))

    def fixed(self, rounds: int) -> Plan:
        """The same number of rounds for everything."""
        return replace(self, least=rounds, most=rounds, slow_ms=float("inf"))


def estimate(call: Callable[[], Any], timer: Timer, slow_ms: float = Plan.slow_ms) -> float:
    """Milliseconds of a call that ran before, after one more to warm up where that is cheap."""
    first = timer([call])[0]
    return first if first >= slow_ms else timer([call])[0]


def spread(rounds: int, total: int) -> set[int]:
    """`rounds` of `total` rounds, evenly spread."""
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
    """Time `calls` in rounds; each starts with another case. Slow cases take part in few of them.

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


def peak_mib(call: Callable[[], Any], device: torch.device) -> float | None:
    """MiB that the peak of allocated memory rises by during a call; None where the device does not count."""
    if device.type != "cuda":
        return None
    torch.cuda.synchronize(device)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    call()
    torch.cuda.synchronize(device)
    return (torch.cuda.max_memory_allocated(device) - before) / 2**20
