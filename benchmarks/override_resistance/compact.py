"""A record without the conversations in it, small enough to be committed: all counts and marks, no text.

python -m benchmarks.override_resistance.compact runs/x/results.json benchmarks/results/x.json
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

from rolesafe.evaluation import Results
from rolesafe.evaluation.files import write_whole


def compact(results: Results) -> str:
    """JSON of `results` that :class:`rolesafe.evaluation.Results` reads, one run a line."""
    runs = tuple(
        replace(run, attacks=tuple(replace(point, samples=()) for point in run.attacks)) for run in results.runs
    )
    values = json.loads(replace(results, runs=runs).to_json())
    lines = ",\n".join(json.dumps(run, separators=(",", ":")) for run in values.pop("runs"))
    return f'{json.dumps(values, indent=1)[:-2]},\n "runs": [\n{lines}\n]}}\n'


if __name__ == "__main__":
    write_whole(sys.argv[2], compact(Results.load(Path(sys.argv[1]))))
