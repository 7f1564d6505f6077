"""Results of an evaluation as a table, a chart and one self-contained page."""

from typing import Any

from rolesafe.report.write import markdown_table, print_table, write_chart, write_page, write_report

__all__ = ["markdown_table", "print_table", "write_chart", "write_page", "write_report"]


def __getattr__(name: str) -> Any:
    if name in ("comparison", "write_comparison"):
        new = "benchmarks.override_resistance.run_report"
        raise ImportError(f"rolesafe.report.{name} has moved to {new} (a source checkout has it)")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
