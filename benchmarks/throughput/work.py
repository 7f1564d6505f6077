"""Work of a run in other processes: facts, checks, compilation, one cell. Arguments and results are picklable."""

from __future__ import annotations

import gc
from functools import cache
from typing import Any

import torch

from benchmarks.throughput import ceilings as measured
from benchmarks.throughput import gate as verdicts
from benchmarks.throughput import model, passes, profiler, steps
from benchmarks.throughput.attempt import attempt
from benchmarks.throughput.cases import CASES
from benchmarks.throughput.cells import Cell, Check
from benchmarks.throughput.session import Session
from tools.environment import environment
from tools.inputs import make_inputs
from tools.timing import Clock, CudaTimer

BY_NAME = {case.name: case for case in CASES}


def device() -> torch.device:
    """Return the current GPU."""
    return torch.device("cuda", torch.cuda.current_device())


@cache
def timers() -> tuple[CudaTimer, CudaTimer]:
    """Return the timer of the GPU alone and the one of launches, made once a process."""
    return CudaTimer(device()), CudaTimer(device(), ahead=False)


def find_environment(commit: str) -> dict[str, Any]:
    """Return `tools.environment.environment` of the GPU."""
    return environment(device(), commit)


def check_case(check: Check) -> dict[str, Any]:
    """Return the verdict of the gate on one case."""
    compile_alone()
    return verdicts.check(BY_NAME[check.case], check.shape, device()).as_json()


def compile_case(case: str, cell: Cell) -> str:
    """Run a case once, with gradients where the cell has them: compilers keep the result on disk. Return an error."""
    compile_alone()
    assert cell.shape is not None
    shape, found = cell.shape, BY_NAME[case]

    def once() -> bool:
        x = make_inputs(shape, passes.DTYPE, device(), gradients=shape.square)
        built = found.build(x)
        out = built.call()
        if cell.suite == "backward":
            torch.autograd.grad(out, list(built.leaves_of(x, found.features).values()), x.grad)
        return True

    return attempt(once, device())[1]


def compile_alone() -> None:
    """Compile in this process only: there is one for each core."""
    import torch._inductor.config

    torch._inductor.config.compile_threads = 1


def measure_ceilings() -> dict[str, Any]:
    """Return the ceilings of the GPU. The first call in the process that times: it pays for the slow imports."""
    compile_alone()
    return measured.ceilings(device(), timers()[0])


def measure_cell(
    cell: Cell,
    gate: list[dict[str, Any]],
    ceilings: dict[str, Any],
    slow: dict[Any, Any],
    skipped: dict[str, str],
    seconds: float,
) -> dict[str, Any]:
    """Return one cell of the record, measured in about `seconds`; the other arguments are those of `Session`."""
    clock = Clock(seconds)
    session = Session(device(), clock, *timers(), gate=gate, ceilings=ceilings, slow=slow, skipped=skipped)
    try:
        return measure(session, cell)
    finally:
        gc.collect()
        torch.cuda.empty_cache()


def measure(session: Session, cell: Cell) -> dict[str, Any]:
    """Measure one cell."""
    if cell.shape is None:
        train = cell.suite == "train"
        return (model.measure_training if train else model.measure_generation)(session, model.Size())
    if cell.suite == "profile":
        return profiler.measure(session, cell.shape)
    if cell.suite in passes.WORK:
        return passes.measure(session, cell.suite, cell.shape)
    return steps.measure(session, cell.suite.split()[1], cell.shape)
