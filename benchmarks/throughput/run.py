"""A run from the first check to the table of targets."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from typing import Any

import torch
from rich.console import Console

from benchmarks.throughput import decode, grid, model, profiler
from benchmarks.throughput.attempt import DeviceLost
from benchmarks.throughput.cases import CASES
from benchmarks.throughput.ceilings import ceilings
from benchmarks.throughput.gate import FAILED, UNAVAILABLE, Gate, as_json, checked, gates
from benchmarks.throughput.session import Job, Session
from benchmarks.throughput.shapes import LENGTHS, QUICK_LENGTHS, Shape, decode_shapes, square_shapes
from benchmarks.throughput.targets import evaluate

SUITES = ("forward", "backward", "decode", "model")
PROFILED = (4096, 16_384)


def dims_of(quick: bool) -> tuple[int, ...]:
    return (128,) if quick else (128, 64)


def squares_of(quick: bool) -> list[Shape]:
    """Grid of forward and backward."""
    return square_shapes(dims_of(quick), QUICK_LENGTHS if quick else LENGTHS)


def gate_dims(suites: Sequence[str], quick: bool) -> tuple[int, ...]:
    """Head dims that the gate looks at: those of the grid, and the model's 64."""
    return (128, 64) if "model" in suites else dims_of(quick)


def plan_jobs(suites: Sequence[str], quick: bool) -> list[Job]:
    """All jobs, the most urgent first."""
    squares = squares_of(quick)
    trained = [suite for suite in ("forward", "backward") if suite in suites]
    jobs = grid.jobs(squares, trained) if trained else []
    if "decode" in suites:
        jobs += decode.jobs(decode_shapes(quick))
    if "model" in suites:
        jobs += model.jobs(model.Size())
    if trained:
        jobs += profiler.jobs([shape for shape in squares if shape.dim == 128 and shape.keys in PROFILED])
    return sorted(jobs, key=lambda job: job.urgency)


def run_gate(session: Session, some: Sequence[Gate]) -> None:
    """Check every case that did not pass before, and say what is wrong."""
    for gate in some:
        dtype = str(gate.dtype).removeprefix("torch.")
        told: dict[str, list[str]] = {}
        for case in checked(gate, CASES):
            if session.record.has_verdict(case.name, dtype, str(gate.shape)):
                continue
            verdict = gate.check(case)
            session.record.add_verdict(as_json(verdict))
            told.setdefault(verdict.status, []).append(verdict.case)
            if verdict.status in (FAILED, UNAVAILABLE):
                session.say(f"{verdict.status.upper()}: {verdict.key}: {verdict.reason}")
        session.say(f"gate {dtype} {gate.shape}: " + ", ".join(f"{len(v)} {k}" for k, v in told.items()))


def run_jobs(session: Session, jobs: Sequence[Job]) -> None:
    """Run what is not in the record yet, until the budget is spent."""
    data = session.record.data
    for place, job in enumerate(jobs):
        if all(session.record.has_cell(key) or has_profile(data, key) for key in job.keys):
            continue
        if session.clock.over():
            data["left_out"] = [key for later in jobs[place:] for key in later.keys if key not in data["cells"]]
            session.say(f"the budget of {session.clock.budget:.0f} s is spent; left out: {', '.join(data['left_out'])}")
            break
        job.run(session)
        gc.collect()
        if session.device.type == "cuda":
            torch.cuda.empty_cache()
    else:
        data["finished"] = True
    session.record.save()


def has_profile(data: dict[str, Any], key: str) -> bool:
    return key in data["profile"]


def run(session: Session, suites: Sequence[str], quick: bool, check_only: bool = False) -> int:
    """Everything, in order. Exit status: 0, or 1 where something is wrong."""
    device, record = session.device, session.record
    record.save()
    status = 0
    try:
        dims = gate_dims(suites, quick)
        square = any(suite in suites for suite in ("forward", "backward", "model"))
        run_gate(session, gates(device, dims, square, "decode" in suites or "model" in suites))
        if not check_only:
            if not record.data["ceilings"]:
                record.data["ceilings"] = ceilings(device, session.timer)
                record.save()
            session.say(
                "ceilings: {matmul_tflops:.0f} TFLOP/s, copy {copy_gb_per_s:.0f} GB/s".format(**record.data["ceilings"])
            )
            run_jobs(session, plan_jobs(suites, quick))
    except DeviceLost as error:
        record.data["messages"].append(f"the GPU was lost: {error}")
        status = 1
    if not check_only:
        record.data["targets"] = evaluate(record.data)
    record.save()
    return status if not tell_failures(session.console, record.data, record.failures) else 1


def tell_failures(console: Console, data: dict[str, Any], failures: Sequence[dict[str, Any]]) -> bool:
    """Say loudly what is wrong; whether anything is."""
    broken = [
        f"{key}, {name}: {case['failed']}"
        for key, cell in data["cells"].items()
        for name, case in cell["cases"].items()
        if "failed" in case and not any(v["case"] == name for v in failures)
    ]
    lines = [f"WRONG: {v['case']}, {v['dtype']}, {v['shape']}: {v['reason']}" for v in failures]
    lines += [f"FAILED: {line}" for line in broken] + data["messages"]
    for line in lines:
        console.print(line, style="bold red", markup=False, highlight=False, soft_wrap=True)
    return bool(lines)
