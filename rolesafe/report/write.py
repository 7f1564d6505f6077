"""The functions others call: results in, a table, a chart or a page out."""

from __future__ import annotations

import os
from pathlib import Path

from rich.console import Console

from rolesafe.evaluation import Results
from rolesafe.files import write_whole
from rolesafe.report.build import build_view
from rolesafe.report.chart import draw_chart
from rolesafe.report.comparison.build import build_comparison
from rolesafe.report.comparison.markdown import render_markdown as render_comparison_markdown
from rolesafe.report.comparison.page import render_comparison
from rolesafe.report.comparison.table import render_csv
from rolesafe.report.markdown import render_markdown
from rolesafe.report.page import render_page
from rolesafe.report.terminal import draw_table

CHART = "attack-success.png"
PAGE = "report.html"
MARKDOWN = "results.md"
COMPARISON = "override-resistance"
"""Name of the files of a study, without their ending."""


def print_table(results: Results, console: Console | None = None) -> None:
    """Print `results` as a table."""
    draw_table(build_view(results), console or Console())


def markdown_table(results: Results) -> str:
    """`results` as a Markdown table."""
    return render_markdown(build_view(results))


def write_chart(results: Results, path: str | os.PathLike[str]) -> Path:
    """Write the chart of `results`, a PNG image, to `path`."""
    return write_whole(path, draw_chart(build_view(results)))


def write_page(results: Results, path: str | os.PathLike[str]) -> Path:
    """Write `results` as one self-contained HTML page to `path`; the chart is in it, for light and for dark screens."""
    return write_whole(path, render_page(build_view(results)))


def write_report(results: Results, directory: str | os.PathLike[str]) -> tuple[Path, ...]:
    """Write chart, page and Markdown table into `directory`, and return their paths."""
    folder = Path(directory)
    return (
        write_page(results, folder / PAGE),
        write_chart(results, folder / CHART),
        write_whole(folder / MARKDOWN, markdown_table(results)),
    )


def write_comparison(results: Results, directory: str | os.PathLike[str]) -> tuple[Path, ...]:
    """Write the study of many mechanisms into `directory` as a page, Markdown and CSV, and return their paths.

    ``results.settings["comparison"]`` says which mechanism is checked against which, see
    :class:`rolesafe.evaluation.Plan`.

    Raises:
        ValueError: That plan names a model that is not in the study.
    """
    target = Path(directory) / COMPARISON
    view = build_comparison(results)
    return (
        write_whole(target.with_suffix(".html"), render_comparison(view)),
        write_whole(target.with_suffix(".md"), render_comparison_markdown(view)),
        write_whole(target.with_suffix(".csv"), render_csv(results)),
    )
