"""The tables of docs/override-resistance.md, from a committed record: one for each size.

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
    "SEP, of the executed": lambda run: run.sep,
    "SEP, of all": lambda run: run.sep_all,
    "GCG": against("gcg", objective="ce"),
    "GCG on attention": against("gcg", objective="attention"),
    "GCG on the role shift": against("gcg", objective="role-shift"),
    "BEAST": against("beam"),
    "best-of-n": against("best-of-n"),
    "all fixed texts": chosen(lambda point: ATTACKS[point.attack].search is None),
    "dilution x64": against("dilution", repeats=64),
    "position, system text last": against("position", system="last"),
    "**worst case**": lambda run: run.worst_case,
    "prefill, not typed": against("prefill"),
    "soft prompt, not typed": against("soft-prompt"),
}


MOST_COLUMNS = 8

DECIDING = ("benign, right", "all fixed texts", "**worst case**")
"""The rows whose intervals a table of many mechanisms keeps."""


def table(results: Results, size: str) -> str:
    """Markdown of one size; means over seeds in percent, with 95% intervals. A column per mechanism; of more than
    :data:`MOST_COLUMNS` mechanisms a row each, most intervals left to the page of the run."""
    runs = {model: found for model in results.models if (found := results.of(size, model))}
    many = len(runs) > MOST_COLUMNS
    cells = {
        name: [_cell([measured(run) for run in of], short=many and name not in DECIDING) for of in runs.values()]
        for name, measured in ROWS.items()
    }
    rows = [["", *runs], *([name, *values] for name, values in cells.items() if set(values) != {NOTHING})]
    if many:
        rows = [list(column) for column in zip(*rows, strict=True)]
    head, *body = rows
    lines = [head, [":--", *["--:"] * (len(head) - 1)], *body]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


NOTHING = "-"


def _cell(rates: list[Rate | None], *, short: bool = False) -> str:
    mean = seed_mean([rate for rate in rates if rate is not None and rate.n])
    if mean is None:
        return NOTHING
    return f"{mean.value:.1%}" + ("" if short else f" ({100 * mean.low:.1f} to {100 * mean.high:.1f})")


def main(path: Path) -> None:
    """Print the tables of all sizes."""
    results = Results.load(path)
    for size in results.sizes:
        print(f"{size}\n\n{table(results, size)}\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
