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
from itertools import groupby
from pathlib import Path
from typing import Any

from rolesafe.evaluation import SCHEMA_VERSION, Results
from rolesafe.files import write_whole
from rolesafe.terminal import run_main

VERSION = 1
"""Version of the compact form."""

DROPPED = ("n_queries", "n_steps", "samples")
SAMPLE = ("id", "family", "reply", "success", "right")
"""Fields of a recorded conversation that ``--replies`` keeps."""

_LETTERS = {"0": "o", "1": "x", "-": "-"}
_MARKS = {letter: mark for mark, letter in _LETTERS.items()}


class _Table:
    """Distinct values as JSON, referred to by index."""

    def __init__(self) -> None:
        self.lines: dict[str, int] = {}

    def index(self, value: Any) -> int:
        return self.lines.setdefault(_dump(value), len(self.lines))


def _dump(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"))


def compact(results: Results, *, replies: bool = False) -> str:
    """Return the compact form of `results` as JSON text, one run per line; :func:`load` reads it.

    Args:
        results: A record.
        replies: Keep the replies of recorded conversations.
    """
    values = json.loads(results.to_json())
    points, ids, mechanisms = _Table(), _Table(), _Table()
    runs = values.pop("runs")
    for run in runs:
        use = run["utility"]
        use.update(examples=ids.index(use["examples"]), right=runs_of(use["right"]))
        run.update(examples=ids.index(run["examples"]), mechanism=mechanisms.index(run["mechanism"]))
        run["attacks"] = [_packed(point, points, run["seed"], replies) for point in run["attacks"]]
    values = {"compact_version": VERSION, **values, "schema_version": SCHEMA_VERSION}
    parts = [f'"{name}": {_dump(value)}' for name, value in values.items()]
    tables = {"points": points.lines, "ids": ids.lines, "mechanisms": mechanisms.lines, "runs": map(_dump, runs)}
    parts += ['"{}": [\n{}\n]'.format(name, ",\n".join(lines)) for name, lines in tables.items()]
    return "{" + ",\n".join(parts) + "}\n"


def _packed(point: dict[str, Any], points: _Table, seed: int, replies: bool) -> list[Any]:
    """Return index of the point, outcomes (counts without marks), and all other values that are not defaults."""
    index = points.index([point.pop(name) for name in ("attack", "parameters", "typed")])
    marks, success, samples = (point.pop(name) for name in ("marks", "success", "samples"))
    more = {name: value for name, value in point.items() if value and name not in (*DROPPED, "seed", "complete")}
    if "right" in more:
        more["right"] = runs_of(more["right"])
    if point["seed"] != seed:
        more["seed"] = point["seed"]
    if not point["complete"]:
        more["complete"] = False
    if replies and samples:
        more["samples"] = [[sample[name] for name in SAMPLE] for sample in samples]
    return [index, runs_of(marks) if marks else success, *([more] if more else [])]


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
        if (version := values.pop("compact_version")) == VERSION:
            return Results.from_json(_dump(_whole(values)))
    except (KeyError, TypeError, AttributeError, IndexError, ValueError) as error:
        raise ValueError(f"{name}: expected a compact record, got JSON that does not fit: {error}") from error
    raise ValueError(
        f"{name}: `compact_version`: expected {VERSION}, got {version!r}, of rolesafe "
        f"{versions.get('rolesafe', '(unknown)')}. Read it with that version, or compact the run's results.json again."
    )


def _whole(values: dict[str, Any]) -> dict[str, Any]:
    """Return the JSON values of :meth:`Results.to_json`."""
    points, ids, mechanisms = (values.pop(name) for name in ("points", "ids", "mechanisms"))
    for run in values["runs"]:
        use = run["utility"]
        use.update(examples=ids[use["examples"]], right=marks_of(use["right"]))
        run.update(examples=ids[run["examples"]], mechanism=mechanisms[run["mechanism"]])
        run["attacks"] = [_point(point, points, run["seed"]) for point in run["attacks"]]
    return values


def _point(packed: list[Any], points: list[Any], seed: int) -> dict[str, Any]:
    index, outcomes, more = (*packed, {})[:3]
    attack, parameters, typed = points[index]
    marks = marks_of(outcomes) if isinstance(outcomes, str) else ""
    counts = {"k": marks.count("1"), "n": len(marks) - marks.count("-")}
    samples = [{**dict(zip(SAMPLE, one, strict=True)), "messages": []} for one in more.get("samples", ())]
    point = {"attack": attack, "parameters": parameters, "typed": typed, "seed": seed}
    point |= {"marks": marks, "success": counts if marks else outcomes, **more, "samples": samples}
    return {**point, "right": marks_of(more.get("right", ""))}


def runs_of(marks: str) -> str:
    """Return marks out of ``1``, ``0`` and ``-`` as a run-length string, such as ``"58oxo"``."""
    groups = [(_LETTERS[mark], len(list(group))) for mark, group in groupby(marks)]
    return "".join(f"{count if count > 1 else ''}{letter}" for letter, count in groups)


def marks_of(runs: str) -> str:
    """Return the marks of a run-length string.

    Raises:
        ValueError: The text is not a run-length string.
    """
    if not re.fullmatch(r"(\d*[ox-])*", runs):
        raise ValueError(f"`runs`: expected counts with 'o', 'x' or '-', got {runs!r}")
    return "".join(_MARKS[letter] * int(count or 1) for count, letter in re.findall(r"(\d*)([ox-])", runs))


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
