"""The report as a Markdown table, for a README."""

from __future__ import annotations

import re

from rolesafe.evaluation import SeedMean
from rolesafe.report.terminal import SECTIONS, trials
from rolesafe.report.text import visible
from rolesafe.report.view import View, interval, percent

_SPECIAL = re.compile(r"([\\`*_{}\[\]<>|~&$])")


def render_markdown(view: View) -> str:
    """`view` as a Markdown table with the notes that belong to it; text from elsewhere is escaped."""
    header = ["", *(_escape(model.name) for model in view.models), "n"]
    if view.with_versus:
        header.append(f"{_escape(view.models[-1].name)} against {_escape(view.models[0].name)}")
    lines = [_line(header), _line([":--", *("--:" for _ in view.models), "--:", *([":--"] * view.with_versus)])]
    for kind, title in SECTIONS.items():
        rows = [row for row in view.rows if row.kind == kind]
        if rows:
            lines.append(_line([f"**{title}**", *("" for _ in header[1:])]))
        for row in rows:
            cells = [_escape(row.label), *map(_cell, row.means), trials(row.means)]
            lines.append(_line([*cells, *([_escape(row.versus)] * view.with_versus)]))
    notes = [f"Mean over {view.seeds}; in parentheses the 95% interval; n = trials over all seeds."]
    if view.partial is not None:
        notes.insert(0, f"**Partial:** {_escape(view.partial)}")
    notes += [_escape(note) for note in view.notes]
    return "\n".join([*lines, "", *notes, ""])


def _cell(mean: SeedMean | None) -> str:
    return "not measured" if mean is None else f"{percent(mean.value)} ({interval(mean)})"


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _escape(text: str) -> str:
    return _SPECIAL.sub(r"\\\1", visible(text).replace("\n", " "))
