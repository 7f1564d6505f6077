"""Terminal output of conversations, with roles in colour."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from rich.console import Console
from rich.table import Table
from rich.text import Text

from rolesafe.retrain.config import KINDS
from rolesafe.retrain.preparation import Prepared
from rolesafe.retrain.row import PreparedRow
from rolesafe.retrain.sources import Sources
from rolesafe.tasks import Message
from rolesafe.terminal import as_text, visible

ROLE_STYLES: Final[Mapping[str, str]] = {
    "system": "green",
    "developer": "cyan",
    "user": "yellow",
    "assistant": "blue",
    "tool": "magenta",
}
"""Colour of each role."""

PREVIEW: Final = 5
"""Number of rows that a dry run prints."""


def role_text(role: str, content: str = "") -> Text:
    """Return a role's name and a content in the role's colour, with control characters escaped except line feeds."""
    style = ROLE_STYLES.get(role, "white")
    return Text.assemble((f"{role:>9} ", f"bold {style}"), (visible(content), style))


def print_row(console: Console, row: PreparedRow) -> None:
    """Print a prepared row with its roles in colour."""
    console.rule(as_text(f"{row.id}: {row.detail}  ({row.source})"), align="left", style="dim")
    messages: list[Message] = list(row.messages)
    messages.append({"role": "assistant", "content": row.reply or "(written by the model before training)"})
    for message in messages:
        console.print(role_text(message["role"], message["content"]), soft_wrap=True)


def print_preview(console: Console, sources: Sources, prepared: Prepared, rows: int = PREVIEW) -> None:
    """Print a few rows, one of each kind first, and the counts of all kinds.

    Args:
        console: Console of the output.
        sources: Source data.
        prepared: Prepared rows.
        rows: Number of rows to print.
    """
    firsts = [next((row for row in prepared.rows if row.kind == kind), None) for kind in KINDS]
    chosen = [row for row in firsts if row is not None]
    chosen += [row for row in prepared.rows if row.kind == "injected" and row not in chosen]
    chosen += [row for row in prepared.rows if row not in chosen][:rows]
    for row in chosen[:rows]:
        print_row(console, row)
    console.rule(style="dim")
    table = Table(title=Text(f"{len(prepared.rows):,} prepared rows from {len(sources.rows):,} rows of data"))
    table.add_column("kind")
    table.add_column("rows", justify="right")
    for kind, count in prepared.counts.items():
        table.add_row(as_text(kind, "bold"), f"{count:,}")
        for name, number in prepared.details.items():
            if name.startswith(f"{kind}: "):
                table.add_row(as_text(f"  {name.removeprefix(f'{kind}: ')}"), f"{number:,}")
    console.print(table)
    if sources.dropped:
        console.print(as_text(f"{len(sources.dropped)} rows of data left out, the first one: {sources.dropped[0]}"))
