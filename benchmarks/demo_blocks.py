"""Generated tables of pages about the demo; ``python -m benchmarks.pages`` writes them."""

from __future__ import annotations

from pathlib import Path

from benchmarks.override_resistance.compact import load
from rolesafe.report import markdown_table

RECORDS = Path(__file__).parent / "results"

_MAIN = (
    "benign questions, right",
    "fake-system x4, with delimiters",
    "fake-system x16, with delimiters",
    "dilution x8",
    "dilution x16",
    "dilution x32",
    "dilution x64",
    "position at 0%, system text first",
    "position at 50%, system text last",
    "any of these attacks (worst case)",
)
ROWS: dict[str, tuple[str, ...]] = {
    "fresh": (*_MAIN[:3], "fake-system x16, without delimiters", *_MAIN[3:]),
    "short": (_MAIN[0], _MAIN[2], _MAIN[6], *_MAIN[-2:]),
    "readme": (
        _MAIN[0],
        "protected questions, right",
        "ignore-previous x4",
        *_MAIN[1:3],
        "fake-system x16, without delimiters",
        "dilution x1",
        *_MAIN[3:],
    ),
}
"""Selections of rows, by their labels."""


def demo(record: str, selection: str = "all") -> str:
    """Return the table of a demo record.

    Args:
        record: File name in benchmarks/results, without ``.json``.
        selection: Key of :data:`ROWS`, or ``"all"``.

    Raises:
        ValueError: The selection is unknown, or the record lacks one of its rows.
    """
    if selection != "all" and selection not in ROWS:
        raise ValueError(f"`selection`: expected 'all' or one of {list(ROWS)}, got {selection!r}")
    lines = [line for line in markdown_table(load(RECORDS / f"{record}.json")).splitlines() if line.startswith("|")]
    if selection == "all":
        return "\n".join(lines)
    body = {line.split(" | ")[0].removeprefix("| "): line for line in lines[2:]}
    if missing := [label for label in ROWS[selection] if label not in body]:
        raise ValueError(f"`record`: expected a row {missing[0]!r} in {record!r}, got none")
    return "\n".join([*lines[:2], *(line for label, line in body.items() if label in ROWS[selection])])
