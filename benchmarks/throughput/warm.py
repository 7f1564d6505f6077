"""Compile in several processes before anything is measured: the compilers' caches on disk then serve the run itself."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial

import torch

from benchmarks.throughput import ROOT, decode, model
from benchmarks.throughput.attempt import attempt
from benchmarks.throughput.cases import CASES, Case
from benchmarks.throughput.gate import Gate, checked, gates
from benchmarks.throughput.grid import DTYPE
from benchmarks.throughput.inputs import make_inputs
from benchmarks.throughput.shapes import Shape

Unit = Callable[[], object]


def units(
    device: torch.device, suites: Sequence[str], squares: Sequence[Shape], decodes: Sequence[Shape], dims: Sequence[int]
) -> list[Unit]:
    """What compiles, each piece on its own, the slowest and most urgent first."""
    found: list[Unit] = []
    trains = "forward" in suites or "backward" in suites
    compiled = [case for case in CASES if case.compiles]
    if trains:
        found += [partial(train, case, shape, device) for shape in squares for case in compiled if case.trains]
    if "model" in suites and squares:
        found.insert(0, partial(one_layer, device))
    if "decode" in suites:
        for shape in decodes:
            some = [case for case in compiled if case.decodes and (case.own or shape.batch == decode.FLEX_BATCH)]
            found += [partial(step, case, shape, device) for case in some]
    for gate in gates(device, dims, trains or "model" in suites, "decode" in suites or "model" in suites):
        found += [partial(check, gate, case) for case in checked(gate, CASES) if case.compiles]
    return found


def train(case: Case, shape: Shape, device: torch.device) -> None:
    """Forward and backward once."""
    x = make_inputs(shape, DTYPE, device, gradients=True)[0]
    torch.autograd.grad(case.build(x).call(), list(x.leaves(case.parts).values()), x.grad)


def step(case: Case, shape: Shape, device: torch.device) -> None:
    """One decoding step."""
    case.build(make_inputs(shape, DTYPE, device, gradients=False)[0]).call()


def check(gate: Gate, case: Case) -> None:
    """What the gate runs."""
    gate.check(case)


def one_layer(device: torch.device) -> None:
    """A training step and two generated tokens of one layer of the models."""
    size = model.Size(layers=1)
    models = model.make_models(size, device)
    tokens, roles = model.batch_of(size, size.length, size.batch, device)
    for name in model.PRESETS:
        optimiser = torch.optim.AdamW(models[name].parameters())
        model.training_step(models[name], optimiser, tokens, role_ids=roles)
        model.generate(models[name], tokens[:1, : size.prompt], 2, role_ids=roles[:1, : size.prompt])


def work(number: int, workers: int, found: Sequence[Unit], device: torch.device) -> None:
    """One worker's share. What fails here fails again in the run, which writes it down."""
    for unit in found[number::workers]:
        attempt(unit, device)


def count_workers() -> int:
    """Half of the cores, 8 at most."""
    return max(1, min(8, len(os.sched_getaffinity(0)) // 2))


def compile_ahead(arguments: Sequence[str], workers: int, seconds: float) -> str:
    """Run `workers` processes with the run's `arguments`, for at most `seconds`; what became of them, in words."""
    start = time.monotonic()
    changed = {"TORCHINDUCTOR_COMPILE_THREADS": "1", "OMP_NUM_THREADS": "1"}
    started = [
        subprocess.Popen(
            [sys.executable, "-m", "benchmarks.throughput", *arguments, "--warm", str(number), str(workers)],
            cwd=ROOT, env={**os.environ, **changed}, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        )
        for number in range(workers)
    ]  # fmt: skip
    late, broken = 0, []
    for process in started:
        try:
            _, said = process.communicate(timeout=max(0.1, seconds - (time.monotonic() - start)))
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            late += 1
            continue
        if process.returncode:
            broken.append((said.strip().splitlines() or ["no message"])[-1])
    parts = [f"compiled ahead in {workers} processes, {time.monotonic() - start:.0f} s"]
    if late:
        parts.append(f"{late} were stopped before they were done")
    return "; ".join([*parts, *(f"one ended with: {line}" for line in broken[:1])])
