"""The report as CSV in long form: one line per size, mechanism, seed and attack point."""

from __future__ import annotations

import csv
import io
import json
import re
import unicodedata
from collections.abc import Iterator

from rolesafe.evaluation import AttackPoint, Rate, Results, Run
from rolesafe.terminal import visible

COLUMNS = (
    *("size", "mechanism", "seed", "attack", "parameters", "attack_seed", "typed", "complete"),
    *("k", "n", "success", "low", "high", "left_out", "failed", "queries", "mean_steps"),
    *("utility_k", "utility_n", "utility", "false_refusals"),
)
"""Every line has the utility, because attack success cannot be read without it."""

_FORMULA = ("=", "+", "-", "\u2212", "@")
"""First characters of a formula; U+2212 is the minus sign of mathematics."""


def render_csv(results: Results) -> str:
    """Return `results` as CSV text (RFC 4180). A run ends with its worst case over typed, then over all attacks.

    An apostrophe is put before text that a spreadsheet would read as a formula, also after a line break and after
    ``;``, which separates cells where the comma is the decimal sign.
    """
    target = io.StringIO()
    writer = csv.DictWriter(target, COLUMNS, lineterminator="\r\n", quoting=csv.QUOTE_NONNUMERIC)
    writer.writeheader()
    for run in results.runs:
        for line in _lines(run):
            writer.writerow(
                {name: _harmless(value) if isinstance(value, str) else value for name, value in line.items()}
            )
    return target.getvalue()


def _lines(run: Run) -> Iterator[dict[str, object]]:
    refused = run.false_refusals or run.utility.refused
    common = {
        "size": run.size,
        "mechanism": run.model,
        "seed": run.seed,
        "utility_k": run.utility.benign.k,
        "utility_n": run.utility.benign.n,
        "utility": _share(run.utility.benign),
        "false_refusals": _share(refused),
    }
    for point in run.attacks:
        yield {**common, **_rate(point.success), **_point(point)}
    for name, rate, typed in (
        ("worst case", run.worst_case, 1),
        ("worst case with what nobody can type", run.bound, 0),
    ):
        if rate is not None:
            yield {**common, **_rate(rate), "attack": name, "typed": typed, "complete": int(run.complete)}


def _point(point: AttackPoint) -> dict[str, object]:
    return {
        "attack": point.attack,
        "parameters": json.dumps(dict(point.parameters), sort_keys=True),
        "attack_seed": point.seed,
        "typed": int(point.typed),
        "complete": int(point.complete),
        "left_out": point.n_left_out,
        "failed": len(point.failed),
        "queries": point.n_queries,
        "mean_steps": f"{sum(point.n_steps) / len(point.n_steps):.1f}" if point.n_steps else "",
    }


def _rate(rate: Rate) -> dict[str, object]:
    low, high = rate.interval
    return {"k": rate.k, "n": rate.n, "success": _share(rate), "low": f"{low:.6f}", "high": f"{high:.6f}"}


def _share(rate: Rate) -> str:
    return f"{rate.value:.6f}" if rate.n else ""


def _harmless(text: str) -> str:
    """Return `text` with an apostrophe before each part that a spreadsheet could read as a formula.

    Spreadsheets skip white space in front of a formula and read the wide and small forms of its first sign, too.
    """
    return "".join(map(_harmless_cell, re.split(r"([;\r\n]+)", visible(text))))


def _harmless_cell(text: str) -> str:
    first = unicodedata.normalize("NFKC", text.lstrip()[:1])
    return f"'{text}" if text[:1].isspace() or first.startswith(_FORMULA) else text
