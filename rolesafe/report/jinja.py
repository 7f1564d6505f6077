"""HTML templates. Text from users, models and attackers cannot become markup.

Three layers: jinja2 escapes every value, :func:`rolesafe.terminal.visible` spells out control and direction characters,
and the content security policy of the page forbids scripts and external resources.
"""

from __future__ import annotations

from importlib.resources import files
from typing import Any

from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup

from rolesafe import __version__
from rolesafe.report.view import interval, percent
from rolesafe.terminal import visible

LONGEST_MESSAGE = 4000
"""Longest message or reply on a page, in characters; the rest is cut and counted."""


def render(name: str, *, package: str = "rolesafe.report", **values: Any) -> str:
    """Return the template `name` of `package`, filled with `values`, as a self-contained HTML page.

    Templates may extend ``base.html`` of this package, which prints ``view.command`` and ``view.settings``.
    """

    def read(template: str) -> str:
        where = "rolesafe.report" if template == "base.html" else package
        return files(where).joinpath(template).read_text(encoding="utf-8")

    environment = Environment(
        loader=FunctionLoader(read), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(
        visible=visible, percent=percent, interval=interval, shorten=lambda text: shorten(text, LONGEST_MESSAGE)
    )
    environment.globals["picture"] = _picture
    return environment.get_template(name).render(version=__version__, **values)


def shorten(text: str, limit: int) -> str:
    """Return `text` cut in the middle to about `limit` characters, with the number of characters left out."""
    if len(text) <= limit:
        return text
    head = limit * 2 // 3
    return f"{text[:head]}\n[... {len(text) - limit} characters left out ...]\n{text[len(text) - (limit - head) :]}"


def _picture(images: tuple[str, str], about: str) -> Markup:
    """Return an image with its light and dark version; `about` is the alternative text."""
    light, dark = images
    source = Markup('<source srcset="{}" media="(prefers-color-scheme: dark)">').format(dark)
    image = Markup('<img src="{}" alt="{}">').format(light, visible(about))
    return Markup("<picture>") + source + image + Markup("</picture>")
