"""Forward and backward over the grid of lengths and head dims.

B batch, H query heads, T queries, D head dim
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.throughput.attempt import attempt
from benchmarks.throughput.cases import CASES, PAIRS, Built, Case
from benchmarks.throughput.inputs import Inputs, make_inputs
from benchmarks.throughput.ratios import quantiles
from benchmarks.throughput.session import Job, Session, cell
from benchmarks.throughput.shapes import Shape, backward_flops, forward_flops
from benchmarks.throughput.timing import estimate, interleave, peak_mib

WORK = {"forward": forward_flops, "backward": backward_flops}
DTYPE = torch.bfloat16


def key(suite: str, shape: Shape) -> str:
    """Name of a cell."""
    return f"{suite} {shape}"


def jobs(shapes: Sequence[Shape], suites: Sequence[str]) -> list[Job]:
    """One job a shape: backward goes on from the graphs of forward. The shapes come most urgent first."""
    return [
        Job(tuple(key(suite, shape) for suite in suites), place, partial(measure, shape=shape, suites=suites))
        for place, shape in enumerate(shapes)
    ]


def measure(session: Session, shape: Shape, suites: Sequence[str], cases: Sequence[Case] = CASES) -> None:
    """Forward, then backward of all cases at one shape. Both run with gradients on, as in training."""
    x = make_inputs(shape, DTYPE, session.device, gradients=True)[0]
    cases = [case for case in cases if case.trains and session.device.type in case.devices]
    built: dict[str, Built] = {}
    refused: dict[str, dict[str, str]] = {}
    for case in cases:
        no = session.refused(case, shape)
        if no is None:
            made, reason = attempt(partial(prepare, case, x), session.device)
            no = None if made is not None else {"failed" if case.own else "unavailable": reason}
            if made is not None:
                built[case.name] = made
        if no is not None:
            refused[case.name] = no
    if "forward" in suites:
        calls = {name: made.call for name, made in built.items()}
        run_cell(session, "forward", shape, cases, calls, dict(refused), built, x)
    if "backward" in suites:
        backs, without = backwards(session, shape, x, cases, built)
        run_cell(session, "backward", shape, cases, backs, refused | without, built, x)


def prepare(case: Case, x: Inputs) -> Built:
    """A built case that ran once."""
    built = case.build(x)
    built.call()
    return built


def backwards(
    session: Session, shape: Shape, x: Inputs, cases: Sequence[Case], built: dict[str, Built]
) -> tuple[dict[str, Callable[[], Any]], dict[str, dict[str, str]]]:
    """Backward alone of every case, each on a graph that is kept; and why others have none."""
    calls: dict[str, Callable[[], Any]] = {}
    refused: dict[str, dict[str, str]] = {}
    for case in cases:
        if case.name not in built:
            continue
        if session.device.type not in case.gradients:
            refused[case.name] = {"skipped": "forward only"}
        elif no := session.too_slow("backward", case, shape):
            refused[case.name] = no
        else:
            calls[case.name] = partial(grad, built[case.name].call(), list(x.leaves(case.parts).values()), x.grad)
    return calls, refused


def grad(out: Tensor, leaves: list[Tensor], upstream: Tensor) -> tuple[Tensor, ...]:
    """Gradients of `leaves`; the graph stays."""
    return torch.autograd.grad(out, leaves, upstream, retain_graph=True)


def case_peak(case: Case, built: Built, x: Inputs, suite: str, device: torch.device) -> float | None:
    """MiB over the inputs of forward, or of forward and backward. The role layout of the fused kernel counts too."""

    def call() -> None:
        out = case.build(x).call() if case.own else built.call()
        if suite == "backward":
            torch.autograd.grad(out, list(x.leaves(case.parts).values()), x.grad)

    return peak_mib(call, device)


def run_cell(
    session: Session,
    suite: str,
    shape: Shape,
    cases: Sequence[Case],
    calls: dict[str, Callable[[], Any]],
    refused: dict[str, dict[str, str]],
    built: dict[str, Built],
    x: Inputs,
) -> None:
    """Warm up, time and write down one cell."""
    by_name = {case.name: case for case in cases}
    guesses: dict[str, float] = {}
    for name in list(calls):
        first, reason = attempt(calls[name], session.device)
        ms = None
        if not reason:
            del first
            ms, reason = attempt(partial(estimate, calls[name], session.timer), session.device)
        if ms is None:
            del calls[name]
            refused[name] = {"failed" if by_name[name].own else "unavailable": reason}
            continue
        guesses[name] = ms
        session.note_slow(suite, by_name[name], shape, ms)
    times = interleave(calls, guesses, session.timer, session.plan, session.clock.over)
    extra: dict[str, dict[str, Any]] = {name: dict(no) for name, no in refused.items()}
    for name, found in times.items():
        peak, reason = attempt(partial(case_peak, by_name[name], built[name], x, suite, session.device), session.device)
        middle = quantiles(list(found.values()))["p50_ms"]
        extra[name] = {"tflops": WORK[suite](shape) / middle / 1e9, "peak_mib": peak}
        if built[name].note:
            extra[name]["note"] = built[name].note
        if reason:
            extra[name]["peak_unknown"] = reason
    session.record.add_cell(key(suite, shape), cell(suite, shape, times, extra, PAIRS))
    own = [f"{name} {extra[name]['tflops']:.0f}" for name in times]
    left = f"; not timed: {', '.join(refused)}" if refused else ""
    session.say(f"{key(suite, shape)}: TFLOP/s {', '.join(own)}{left}")
