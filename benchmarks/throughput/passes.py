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
from benchmarks.throughput.cases import PAIRS, Built, Case
from benchmarks.throughput.session import Absent, Session
from benchmarks.throughput.shapes import backward_flops, forward_flops
from tools.inputs import Inputs, Shape, make_inputs
from tools.timing import peak_mib

WORK = {"forward": forward_flops, "backward": backward_flops}
DTYPE = torch.bfloat16


def key(suite: str, shape: Shape) -> str:
    """Return the name of a cell."""
    return f"{suite} {shape}"


def measure(session: Session, shape: Shape, suites: Sequence[str]) -> None:
    """Time forward, then backward of all cases at one shape. Both run with gradients on, as in training."""
    x = make_inputs(shape, DTYPE, session.device, gradients=True)
    cases = {case.name: case for case in session.cases if case.trains and session.device.type in case.devices}
    built, absent = session.prepare(list(cases.values()), shape, lambda case: prepare(case, x))

    def run(suite: str, calls: dict[str, Callable[[], Any]], absent: Absent) -> None:
        details = partial(describe, session, suite, cases, built, x)
        guesses = session.time_cell(key(suite, shape), suite, shape, calls, absent, details, PAIRS, "tflops")
        for name, ms in guesses.items():
            session.note_slow(suite, cases[name], shape, ms)

    if "forward" in suites:
        run("forward", {name: made.call for name, made in built.items()}, absent)
    if "backward" not in suites:
        return
    backs: dict[str, Callable[[], Any]] = {}
    for name, made in built.items():
        if session.device.type not in cases[name].gradients:
            absent[name] = {"skipped": "forward only"}
        elif no := session.too_slow("backward", cases[name], shape):
            absent[name] = no
        else:
            backs[name] = partial(grad, made.call(), list(x.leaves(cases[name].features).values()), x.grad)
    run("backward", backs, absent)


def prepare(case: Case, x: Inputs) -> Built:
    """Build a case and run it once."""
    built = case.build(x)
    built.call()
    return built


def grad(out: Tensor, leaves: list[Tensor], upstream: Tensor) -> tuple[Tensor, ...]:
    """Return the gradients of `leaves` and keep the graph."""
    return torch.autograd.grad(out, leaves, upstream, retain_graph=True)


def describe(
    session: Session, suite: str, cases: dict[str, Case], built: dict[str, Built], x: Inputs, name: str, ms: float
) -> dict[str, Any]:
    """Return TFLOP/s, and the peak MiB over the inputs: of forward, or of forward and backward.

    The role layout of the fused kernel counts too.
    """
    case = cases[name]

    def call() -> None:
        out = case.build(x).call() if case.own else built[name].call()
        if suite == "backward":
            torch.autograd.grad(out, list(x.leaves(case.features).values()), x.grad)

    peak, reason = attempt(partial(peak_mib, call, session.device), session.device)
    found: dict[str, Any] = {"tflops": WORK[suite](x.shape) / ms / 1e9, "peak_mib": peak}
    found |= {"note": built[name].note} if built[name].note else {}
    return found | ({"peak_unknown": reason} if reason else {})
