"""Write results as a table, a chart or a page."""

from __future__ import annotations

import os
from pathlib import Path

from rich.console import Console

from rolesafe.evaluation import Results
from rolesafe.files import write_whole
from rolesafe.report.build import build_view
from rolesafe.report.chart import draw_chart
from rolesafe.report.markdown import render_markdown
from rolesafe.report.page import render_page
from rolesafe.report.terminal import draw_table

CHART = "attack-success.png"
PAGE = "report.html"
MARKDOWN = "results.md"


def print_table(results: Results, console: Console | None = None) -> None:
    """Print `results` as a table."""
    draw_table(build_view(results), console or Console())


def markdown_table(results: Results) -> str:
    """Return `results` as a Markdown table with its notes."""
    return render_markdown(build_view(results))


def write_chart(results: Results, path: str | os.PathLike[str]) -> Path:
    """Write the chart of `results` to `path` as a PNG image.

    Raises:
        ImportError: matplotlib is missing.
    """
    return write_whole(path, draw_chart(build_view(results)))


def write_page(results: Results, path: str | os.PathLike[str]) -> Path:
    """Write `results` to `path` as one self-contained HTML page, with the chart in a light and a dark theme.

    Raises:
        ImportError: matplotlib is missing.
    """
    return write_whole(path, render_page(build_view(results)))


def write_report(results: Results, directory: str | os.PathLike[str]) -> tuple[Path, ...]:
    """Write page, chart and Markdown table into `directory`, and return their paths.

    Raises:
        ImportError: matplotlib is missing.
    """
    folder = Path(directory)
    return (
        write_page(results, folder / PAGE),
        write_chart(results, folder / CHART),
        write_whole(folder / MARKDOWN, markdown_table(results)),
    )
