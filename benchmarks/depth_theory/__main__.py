"""Compute the counterexamples, the coverage of the estimators and the time of the exact part.

    python -m benchmarks.depth_theory [--runs N] [--only PART ...] [--json PATH]

Without `--json` the record is printed only.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from benchmarks.depth_theory.coverage import study
from benchmarks.depth_theory.examples import EXAMPLES
from rolesafe.depth import TabularModel, gradient, martingale, standard_optimum
from rolesafe.evaluation import environment
from rolesafe.files import check_writable, write_whole
from rolesafe.terminal import run_main

PARTS = ("examples", "coverage", "speed")


def speed(repeats: int = 50) -> dict[str, Any]:
    """Return the least and the median CPU time of martingale, gradient and optimum for V=5, T=6, in milliseconds."""
    generator = torch.Generator().manual_seed(0)
    tables = TabularModel.random(5, 6, generator=generator).tables
    harm = torch.rand((5,) * 6, generator=generator, dtype=torch.float64)
    times = []
    for _ in range(repeats):
        start = time.process_time()
        model = TabularModel(tables)
        martingale(model, harm)
        gradient(model, harm)
        standard_optimum(model, harm, 1.0)
        times.append(1000 * (time.process_time() - start))
    times.sort()
    return {"vocabulary": 5, "length": 6, "least_ms": times[0], "median_ms": times[len(times) // 2]}


def main() -> int:
    """Run the parts and write one record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=1000, help="runs of each estimator")
    parser.add_argument("--only", nargs="*", choices=PARTS, default=PARTS)
    parser.add_argument("--json", type=Path, help="add the parts to this record")
    options = parser.parse_args()
    found: dict[str, Any] = {}
    if options.json is not None:
        check_writable(options.json, "--json")
        if options.json.exists():
            found = json.loads(options.json.read_text(encoding="utf-8"))
    torch.set_num_threads(1)
    found["environment"] = asdict(environment())
    if "examples" in options.only:
        found["examples"] = {name: example() for name, example in EXAMPLES.items()}
    if "coverage" in options.only:
        found["coverage"] = study(options.runs)
    if "speed" in options.only:
        found["speed"] = speed()
    content = json.dumps(found, indent=1) + "\n"
    print(content)
    if options.json is not None:
        write_whole(options.json, content)
    return 0


if __name__ == "__main__":
    run_main(main)
