"""Decoding: one query, or four of assisted decoding, against the keys of a cache.

What counts is how fast k and v are read: their bytes by time, as a share of the copy bandwidth of the same run.
Every call reads another cache, and together they are larger than L2, so none finds its keys there.

B batch, H query heads, T queries, S keys, D head dim
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch

from benchmarks.throughput.attempt import attempt
from benchmarks.throughput.cases import CASES, PAIRS, Built, Case
from benchmarks.throughput.grid import DTYPE, key
from benchmarks.throughput.inputs import Inputs, make_inputs
from benchmarks.throughput.ratios import quantiles
from benchmarks.throughput.session import Job, Session, cell
from benchmarks.throughput.shapes import Shape, cache_bytes
from benchmarks.throughput.timing import Timer, Times, estimate, interleave

BEYOND_L2 = 256 * 2**20
MOST_CACHES = 32
MODES = ("graph", "eager")
FLEX_BATCH = 8
"""FlexAttention compiles for every shape; it is measured at this batch alone."""


def jobs(shapes: Sequence[Shape]) -> list[Job]:
    """One job a shape, most urgent first."""
    return [
        Job(tuple(key(f"decode {mode}", shape) for mode in MODES), 0.5 + place / 4, partial(measure, shape=shape))
        for place, shape in enumerate(shapes)
    ]


def count_caches(shape: Shape, beyond: int = BEYOND_L2, most: int = MOST_CACHES) -> int:
    """Caches that together are as large as `beyond` bytes."""
    return max(1, min(most, -(-beyond // cache_bytes(shape))))


def measure(session: Session, shape: Shape, cases: Sequence[Case] = CASES, caches: int | None = None) -> None:
    """All cases at one shape: replayed as a CUDA graph, then launched from Python."""
    count = count_caches(shape) if caches is None else caches
    inputs = make_inputs(shape, DTYPE, session.device, gradients=False, caches=count)
    cases = [case for case in cases if case.decodes and session.device.type in case.devices]
    calls: dict[str, Callable[[], Any]] = {}
    refused: dict[str, dict[str, str]] = {}
    notes: dict[str, str] = {}
    for case in cases:
        no = session.refused(case, shape)
        if no is None and case.name.startswith("flex") and shape.batch != FLEX_BATCH:
            no = {"skipped": f"compiles for every shape, measured at B={FLEX_BATCH} alone"}
        if no is None:
            made, reason = attempt(partial(prepare, case, inputs), session.device)
            if made is None:
                no = {"failed" if case.own else "unavailable": reason}
            else:
                calls[case.name] = partial(call_all, made)
                notes[case.name] = made[0].note
        if no is not None:
            refused[case.name] = no
    own = {case.name for case in cases if case.own}
    for mode in MODES if session.device.type == "cuda" else MODES[1:]:
        run_mode(session, mode, shape, calls, dict(refused), notes, own, count)


def prepare(case: Case, inputs: Sequence[Inputs]) -> list[Built]:
    """The case on every cache; all ran once."""
    built = [case.build(x) for x in inputs]
    call_all(built)
    return built


def call_all(built: Sequence[Built]) -> None:
    """One step on every cache."""
    for one in built:
        one.call()


def graphed(call: Callable[[], Any]) -> Callable[[], Any]:
    """`call` as a CUDA graph: what runs without any launch from the CPU."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(2):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph.replay


def run_mode(
    session: Session,
    mode: str,
    shape: Shape,
    calls: dict[str, Callable[[], Any]],
    refused: dict[str, dict[str, str]],
    notes: dict[str, str],
    own: set[str],
    count: int,
) -> None:
    """Time and write down one cell; times are those of one call."""
    timer: Timer = session.timer if mode == "graph" else session.launching
    ready: dict[str, Callable[[], Any]] = {}
    guesses: dict[str, float] = {}
    for name, call in calls.items():
        made, reason = attempt(partial(graphed, call), session.device) if mode == "graph" else (call, "")
        ms = None
        if made is not None:
            ms, reason = attempt(partial(estimate, made, timer), session.device)
        if made is None or ms is None:
            refused[name] = {"failed" if name in own else "unavailable": reason}
            continue
        ready[name], guesses[name] = made, ms
    whole = interleave(ready, guesses, timer, session.plan, session.clock.over)
    times: Times = {name: {turn: ms / count for turn, ms in found.items()} for name, found in whole.items()}
    extra: dict[str, dict[str, Any]] = {name: dict(no) for name, no in refused.items()}
    copy = session.record.data["ceilings"].get("copy_gb_per_s")
    for name, found in times.items():
        speed = cache_bytes(shape) / quantiles(list(found.values()))["p50_ms"] / 1e6
        extra[name] = {"gb_per_s": speed, "of_copy": speed / copy if copy else None}
        if notes[name]:
            extra[name]["note"] = notes[name]
    name = key(f"decode {mode}", shape)
    session.record.add_cell(name, cell(f"decode {mode}", shape, times, extra, PAIRS) | {"caches": count})
    speeds = [f"{case} {extra[case]['gb_per_s']:.0f}" for case in times]
    left = f"; not timed: {', '.join(refused)}" if refused else ""
    session.say(f"{name}: GB/s of k and v {', '.join(speeds)}{left}")
