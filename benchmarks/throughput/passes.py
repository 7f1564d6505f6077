"""Forward and backward over the grid of lengths and head dims.

B batch, H query heads, T queries, D head dim
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.throughput.attempt import attempt
from benchmarks.throughput.cases import PAIRS, Built, Case
from benchmarks.throughput.session import Session
from benchmarks.throughput.shapes import backward_flops, forward_flops
from tools.inputs import Inputs, Shape, make_inputs
from tools.timing import peak_mib

WORK = {"forward": forward_flops, "backward": backward_flops}
DTYPE = torch.bfloat16


def measure(session: Session, suite: str, shape: Shape) -> dict[str, Any]:
    """Time forward or backward of all cases at one shape. Both run with gradients on, as in training."""
    x = make_inputs(shape, DTYPE, session.device, gradients=True)
    cases = {case.name: case for case in session.cases if case.trains and session.device.type in case.devices}
    tried, skipped = list(cases.values()), {}
    for case in cases.values():
        no = session.too_slow(suite, case, shape)
        if suite == "backward" and session.device.type not in case.gradients:
            no = {"skipped": "forward only"}
        if no is not None:
            tried.remove(case)
            skipped[case.name] = no
    built, absent = session.prepare(tried, shape, lambda case: prepare(case, x))
    calls: dict[str, Callable[[], Any]] = {name: made.call for name, made in built.items()}
    if suite == "backward":
        calls = {
            name: partial(grad, made.call(), list(made.leaves_of(x, cases[name].features).values()), x.grad)
            for name, made in built.items()
        }
    details = partial(describe, session, suite, cases, built, x)
    return session.time_cell(suite, shape, calls, skipped | absent, details, PAIRS)


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
            torch.autograd.grad(out, list(built[name].leaves_of(x, case.features).values()), x.grad)

    peak, reason = None, "one more call would take too long"
    if 3 * ms / 1e3 <= session.clock.left():
        peak, reason = attempt(partial(peak_mib, call, session.device), session.device)
    found: dict[str, Any] = {"tflops": WORK[suite](x.shape) / ms / 1e9, "peak_mib": peak}
    found |= {"note": built[name].note} if built[name].note else {}
    return found | ({"peak_unknown": reason} if reason else {})
