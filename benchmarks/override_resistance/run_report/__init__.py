"""Report of a run: one HTML page, one Markdown file, one CSV file."""

from __future__ import annotations

import os
from pathlib import Path

from benchmarks.override_resistance.run_report.build import build_comparison
from benchmarks.override_resistance.run_report.csv_export import render_csv
from benchmarks.override_resistance.run_report.html import render_comparison
from benchmarks.override_resistance.run_report.markdown import render_markdown
from rolesafe.evaluation import Results
from rolesafe.files import write_whole

__all__ = ["build_comparison", "render_comparison", "render_csv", "render_markdown", "write_comparison"]

STEM = "override-resistance"


def write_comparison(results: Results, directory: str | os.PathLike[str]) -> tuple[Path, ...]:
    """Write the report as HTML, Markdown and CSV into `directory`, and return the paths.

    ``results.settings["comparison"]`` names baseline, candidate and published mechanisms, see
    :class:`benchmarks.override_resistance.targets.Plan`.

    Raises:
        ValueError: That plan names a model missing from `results`.
        ImportError: matplotlib is missing.
    """
    target = Path(directory) / STEM
    view = build_comparison(results)
    return (
        write_whole(target.with_suffix(".html"), render_comparison(view)),
        write_whole(target.with_suffix(".md"), render_markdown(view)),
        write_whole(target.with_suffix(".csv"), render_csv(results)),
    )
