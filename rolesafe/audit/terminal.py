"""Terminal output of an audit, at 80 columns and more."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console, Group
from rich.panel import Panel
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from rolesafe.audit.records import AuditReport, MassLevel
from rolesafe.audit.verdicts import share
from rolesafe.evaluation.stages import StageProgress
from rolesafe.evaluation.verdict import NotMeasured
from rolesafe.terminal import as_text, one_line

LABELS = {True: ("OK", "bold green"), False: ("RISK", "bold red"), None: ("OPEN", "bold yellow")}
MOST_HEADS, MOST_LAYERS = 16, 48
"""Largest map of layers and heads to print; larger ones are in the JSON only."""


def draw(report: AuditReport, console: Console) -> None:
    """Print `report`; markup and escape sequences in names and replies are escaped."""
    roles = "none" if report.roles is None else ", ".join(_parts(report)) or "role layer without any part"
    about = [
        one_line(f"{report.model}: {report.architecture}, {report.n_parameters:,} parameters; role layer: {roles}"),
        one_line(f"{report.n_examples} examples: {report.examples}"),
    ]
    if not isinstance(used := report.utility, NotMeasured):
        about.append(f"without attack: benign tasks solved {share(used.benign)}; word for word {share(used.exact)}")
    console.print(Panel(Text("\n".join(about)), title="rolesafe audit", title_align="left"))
    grid = Table.grid(padding=(0, 1))
    grid.add_column(width=4, no_wrap=True)
    grid.add_column(overflow="fold")
    for verdict in report.verdicts:
        label, style = LABELS[verdict.passed]
        lines = [as_text(verdict.claim, "bold"), as_text(verdict.text)]
        lines += [as_text(f"- {line}", "dim") for line in verdict.numbers]
        grid.add_row(Text(label, style=style), Group(*lines))
        grid.add_row("", "")
    console.print(grid)
    if not isinstance(report.mass, NotMeasured):
        _draw_map(report.mass.levels[-1], console)
    for note in report.notes:
        console.print(as_text(f"Note: {note}", "dim"))
    if not report.complete:
        console.print(Text("INTERRUPTED: only finished measurements are shown.", style="bold yellow"))


def _parts(report: AuditReport) -> Iterator[str]:
    """Yield the parts of the role layer: the values that differ from a configuration with everything off."""
    from rolesafe.config import RoleConfig

    assert report.roles is not None
    values = report.roles
    off = RoleConfig(bias=False).to_dict()
    skip = {"format_version", "roles", "privileged", "generated", "layers", "impl", "embedding_std", "learn_share"}
    for name, value in values.items():
        if name not in skip and name in off and value != off[name]:
            yield name if value is True else f"{name}={value}"


def _draw_map(level: MassLevel, console: Console) -> None:
    layers = [layer for layer in level.mass.layers if layer.reply_mean]
    heads = max((len(layer.reply_mean) for layer in layers), default=0)
    if not 0 < heads <= MOST_HEADS or len(layers) > MOST_LAYERS:
        return
    table = Table.grid(padding=(0, 1))
    table.add_column(no_wrap=True)
    for _ in range(heads):
        table.add_column(justify="right", no_wrap=True, min_width=3)
    table.add_row(Text("head", style="dim"), *(Text(str(h), style="dim") for h in range(heads)))
    for i, layer in enumerate(layers):
        table.add_row(Text(f"layer {i}", style="dim"), *(f"{100 * value:.0f}" for value in layer.reply_mean))
    title = f"Attention mass on privileged tokens where the reply starts, in %, injection x{level.repeats}"
    console.print(Text(title))
    console.print(table)
    console.print()


@contextmanager
def progress_bar(console: Console) -> Iterator[StageProgress]:
    """Show one bar per stage; yield the function that advances them. Draws nothing without a terminal."""
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        tasks: dict[str, object] = {}

        def step(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = bar.add_task(one_line(stage), total=total)
            task = tasks[stage]
            bar.update(task, completed=done, total=total)  # type: ignore[arg-type]

        yield step
