"""Compilation in several processes before anything is measured: the compilers' caches on disk then serve the run."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from functools import partial

import torch

from benchmarks.throughput import model
from benchmarks.throughput.attempt import attempt
from benchmarks.throughput.cases import CASES, Case
from benchmarks.throughput.gate import checked
from benchmarks.throughput.passes import DTYPE
from benchmarks.throughput.run import gates_of, squares_of
from benchmarks.throughput.shapes import decode_shapes
from rolesafe.workers import Lost, results
from tools import PRELOAD
from tools.inputs import Shape, make_inputs

Unit = Callable[[], object]


def units(device: torch.device, suites: Sequence[str], quick: bool, check_only: bool) -> list[Unit]:
    """Return the pieces that compile, the slowest and most urgent first."""
    found: list[Unit] = []
    cases = [case for case in CASES if case.compiles]
    squares, decodes = ([], []) if check_only else (squares_of(quick), decode_shapes(quick))
    if "forward" in suites or "backward" in suites:
        found += [partial(train, case, shape, device) for shape in squares for case in cases if case.trains]
    if "model" in suites and squares:
        found.insert(0, partial(one_layer, device))
    if "decode" in suites:
        decoded = [(case, shape) for shape in decodes for case in cases if case.decodes and not case.skipped(shape)]
        found += [partial(step, case, shape, device) for case, shape in decoded]
    for gate in gates_of(device, suites, quick):
        found += [partial(gate.check, case) for case in checked(gate, cases)]
    return found


def train(case: Case, shape: Shape, device: torch.device) -> None:
    """Run forward and backward once."""
    x = make_inputs(shape, DTYPE, device, gradients=True)
    torch.autograd.grad(case.build(x).call(), list(x.leaves(case.features).values()), x.grad)


def step(case: Case, shape: Shape, device: torch.device) -> None:
    """Run one decoding step."""
    case.build(make_inputs(shape, DTYPE, device)).call()


def one_layer(device: torch.device) -> None:
    """Run a training step of one layer of the models and generate two tokens."""
    size = model.Size(layers=1)
    models = model.make_models(size, device)
    tokens, roles = model.batch_of(size, size.length, size.batch, device)
    for name in model.PRESETS:
        optimiser = torch.optim.AdamW(models[name].parameters())
        model.training_step(models[name], optimiser, tokens, role_ids=roles)
        model.generate(models[name], tokens[:1, : size.prompt], 2, role_ids=roles[:1, : size.prompt])


def work(number: int, workers: int, suites: Sequence[str], quick: bool, check_only: bool) -> None:
    """Compile one worker's share. A failure here repeats in the run, which records it."""
    import torch._inductor.config

    torch._inductor.config.compile_threads = 1
    device = torch.device("cuda", torch.cuda.current_device())
    for unit in units(device, suites, quick, check_only)[number::workers]:
        attempt(unit, device)


def count_workers() -> int:
    """Return half of the cores, 8 at most."""
    return max(1, min(8, len(os.sched_getaffinity(0)) // 2))


def compile_ahead(workers: int, seconds: float, suites: Sequence[str], quick: bool, check_only: bool) -> str:
    """Compile in `workers` processes, for at most `seconds`; return a line of progress."""
    start = time.monotonic()
    jobs = [(number, workers, tuple(suites), quick, check_only) for number in range(workers)]
    done = results(work, jobs, workers, until=start + seconds, preload=PRELOAD)
    lost = [found.reason for _, found in done if isinstance(found, Lost)]
    said = f"compiled ahead in {workers} processes, {time.monotonic() - start:.0f} s"
    return f"{said}; {len(lost)} ended early: {lost[0]}" if lost else said
