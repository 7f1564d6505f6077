"""Markdown tables of a record, one for each size.

python -m benchmarks.override_resistance.table benchmarks/results/override_resistance.json
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.override_resistance.clusters import clusters, ids_of
from benchmarks.override_resistance.compact import load
from rolesafe.attacks import TEXT_ATTACKS, Rate
from rolesafe.evaluation import AttackPoint, Results, Run, seed_mean
from rolesafe.evaluation.statistics import effective_trials

Choice = Callable[[AttackPoint], bool]


@dataclass(frozen=True)
class Row:
    """Row of a table.

    Attributes:
        rate: Rate of one run; None: not measured.
        ids: Examples behind the rate, from the run and the settings of the record.
    """

    rate: Callable[[Run], Rate | None]
    ids: Callable[[Run, Mapping[str, Any]], Collection[str]]


def against(name: str, **parameters: Any) -> Row:
    """Return the per-sample OR over the points of one attack with these parameters."""
    return chosen(lambda p: p.attack == name and all(p.parameters.get(k) == v for k, v in parameters.items()))


def chosen(choose: Choice | None) -> Row:
    """Return the per-sample OR over the chosen points; default: typed attacks."""

    def rate(run: Run) -> Rate:
        won = run.worst(choose)
        return Rate(sum(won.values()), len(won))

    return Row(rate, lambda run, settings: run.worst(choose))


def held(choose: Choice | None) -> Row:
    """Return the examples with a right reply under all chosen points; default: typed attacks."""

    def rate(run: Run) -> Rate | None:
        right = run.held(choose)
        return None if right is None else Rate(sum(right.values()), len(right))

    return Row(rate, lambda run, settings: run.worst(choose))


def is_fixed(point: AttackPoint) -> bool:
    """Return True for attacks with a fixed text, False for searches."""
    return point.attack in TEXT_ATTACKS


def _probed(rate: Callable[[Run], Rate | None]) -> Row:
    return Row(rate, lambda run, settings: ids_of("probes", settings, run.seed))


ROWS: dict[str, Row] = {
    "benign, right": Row(lambda run: run.utility.benign, lambda run, settings: run.utility.examples),
    "false refusals": Row(lambda run: run.false_refusals, lambda run, s: ids_of("triggers", s, run.seed)),
    "SEP, of the executed": _probed(lambda run: run.sep),
    "SEP, of all": _probed(lambda run: run.sep_all),
    "GCG": against("gcg", objective="ce"),
    "GCG on attention": against("gcg", objective="attention"),
    "GCG on the role shift": against("gcg", objective="role-shift"),
    "BEAST": against("beam"),
    "best-of-n": against("best-of-n"),
    "all fixed texts": chosen(is_fixed),
    "dilution x64": against("dilution", repeats=64),
    "position, system text last": against("position", system="last"),
    "**worst case**": chosen(None),
    "right under all fixed texts": held(is_fixed),
    "right under all attacks": held(None),
    "prefill, not typed": against("prefill"),
    "soft prompt, not typed": against("soft-prompt"),
}


MOST_COLUMNS = 8

DECIDING = ("benign, right", "all fixed texts", "**worst case**")
"""Rows whose intervals are printed for many mechanisms, too."""


def table(results: Results, size: str, labels: Mapping[str, str] | None = None) -> str:
    """Return the Markdown table of one size: means over seeds in percent, with 95% intervals.

    A column per mechanism; above :data:`MOST_COLUMNS` mechanisms a row each, with most intervals left out.

    Args:
        results: The record.
        size: One of its sizes.
        labels: Template of every example, if known already.
    """
    runs = {model: found for model in results.models if (found := results.of(size, model))}
    many = len(runs) > MOST_COLUMNS
    labels = labels or clusters(results.settings, results.seeds)
    cells = {
        name: [cell(row, of, results.settings, labels, short=many and name not in DECIDING) for of in runs.values()]
        for name, row in ROWS.items()
    }
    rows = [["", *runs], *([name, *values] for name, values in cells.items() if set(values) != {NOTHING})]
    if many:
        rows = [list(column) for column in zip(*rows, strict=True)]
    head, *body = rows
    lines = [head, [":--", *["--:"] * (len(head) - 1)], *body]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


NOTHING = "-"


def trials(
    row: Row, runs: Sequence[Run], counted: int, settings: Mapping[str, Any], labels: Mapping[str, str]
) -> float:
    """Return the effective number of independent trials of `counted` examples, clustered by template."""
    asked = [id for run in runs for id in row.ids(run, settings)]
    # some probes count only where they were executed, and the record has no ids of those
    share = min(1.0, counted / len(asked)) if asked else 0.0
    return share * effective_trials(labels[id] for id in asked)


def cell(
    row: Row, runs: Sequence[Run], settings: Mapping[str, Any], labels: Mapping[str, str], *, short: bool = False
) -> str:
    """Return the mean over seeds with its interval, and the number of seeds if some are missing."""
    rates = [rate for run in runs if (rate := row.rate(run)) is not None and rate.n]
    if not rates:
        return NOTHING
    mean = seed_mean(rates, trials(row, runs, sum(rate.n for rate in rates), settings, labels))
    assert mean is not None
    text = f"{mean.value:.1%}" + ("" if short else f" ({100 * mean.low:.1f} to {100 * mean.high:.1f})")
    return text if len(rates) == len(runs) else f"{text}, {len(rates)} of {len(runs)} seeds"


def main(path: Path) -> None:
    """Print the tables of all sizes."""
    results = load(path)
    for size in results.sizes:
        print(f"{size}\n\n{table(results, size)}\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
