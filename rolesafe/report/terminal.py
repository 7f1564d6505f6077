"""The report as a table for the terminal."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table
from rich.text import Text

from rolesafe.evaluation import SeedMean
from rolesafe.report.view import Kind, View, interval, percent
from rolesafe.terminal import as_text

SECTIONS: dict[Kind, str] = {
    "utility": "Utility (higher is better)",
    "attack": "Attack success (lower is better)",
}


def draw_table(view: View, console: Console) -> None:
    """Print `view` as a table; markup and escape sequences in untrusted text have no effect."""
    table = Table(
        title=Text("Plain and role-aware models under attack"),
        caption=Text(f"mean over {view.seeds}, 95% interval below it, n = trials over all seeds"),
        show_edge=False,
        pad_edge=False,
    )
    table.add_column("", overflow="fold")
    for model in view.models:
        table.add_column(as_text(model.name), justify="right", no_wrap=True)
    table.add_column("n", justify="right")
    if view.with_versus:
        table.add_column(as_text(f"{view.models[-1].name} against {view.models[0].name}"), max_width=20)
    for kind, title in SECTIONS.items():
        rows = [row for row in view.rows if row.kind == kind]
        if rows:
            table.add_section()
            table.add_row(Text(title, style="bold"))
        for row in rows:
            cells = [as_text(f"  {row.label}")]
            cells += [_cell(mean, kind) for mean in row.means]
            cells.append(Text(trials(row.means), style="dim"))
            if view.with_versus:
                cells.append(as_text(row.versus))
            table.add_row(*cells)
    console.print(table)
    if view.partial is not None:
        console.print(as_text(f"PARTIAL: {view.partial}", "bold yellow"))
    for note in view.notes:
        console.print(as_text(note, "dim"))
    if view.headline:
        console.print(as_text(view.headline))


def trials(means: tuple[SeedMean | None, ...]) -> str:
    """Return the number of trials of a row: one number where all models have the same."""
    counts = sorted({mean.n for mean in means if mean is not None})
    return " / ".join(map(str, counts))


def _cell(mean: SeedMean | None, kind: Kind) -> Text:
    if mean is None:
        return Text("not measured", style="dim")
    good = mean.value if kind == "utility" else 1.0 - mean.value
    style = "green" if good >= 0.9 else "red" if good < 0.5 else ""
    return Text.assemble((percent(mean.value), style), (f"\n{interval(mean)}", "dim"))
