"""A record without the conversations in it, small enough to be committed: all counts and marks, no text.

python -m benchmarks.override_resistance.compact runs/x/results.json benchmarks/results/x.json
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path

from rolesafe.evaluation import Results
from rolesafe.files import write_whole
from rolesafe.terminal import run_main


def compact(results: Results) -> str:
    """JSON of `results` that :class:`rolesafe.evaluation.Results` reads, one run a line."""
    runs = tuple(
        replace(run, attacks=tuple(replace(point, samples=()) for point in run.attacks)) for run in results.runs
    )
    values = json.loads(replace(results, runs=runs).to_json())
    lines = ",\n".join(json.dumps(run, separators=(",", ":")) for run in values.pop("runs"))
    return f'{json.dumps(values, indent=1)[:-2]},\n "runs": [\n{lines}\n]}}\n'


def main() -> None:
    parser = argparse.ArgumentParser(description="Leave the conversations out of a record.")
    parser.add_argument("record", type=Path)
    parser.add_argument("output", type=Path)
    chosen = parser.parse_args()
    write_whole(chosen.output, compact(Results.load(chosen.record)))


if __name__ == "__main__":
    run_main(main)
