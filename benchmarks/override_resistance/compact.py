"""Compact form of a record, for git: counts and outcomes per example, without conversations.

    python -m benchmarks.override_resistance.compact runs/x/results.json benchmarks/results/x.json

Outcomes are run-length strings: ``"58oxo"`` is 58 held, 1 won, 1 held; ``-`` is not run. Attack points, id lists and
mechanisms are written once and referred to by index. Left out: conversations, counts by task family, loss curves,
steps and numbers of queries. ``--replies`` keeps the replies of the recorded conversations.
"""

from __future__ import annotations

import argparse
import json
import os
import re
from dataclasses import asdict, replace
from itertools import groupby
from pathlib import Path
from typing import Any

from rolesafe.attacks import Outcome, Rate
from rolesafe.evaluation import AttackPoint, Environment, Results, Run, Utility
from rolesafe.files import write_whole
from rolesafe.terminal import run_main

VERSION = 1
"""Version of the compact form."""

RATES = ("worst_case", "bound", "false_refusals", "sep", "sep_all")
PLAIN = ("model", "size", "n_parameters", "train_seconds", "complete")
UTILITY = ("benign", "refused", "protected", "violated")
_LETTERS = {"0": "o", "1": "x", "-": "-"}
_MARKS = {letter: mark for mark, letter in _LETTERS.items()}


def slim(results: Results, *, replies: bool = False) -> Results:
    """Return `results` with only the fields of the compact form.

    Args:
        results: A record.
        replies: Keep the recorded conversations as ids and replies, without messages.
    """
    return replace(results, runs=tuple(_slim_run(run, replies) for run in results.runs))


def _slim_run(run: Run, replies: bool) -> Run:
    points = tuple(
        replace(
            point,
            families=(),
            n_queries=0,
            n_steps=(),
            losses=(),
            samples=tuple(
                Outcome(id=o.id, family=o.family, messages=(), reply=o.reply, success=o.success, right=o.right)
                for o in (point.samples if replies else ())
            ),
        )
        for point in run.attacks
    )
    return replace(run, attacks=points, utility=replace(run.utility, families=()))


class _Table:
    """Distinct values as JSON, referred to by index."""

    def __init__(self) -> None:
        self.lines: dict[str, int] = {}

    def index(self, value: Any) -> int:
        return self.lines.setdefault(_dump(value), len(self.lines))


def _dump(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"), allow_nan=False)


def compact(results: Results, *, replies: bool = False) -> str:
    """Return the compact form of ``slim(results)`` as JSON text, one run per line; :func:`load` reads it."""
    points, ids, mechanisms = _Table(), _Table(), _Table()

    def packed(run: Run) -> dict[str, Any]:
        use = run.utility
        useful = [_pair(getattr(use, name)) for name in UTILITY]
        return {
            "seed": run.seed,
            **{name: getattr(run, name) for name in PLAIN},
            **{name: _pair(rate) for name in RATES if (rate := getattr(run, name)) is not None},
            "mechanism": mechanisms.index(run.mechanism),
            "attention_mass": run.attention_mass,
            "utility": [useful, ids.index(use.examples), runs_of(use.right)],
            "examples": ids.index(run.examples),
            "attacks": [_packed_point(point, points, run.seed) for point in run.attacks],
        }

    runs = [_dump(packed(run)) for run in slim(results, replies=replies).runs]
    head = {
        "compact_version": VERSION,
        "environment": asdict(results.environment),
        "settings": results.settings,
        "complete": results.complete,
        "forging": None if results.forging is None else _pair(results.forging),
    }
    tables = {"points": points.lines, "ids": ids.lines, "mechanisms": mechanisms.lines, "runs": runs}
    parts = [f'"{name}": {_dump(value)}' for name, value in head.items()]
    parts += ['"{}": [\n{}\n]'.format(name, ",\n".join(lines)) for name, lines in tables.items()]
    return "{" + ",\n".join(parts) + "}\n"


def _packed_point(point: AttackPoint, points: _Table, seed: int) -> list[Any]:
    where = points.index([point.attack, dict(point.parameters), point.typed])
    more: dict[str, Any] = {}
    if point.seed != seed:
        more["seed"] = point.seed
    if point.right:
        more["right"] = runs_of(point.right)
    if not point.complete:
        more["complete"] = False
    for name in ("n_left_out", "n_met", "failed"):
        if value := getattr(point, name):
            more[name] = value
    if point.samples:
        more["samples"] = [[o.id, o.family, o.reply, o.success, o.right] for o in point.samples]
    return [where, runs_of(point.marks) if point.marks else _pair(point.success), *([more] if more else [])]


def load(path: str | os.PathLike[str]) -> Results:
    """Read a record, compact or whole.

    Raises:
        ValueError: The file is not a record, or of another compact version.
        OSError: The file cannot be read.
    """
    name = os.fspath(path)
    try:
        values = json.loads(Path(path).read_bytes())
    except (ValueError, RecursionError):
        values = None
    if not isinstance(values, dict) or "compact_version" not in values:
        return Results.load(path)
    try:
        versions = dict(values["environment"]["versions"])
        if values["compact_version"] == VERSION:
            return _unpacked(values)
    except (KeyError, TypeError, AttributeError, IndexError, ValueError) as error:
        raise ValueError(f"{name}: expected a compact record, got JSON that does not fit: {error}") from error
    raise ValueError(
        f"{name}: `compact_version`: expected {VERSION}, got {values['compact_version']!r}, of rolesafe "
        f"{versions.get('rolesafe', '(unknown)')}. Read it with that version, or compact the run's results.json again."
    )


def _unpacked(values: dict[str, Any]) -> Results:
    where = values["environment"]
    environment = Environment(**{**where, "versions": tuple((name, number) for name, number in where["versions"])})
    return Results(
        runs=tuple(_run(run, values) for run in values["runs"]),
        environment=environment,
        settings=values["settings"],
        complete=values["complete"],
        forging=_rate(values["forging"]),
    )


def _run(values: dict[str, Any], tables: dict[str, Any]) -> Run:
    useful, asked, right = values["utility"]
    mass = values["attention_mass"]
    rates: dict[str, Any] = {name: _rate(values.get(name)) for name in RATES}
    rates_of_use: dict[str, Any] = {name: Rate(*pair) for name, pair in zip(UTILITY, useful, strict=True)}
    return Run(
        seed=values["seed"],
        **{name: values[name] for name in PLAIN},
        **rates,
        mechanism=tables["mechanisms"][values["mechanism"]],
        attention_mass=None if mass is None else tuple(map(tuple, mass)),
        utility=Utility(
            **rates_of_use,
            examples=tuple(tables["ids"][asked]),
            right=marks_of(right),
        ),
        examples=tuple(tables["ids"][values["examples"]]),
        attacks=tuple(_point(point, tables["points"], values["seed"]) for point in values["attacks"]),
    )


def _point(values: list[Any], points: list[Any], seed: int) -> AttackPoint:
    index, outcomes, more = (*values, {})[:3]
    attack, parameters, typed = points[index]
    marks = marks_of(outcomes) if isinstance(outcomes, str) else ""
    success = Rate(marks.count("1"), len(marks) - marks.count("-")) if marks else Rate(*outcomes)
    return AttackPoint(
        attack=attack,
        parameters=parameters,
        typed=typed,
        seed=more.get("seed", seed),
        success=success,
        marks=marks,
        right=marks_of(more.get("right", "")),
        complete=more.get("complete", True),
        n_left_out=more.get("n_left_out", 0),
        n_met=more.get("n_met", 0),
        failed=tuple((id, reason) for id, reason in more.get("failed", ())),
        samples=tuple(
            Outcome(id=id, family=family, messages=(), reply=reply, success=success, right=right)
            for id, family, reply, success, right in more.get("samples", ())
        ),
    )


def runs_of(marks: str) -> str:
    """Return marks out of ``1``, ``0`` and ``-`` as a run-length string, such as ``"58oxo"``."""
    groups = [(_LETTERS[mark], len(list(group))) for mark, group in groupby(marks)]
    return "".join(f"{count if count > 1 else ''}{letter}" for letter, count in groups)


def marks_of(runs: str) -> str:
    """Return the marks of a run-length string.

    Raises:
        ValueError: The text is no such string.
    """
    if not re.fullmatch(r"(\d*[ox-])*", runs):
        raise ValueError(f"`runs`: expected counts with 'o', 'x' or '-', got {runs!r}")
    return "".join(_MARKS[letter] * int(count or 1) for count, letter in re.findall(r"(\d*)([ox-])", runs))


def _pair(rate: Rate) -> list[int]:
    return [rate.k, rate.n]


def _rate(pair: list[int] | None) -> Rate | None:
    return None if pair is None else Rate(*pair)


def main() -> None:
    """Write the compact form of a record."""
    parser = argparse.ArgumentParser(description="Write a record without its conversations, small enough for git.")
    parser.add_argument("record", type=Path, help="record of a run, whole or compact")
    parser.add_argument("output", type=Path, help="file to write")
    parser.add_argument("--replies", action="store_true", help="keep the replies of the recorded conversations")
    chosen = parser.parse_args()
    write_whole(chosen.output, compact(load(chosen.record), replies=chosen.replies))


if __name__ == "__main__":
    run_main(main)
