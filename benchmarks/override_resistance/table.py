"""The table of docs/override-resistance.md, from a committed record.

python -m benchmarks.override_resistance.table benchmarks/results/override_resistance.json
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rolesafe.attacks import ATTACKS, Rate
from rolesafe.evaluation import AttackPoint, Results, Run, seed_mean

Measured = Callable[[Run], Rate | None]


def against(name: str, **parameters: Any) -> Measured:
    """Per-sample OR over the points of one attack that have these parameters."""
    return chosen(lambda p: p.attack == name and all(p.parameters.get(k) == v for k, v in parameters.items()))


def chosen(choose: Callable[[AttackPoint], bool]) -> Measured:
    """Per-sample OR over some points."""

    def measured(run: Run) -> Rate:
        won = run.worst(choose)
        return Rate(sum(won.values()), len(won))

    return measured


ROWS: dict[str, Measured] = {
    "benign, right": lambda run: run.utility.benign,
    "false refusals": lambda run: run.false_refusals,
    "SEP": lambda run: run.sep,
    "all fixed texts": chosen(lambda point: ATTACKS[point.attack].search is None),
    "dilution x64": against("dilution", repeats=64),
    "position, system text last": against("position", system="last"),
    "GCG": against("gcg"),
    "BEAST": against("beam"),
    "best-of-n": against("best-of-n"),
    "**worst case**": lambda run: run.worst_case,
    "soft prompt (bound)": against("soft-prompt"),
}


def table(results: Results) -> str:
    """Markdown: a column per mechanism; means over seeds with 95% intervals, in percent."""
    lines = [["", *results.models], [":--", *["--:"] * len(results.models)]]
    for name, measured in ROWS.items():
        runs = {model: [run for run in results.runs if run.model == model] for model in results.models}
        lines.append([name, *(_cell([measured(run) for run in of]) for of in runs.values())])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(rates: list[Rate | None]) -> str:
    mean = seed_mean([rate for rate in rates if rate is not None and rate.n])
    return "-" if mean is None else f"{mean.value:.1%} ({100 * mean.low:.1f} to {100 * mean.high:.1f})"


if __name__ == "__main__":
    print(table(Results.load(Path(sys.argv[1]))))
