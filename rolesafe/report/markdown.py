"""The report as a Markdown table."""

from __future__ import annotations

import re

from rolesafe.evaluation import SeedMean
from rolesafe.report.terminal import SECTIONS, trials
from rolesafe.report.view import View, interval, percent
from rolesafe.terminal import visible

_SPECIAL = re.compile(r"([\\`*_{}\[\]<>|~&$])")


def render_markdown(view: View) -> str:
    """Return `view` as a Markdown table with its notes; untrusted text is escaped."""
    header = ["", *(escape(model.name) for model in view.models), "n"]
    if view.with_versus:
        header.append(f"{escape(view.models[-1].name)} against {escape(view.models[0].name)}")
    lines = [line(header), line([":--", *("--:" for _ in view.models), "--:", *([":--"] * view.with_versus)])]
    for kind, title in SECTIONS.items():
        rows = [row for row in view.rows if row.kind == kind]
        if rows:
            lines.append(line([f"**{title}**", *("" for _ in header[1:])]))
        for row in rows:
            cells = [escape(row.label), *map(cell, row.means), trials(row.means)]
            lines.append(line([*cells, *([escape(row.versus)] * view.with_versus)]))
    notes = [f"Mean over {view.seeds}; in parentheses the 95% interval; n = trials over all seeds."]
    if view.partial is not None:
        notes.insert(0, f"**Partial:** {escape(view.partial)}")
    notes += [escape(note) for note in view.notes]
    return "\n".join([*lines, "", *notes, ""])


def cell(mean: SeedMean | None) -> str:
    """Return a mean with its interval, in percent."""
    return "not measured" if mean is None else f"{percent(mean.value)} ({interval(mean)})"


def line(cells: list[str]) -> str:
    """Return one row of a Markdown table."""
    return f"| {' | '.join(cells)} |"


def escape(text: str) -> str:
    """Return `text` on one line, with Markdown's special characters escaped."""
    return _SPECIAL.sub(r"\\\1", visible(text).replace("\n", " "))
