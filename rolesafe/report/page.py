"""The report as one self-contained page. Whatever a user, a model or an attacker wrote is data in it.

Three things see to that: jinja2 escapes every value, :func:`rolesafe.report.text.visible` spells out control and
direction characters, and the page's own content security policy forbids scripts and anything from elsewhere.
"""

from __future__ import annotations

import base64
from importlib.resources import files

from jinja2 import Environment, StrictUndefined

from rolesafe import __version__
from rolesafe.report.chart import COLOURS, DARK, LIGHT, draw_chart
from rolesafe.report.terminal import SECTIONS, trials
from rolesafe.report.text import shorten, visible
from rolesafe.report.view import View, interval, percent

LONGEST_MESSAGE = 4000
"""Characters of a message or reply that are shown; the page says how many were left out."""


def render_page(view: View) -> str:
    """`view` as an HTML page that needs nothing else: no script, no font, no picture from elsewhere."""
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters.update(
        visible=visible, percent=percent, interval=interval, shorten=lambda text: shorten(text, LONGEST_MESSAGE)
    )
    template = environment.from_string(files("rolesafe.report").joinpath("page.html").read_text(encoding="utf-8"))
    colours = [COLOURS[index % len(COLOURS)] for index in range(len(view.models))]
    return template.render(
        view=view,
        sections=[(kind, title, [row for row in view.rows if row.kind == kind]) for kind, title in SECTIONS.items()],
        trials=trials,
        colours=colours,
        colour_of={model.name: colour for model, colour in zip(view.models, colours, strict=True)},
        light=_data_uri(draw_chart(view, theme=LIGHT)),
        dark=_data_uri(draw_chart(view, theme=DARK)),
        version=__version__,
    )


def _data_uri(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode('ascii')}"
