"""Profile of forward and backward: kernels by name and their work.

B batch, H query heads, T queries, D head dim
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from benchmarks.throughput.attempt import attempt
from benchmarks.throughput.cases import CASES
from benchmarks.throughput.passes import DTYPE
from benchmarks.throughput.session import Session
from benchmarks.throughput.shapes import forward_flops
from tools.inputs import Inputs, Shape, make_inputs

REPEATS = 5
CASE = next(case for case in CASES if case.name == "bias")
PRODUCTS = {"role_attn_fwd_kernel": 2, "role_attn_bwd_dq_kernel": 3, "role_attn_bwd_dkdv_kernel": 4}
"""Products of B H T S D operations in each kernel. Two passes backward make seven; the usual formula counts five."""


def measure(session: Session, shape: Shape) -> dict[str, Any]:
    """Profile the bias case, forward and backward, at one shape."""
    no = session.refused(CASE, shape)
    if no is not None:
        return {"unavailable": str(no)}
    x = make_inputs(shape, DTYPE, session.device, gradients=True)
    kernels, reason = attempt(partial(profile, x, shape), session.device)
    return {"unavailable": reason} if kernels is None else {"kernels": kernels}


def profile(x: Inputs, shape: Shape) -> list[dict[str, Any]]:
    """Return the kernels of one forward and backward, the longest first; TFLOP/s where the work is known."""
    call, leaves = CASE.build(x).call, list(x.leaves(CASE.features).values())

    def step() -> None:
        torch.autograd.grad(call(), leaves, x.grad)

    step()
    torch.cuda.synchronize()
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as seen:
        for _ in range(REPEATS):
            step()
        torch.cuda.synchronize()
    return summarise(seen.key_averages(), shape)


def summarise(events: Any, shape: Shape, repeats: int = REPEATS) -> list[dict[str, Any]]:
    """Return the averages of a profile as rows."""
    rows = []
    for event in events:
        if "CUDA" not in str(event.device_type):
            continue
        ms = event.self_device_time_total / 1e3 / repeats
        if ms <= 0:
            continue
        row: dict[str, Any] = {"name": event.key, "ms": ms, "calls": event.count / repeats}
        products = next((count for name, count in PRODUCTS.items() if name in event.key), None)
        if products:
            row["tflops"] = products / 2 * forward_flops(shape) / ms / 1e9
        rows.append(row)
    return sorted(rows, key=lambda row: -float(row["ms"]))
