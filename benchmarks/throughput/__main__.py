"""``python -m benchmarks.throughput``, from the repository root."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from benchmarks.throughput import ROOT, warm
from benchmarks.throughput.chart import draw
from benchmarks.throughput.markdown import target_lines
from benchmarks.throughput.record import CannotResume, Record
from benchmarks.throughput.run import SUITES, run
from benchmarks.throughput.session import Session
from rolesafe.files import check_writable
from rolesafe.report.chart import require_matplotlib
from rolesafe.terminal import run_main
from tools.environment import environment
from tools.timing import Clock, CudaTimer

RESULTS = ROOT / "benchmarks" / "results" / "throughput.json"
BUDGET, QUICK_BUDGET = 480.0, 100.0
QUICK_SUITES = ("forward", "backward", "decode")

PLAIN: dict[str, Any] = {"markup": False, "highlight": False, "soft_wrap": True}

NO_GPU = (
    "benchmarks.throughput: expected an NVIDIA GPU of compute capability 8.0 or newer and a PyTorch built for CUDA, "
    "got {found}; on a machine without one run python benchmarks/attention_cpu.py"
)


def no_gpu() -> str | None:
    """Return the reason why this machine cannot run the benchmark; None if it can."""
    if not torch.cuda.is_available():
        built = "" if torch.version.cuda else f"; this PyTorch ({torch.__version__}) is built without CUDA"
        return NO_GPU.format(found=f"no CUDA device{built}")
    capability = torch.cuda.get_device_capability()
    if capability < (8, 0):
        return NO_GPU.format(found=f"{torch.cuda.get_device_name()} with {capability[0]}.{capability[1]}")
    return None


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.throughput",
        description="Measure speed and memory of the fused kernel on an NVIDIA GPU, and of its peers.",
    )
    parser.add_argument("--quick", action="store_true", help="D=128, three lengths, a few decoding shapes, no model")
    parser.add_argument("--only", nargs="+", choices=SUITES, help="parts to measure (default: all; --quick: no model)")
    parser.add_argument("--check-only", action="store_true", help="the correctness gate alone")
    parser.add_argument("--output", type=Path, default=RESULTS, help="JSON file (default: %(default)s)")
    parser.add_argument("--chart", type=Path, metavar="PNG", help="draw a chart as well")
    parser.add_argument(
        "--resume", action="store_true", help="resume from --output, made from the same sources and GPU"
    )
    parser.add_argument("--budget", type=float, metavar="SECONDS", help="stop after that; most important first")
    parser.add_argument(
        "--workers", type=int, help="processes that compile ahead (default: half of the cores; 0: none)"
    )
    parser.add_argument("--commit", help="commit to record instead of the one that is checked out")
    options = parser.parse_args(arguments)
    options.suites = tuple(options.only or (QUICK_SUITES if options.quick else SUITES))
    options.budget = options.budget or (QUICK_BUDGET if options.quick else BUDGET)
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Return the exit status: 0; 1 where something is wrong; 2 where it cannot run."""
    options = parse(arguments)
    reason = no_gpu()
    if reason is not None:
        print(reason, file=sys.stderr)
        return 2
    device = torch.device("cuda", torch.cuda.current_device())
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
    timers = CudaTimer(device), CudaTimer(device, ahead=False)
    session = Session(device, record, clock, *timers, console=console)
    where = record.data["environment"]
    session.say(f"{where['gpu']}, torch {where['torch']}, triton {where['triton']}, commit {where['commit']}")
    workers = warm.count_workers() if options.workers is None else options.workers
    if workers:
        chosen = (options.suites, options.quick, options.check_only)
        session.say(warm.compile_ahead(workers, options.budget * 0.3, *chosen))
    status = run(session, options.suites, options.quick, options.check_only)
    if options.chart and record.data["cells"]:
        draw(record.data, options.chart)
    if not options.check_only:
        console.print("Targets: bf16, D=128, causal, T >= 4096", *target_lines(record.data), sep="\n", **PLAIN)
    console.print(f"written to {options.output}", **PLAIN)
    return status


if __name__ == "__main__":
    run_main(main)
