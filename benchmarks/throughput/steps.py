"""Decoding steps: one query, or four of assisted decoding, against the keys of a cache.

The measure is the bytes of k and v by time, as a share of the copy bandwidth of the same run. Every call reads another
cache, and together they are larger than L2, so none finds its keys there.

B batch, H query heads, T queries, S keys, D head dim
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch

from benchmarks.throughput.attempt import attempt
from benchmarks.throughput.cases import PAIRS, Built, Case
from benchmarks.throughput.passes import DTYPE
from benchmarks.throughput.session import Session
from benchmarks.throughput.shapes import cache_bytes
from tools.inputs import Inputs, Shape, make_inputs

BEYOND_L2 = 256 * 2**20
MOST_CACHES = 32


def count_caches(shape: Shape, beyond: int = BEYOND_L2, most: int = MOST_CACHES) -> int:
    """Return the number of caches that together are as large as `beyond` bytes."""
    return max(1, min(most, -(-beyond // cache_bytes(shape))))


def measure(session: Session, mode: str, shape: Shape, caches: int | None = None) -> dict[str, Any]:
    """Time all cases at one shape: replayed as a CUDA graph ("graph"), or launched from Python ("eager")."""
    count = count_caches(shape) if caches is None else caches
    first = make_inputs(shape, DTYPE, session.device)
    inputs = [first, *(first.new_cache(seed) for seed in range(1, count))]
    cases = [case for case in session.cases if case.decodes and session.device.type in case.devices]
    built, absent = session.prepare(cases, shape, lambda case: prepare(case, inputs))
    copy = session.ceilings.get("copy_gb_per_s")

    def details(name: str, ms: float) -> dict[str, Any]:
        speed = cache_bytes(shape) / ms / 1e6
        found = {"gb_per_s": speed, "of_copy": speed / copy if copy else None}
        return found | ({"note": built[name][0].note} if built[name][0].note else {})

    calls: dict[str, Callable[[], Any]] = {name: partial(call_all, made) for name, made in built.items()}
    for case in cases if mode == "graph" else ():
        if case.name in calls:
            made, reason = attempt(partial(graphed, calls.pop(case.name)), session.device)
            if made is None:
                absent[case.name] = case.absent(reason)
            else:
                calls[case.name] = made
    timer = session.timer if mode == "graph" else session.launching
    return session.time_cell(f"decode {mode}", shape, calls, absent, details, PAIRS, timer=timer, count=count)


def prepare(case: Case, inputs: Sequence[Inputs]) -> list[Built]:
    """Build the case for every cache and run each once."""
    built = [case.build(x) for x in inputs]
    call_all(built)
    return built


def call_all(built: Sequence[Built]) -> None:
    """Run one step on every cache."""
    for one in built:
        one.call()


def graphed(call: Callable[[], Any]) -> Callable[[], Any]:
    """Capture `call` as a CUDA graph, which runs without launches from the CPU."""
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
