"""``python -m benchmarks.throughput``, from the repository root."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from rich.console import Console

from benchmarks.throughput import ROOT, warm
from benchmarks.throughput.chart import draw
from benchmarks.throughput.environment import environment, why_no_gpu
from benchmarks.throughput.record import CannotResume, Record
from benchmarks.throughput.run import SUITES, gate_dims, run, squares_of
from benchmarks.throughput.session import Session
from benchmarks.throughput.shapes import decode_shapes
from benchmarks.throughput.table import show_targets
from benchmarks.throughput.timing import Clock, CudaTimer
from rolesafe.files import check_writable
from rolesafe.report.chart import require_matplotlib
from rolesafe.terminal import run_main

RESULTS = ROOT / "benchmarks" / "results" / "throughput.json"
BUDGET, QUICK_BUDGET = 480.0, 100.0
QUICK_SUITES = ("forward", "backward", "decode")


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.throughput",
        description="Speed and memory of the fused kernel on an NVIDIA GPU, beside PyTorch's and FlexAttention.",
    )
    parser.add_argument("--quick", action="store_true", help="D=128, three lengths, a few decoding shapes, no model")
    parser.add_argument("--only", nargs="+", choices=SUITES, help="parts to measure (default: all; --quick: no model)")
    parser.add_argument("--check-only", action="store_true", help="the correctness gate alone")
    parser.add_argument("--output", type=Path, default=RESULTS, help="JSON file (default: %(default)s)")
    parser.add_argument("--chart", type=Path, metavar="PNG", help="draw a chart as well")
    parser.add_argument("--resume", action="store_true", help="go on from --output, made from this state on this GPU")
    parser.add_argument("--budget", type=float, metavar="SECONDS", help="stop after that; most important first")
    parser.add_argument(
        "--workers", type=int, help="processes that compile ahead (default: half of the cores; 0: none)"
    )
    parser.add_argument("--commit", help="what to write down instead of the commit that is checked out")
    parser.add_argument("--warm", type=int, nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    options.suites = tuple(options.only or (QUICK_SUITES if options.quick else SUITES))
    options.budget = options.budget or (QUICK_BUDGET if options.quick else BUDGET)
    return options


def warm_up(options: argparse.Namespace, device: torch.device) -> None:
    """What one of the compiling processes does."""
    squares, decodes = ([], []) if options.check_only else (squares_of(options.quick), decode_shapes(options.quick))
    dims = gate_dims(options.suites, options.quick)
    number, workers = options.warm
    warm.work(number, workers, warm.units(device, options.suites, squares, decodes, dims), device)


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0; 1 where something is wrong; 2 where it cannot run."""
    options = parse(arguments)
    reason = why_no_gpu()
    if reason is not None:
        print(reason, file=sys.stderr)
        return 2
    device = torch.device("cuda", torch.cuda.current_device())
    if options.warm:
        warm_up(options, device)
        return 0
    check_writable(options.output, "--output")
    if options.chart:
        check_writable(options.chart, "--chart")
        require_matplotlib()
    clock, console = Clock(options.budget), Console()
    settings = {"suites": options.suites, "quick": options.quick, "budget_s": options.budget, "causal": True}
    record = Record(options.output, environment(device, options.commit), settings)
    if options.resume:
        try:
            record.resume()
        except CannotResume as error:
            print(error, file=sys.stderr)
            return 2
    workers = warm.count_workers() if options.workers is None else options.workers
    session = Session(device, record, clock, CudaTimer(device), CudaTimer(device, ahead=False), console=console)
    where = record.data["environment"]
    session.say(f"{where['gpu']}, torch {where['torch']}, triton {where['triton']}, commit {where['commit']}")
    if workers:
        passed = ["--only", *options.suites, *["--quick"] * options.quick, *["--check-only"] * options.check_only]
        session.say(warm.compile_ahead(passed, workers, options.budget * 0.3))
    status = run(session, options.suites, options.quick, options.check_only)
    if options.chart and record.data["cells"]:
        draw(record.data, options.chart)
    if not options.check_only:
        show_targets(record.data, console)
    console.print(f"written to {options.output}", markup=False, highlight=False, soft_wrap=True)
    return status


if __name__ == "__main__":
    run_main(main)
