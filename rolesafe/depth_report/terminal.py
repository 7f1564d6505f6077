"""Terminal output of a depth report."""

from __future__ import annotations

from rich.console import Console
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from rolesafe.depth_report.records import DepthReport
from rolesafe.depth_report.rows import cell, headline, sections
from rolesafe.terminal import as_text, one_line


def draw(report: DepthReport, console: Console) -> None:
    """Print `report`; markup and escape sequences in names are escaped."""
    against = f" against {report.base}" if report.base else ""
    about = [
        one_line(f"{report.model}: {report.architecture}{against}"),
        one_line(f"{report.n_examples} examples: {report.examples}"),
        one_line(f"recovery tokens: {', '.join(report.recovery_tokens)}"),
        *headline(report),
    ]
    console.print(Panel(Text("\n".join(about)), title="rolesafe depth", title_align="left"))
    for section in sections(report):
        console.print(as_text(section.title, "bold"))
        if section.columns:
            table = Table(show_edge=False, pad_edge=False)
            table.add_column(section.axis, justify="right")
            for name, _ in section.columns:
                table.add_column(as_text(name), justify="right", overflow="fold")
            for at, points in section.rows:
                table.add_row(str(at), *(cell(point, section.percent) for point in points))
            console.print(table)
        console.print(as_text(section.note, "dim"))
        console.print()
    for note in report.notes:
        console.print(as_text(f"Note: {note}", "dim"))
    if not report.complete:
        console.print(Text("INTERRUPTED: only finished measurements are shown.", style="bold yellow"))
