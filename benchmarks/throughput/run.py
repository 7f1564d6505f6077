"""A run from the first check to the targets."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from rich.console import Console

from benchmarks.throughput import model, passes, profiler, steps
from benchmarks.throughput.attempt import DeviceLost
from benchmarks.throughput.ceilings import ceilings
from benchmarks.throughput.gate import FAILED, UNAVAILABLE, Gate, checked, gates
from benchmarks.throughput.session import Job, Session
from benchmarks.throughput.shapes import LENGTHS, QUICK_LENGTHS, decode_shapes, square_shapes
from benchmarks.throughput.targets import evaluate
from tools.inputs import Shape

SUITES = ("forward", "backward", "decode", "model")
PROFILED = (4096, 16_384)


def dims_of(quick: bool) -> tuple[int, ...]:
    return (128,) if quick else (128, 64)


def squares_of(quick: bool) -> list[Shape]:
    """Return the grid of forward and backward."""
    return square_shapes(dims_of(quick), QUICK_LENGTHS if quick else LENGTHS)


def gates_of(device: torch.device, suites: Sequence[str], quick: bool) -> list[Gate]:
    """Return the gates of a run: head dims of the grid, and the model's 64."""
    dims = (128, 64) if "model" in suites else dims_of(quick)
    square = any(suite in suites for suite in ("forward", "backward", "model"))
    return gates(device, dims, square, "decode" in suites or "model" in suites)


def plan_jobs(suites: Sequence[str], quick: bool) -> list[Job]:
    """Return all jobs, most urgent first. Training is a target; generation takes long and comes late."""
    squares, size = squares_of(quick), model.Size()
    trained = [suite for suite in ("forward", "backward") if suite in suites]
    jobs: list[Job] = []
    for place, shape in enumerate(squares if trained else ()):
        keys = tuple(passes.key(suite, shape) for suite in trained)
        jobs.append(Job(keys, place, partial(passes.measure, shape=shape, suites=trained)))
    for place, shape in enumerate(decode_shapes(quick) if "decode" in suites else ()):
        keys = tuple(passes.key(f"decode {mode}", shape) for mode in steps.MODES)
        jobs.append(Job(keys, 0.5 + place / 4, partial(steps.measure, shape=shape)))
    if "model" in suites:
        jobs.append(Job(("train",), 1.2, partial(model.measure_training, size=size)))
        jobs.append(Job(("generate",), 2.6, partial(model.measure_generation, size=size)))
    profiled = [shape for shape in squares if trained and shape.dim == 128 and shape.keys in PROFILED]
    for place, shape in enumerate(profiled):
        jobs.append(Job((f"profile {shape}",), 2.2 + place / 10, partial(profiler.measure, shape=shape)))
    return sorted(jobs, key=lambda job: job.urgency)


def run_gate(session: Session, some: Sequence[Gate]) -> None:
    """Check every case that did not pass before, and print the failures."""
    for gate in some:
        found: dict[str, list[str]] = {}
        for case in checked(gate, session.cases):
            if session.record.has_verdict(case.name, gate.dtype, str(gate.shape)):
                continue
            verdict = gate.check(case)
            session.record.add_verdict(verdict.as_json())
            found.setdefault(verdict.status, []).append(verdict.case)
            if verdict.status in (FAILED, UNAVAILABLE):
                session.say(f"{verdict.status.upper()}: {verdict.key}: {verdict.reason}")
        session.say(f"gate {gate.dtype} {gate.shape}: " + ", ".join(f"{len(v)} {k}" for k, v in found.items()))


def run_jobs(session: Session, jobs: Sequence[Job]) -> None:
    """Run the jobs that are not in the record yet, until the budget is spent."""
    data = session.record.data
    for place, job in enumerate(jobs):
        if all(key in data["cells"] or key in data["profile"] for key in job.keys):
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


def run(session: Session, suites: Sequence[str], quick: bool, check_only: bool = False) -> int:
    """Run everything in order. Exit status: 0, or 1 where something is wrong."""
    device, record = session.device, session.record
    record.save()
    status = 0
    try:
        run_gate(session, gates_of(device, suites, quick))
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
    return 1 if show_failures(session.console, record.data, record.failures) else status


def show_failures(console: Console, data: dict[str, Any], failures: Sequence[dict[str, Any]]) -> bool:
    """Print every failure in red; return True where there is one."""
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
