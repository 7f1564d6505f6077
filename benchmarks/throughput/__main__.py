"""``python -m benchmarks.throughput``, from the repository root: the run on a GPU."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from rolesafe_kernels.launch import INTERPRET

from benchmarks.throughput import ROOT
from benchmarks.throughput.cells import SUITES, all_cells
from benchmarks.throughput.chart import draw
from benchmarks.throughput.record import load
from benchmarks.throughput.run import STAGES, run
from rolesafe.files import check_writable, locked
from rolesafe.report.chart import require_matplotlib
from rolesafe.terminal import run_main
from tools import PRELOAD as TOOLS
from tools.environment import find_commit
from tools.gpu import Machine, Processes

LEAST_MINUTES = 2.0
PRELOAD = (*TOOLS, "benchmarks.throughput.stages")
"""Modules that every process of the run imports; none of them touches the GPU, which a fork would lose."""
NO_GPU = (
    "benchmarks.throughput: expected an NVIDIA GPU of compute capability 8.0 or newer and a PyTorch built for CUDA, "
    "got {found}; on a machine without one run python benchmarks/attention_cpu.py"
)


def no_gpu() -> str | None:
    """Return the reason why this machine cannot run the benchmark; None if it can."""
    if INTERPRET:
        return NO_GPU.format(found="TRITON_INTERPRET, which replaces the kernels. Unset it")
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
        description="Check the fused kernel on an NVIDIA GPU, measure it and its peers, and tune it with the time that "
        "is left. Exit status: 0; 1 where something is wrong; 2 where it cannot run; 3 where time did not suffice: "
        "rerun the command to continue.",
    )
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "throughput", help="folder (default: %(default)s)")
    parser.add_argument("--minutes", type=float, default=9.0, help="all stages together (default: %(default)s)")
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=list(STAGES), help="default: all")
    parser.add_argument("--all", action="store_true", help="measure all cells, not only those of the table")
    parser.add_argument("--only", nargs="+", choices=SUITES, default=list(SUITES), help="kinds of cells (default: all)")
    parser.add_argument("--workers", type=int, help="processes that check and compile (default: the cores less two)")
    parser.add_argument("--commit", help="commit to record; needed in a copy without .git (or ROLESAFE_COMMIT)")
    parser.add_argument("--chart", type=Path, metavar="PNG", help="draw a chart as well")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None, machine: Machine | None = None) -> int:
    """Run everything on `machine` (default: this one); return the exit status."""
    options = parse(arguments)
    commit = find_commit(options.commit)
    reason = no_gpu() if machine is None else None
    if reason is not None:
        print(reason, file=sys.stderr)
        return 2
    if options.chart:
        check_writable(options.chart, "--chart")
        require_matplotlib()
    cells = [cell for cell in all_cells(options.only) if cell.in_table or options.all]
    if options.minutes < LEAST_MINUTES:
        raise ValueError(f"`--minutes`: expected {LEAST_MINUTES} or more, got {options.minutes}. Rerun it to continue.")
    if not cells:
        raise ValueError(f"`--only`: expected a kind that the table has, got {options.only}. Pass `--all` as well.")
    workers = options.workers or max(1, len(os.sched_getaffinity(0)) - 2)
    own = None if machine is not None else Processes(workers, PRELOAD)
    out = options.out.resolve()
    try:
        with locked(out, "--out"):
            status = run(machine or own, out, 60 * options.minutes, commit, cells, options.stages)
    finally:
        if own is not None:
            own.close()
    if options.chart and load(out / "throughput.json")["cells"]:
        draw(load(out / "throughput.json"), options.chart)
    return status


if __name__ == "__main__":
    run_main(main)
