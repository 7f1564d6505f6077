"""The report as one self-contained page; see :mod:`rolesafe.report.jinja` for the escaping of untrusted text."""

from __future__ import annotations

from rolesafe.report.chart import COLOURS, data_uris, draw_chart
from rolesafe.report.jinja import render
from rolesafe.report.terminal import SECTIONS, trials
from rolesafe.report.view import View


def render_page(view: View) -> str:
    """Return `view` as an HTML page without scripts, fonts or images from elsewhere."""
    colours = [COLOURS[index % len(COLOURS)] for index in range(len(view.models))]
    return render(
        "page.html",
        view=view,
        sections=[(kind, title, [row for row in view.rows if row.kind == kind]) for kind, title in SECTIONS.items()],
        trials=trials,
        colours=colours,
        colour_of={model.name: colour for model, colour in zip(view.models, colours, strict=True)},
        chart=data_uris(lambda theme: draw_chart(view, theme=theme)),
    )
