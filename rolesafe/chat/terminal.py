"""Terminal interface of the chat: commands, colours, streaming. Supports piped input."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from contextlib import suppress

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from rolesafe.chat.session import Session
from rolesafe.retrain.show import role_text
from rolesafe.terminal import as_text, visible

HELP = (
    "/system TEXT  set the system prompt, /system alone removes it\n"
    "/tool TEXT    add a tool's result and get a reply\n"
    "/reset        clear the conversation, keep the system prompt\n"
    "/quit         end"
)


def typed_lines(console: Console) -> Iterator[str]:
    """Yield the lines of standard input, with a prompt on a terminal."""
    if not sys.stdin.isatty():
        for line in sys.stdin:
            yield line.rstrip("\n")
        return
    with suppress(EOFError):
        while True:
            yield console.input(Text("     user ", "bold yellow"), markup=False)


def run_chat(session: Session, lines: Iterable[str], console: Console, *, echo: bool) -> None:
    """Answer line after line until ``/quit`` or the end of the lines.

    Args:
        session: Conversation.
        lines: Input lines.
        console: Console of the output.
        echo: True to print user turns, for input from a pipe.
    """
    if session.system:
        console.print(role_text("system", session.system), soft_wrap=True)
    for line in lines:
        command, _, rest = line.strip().partition(" ")
        rest = rest.strip()
        if not command:
            continue
        if command == "/quit":
            return
        if command == "/reset":
            session.reset()
            console.print("Conversation reset.", style="dim")
        elif command == "/system":
            session.system = rest
            console.print(role_text("system", rest or "(none)"), soft_wrap=True)
        elif command == "/tool":
            if not rest:
                console.print(Text("error: /tool: expected the tool's result, got none", "red"))
                continue
            _turn(session, "tool", rest, console, show=True)
        elif command.startswith("/"):
            console.print(Text(HELP if command == "/help" else f"error: unknown command {visible(command)}\n{HELP}"))
        else:
            _turn(session, "user", line.strip(), console, show=echo)


def _turn(session: Session, role: str, content: str, console: Console, *, show: bool) -> None:
    if show:
        console.print(role_text(role, content), soft_wrap=True)
    session.add(role, content)
    texts = [""] * len(session.speakers)
    try:
        if console.is_terminal:
            # text beyond the screen height is printed at the end
            with Live(console=console, refresh_per_second=12, vertical_overflow="visible") as live:

                def write(i: int, text: str) -> None:
                    texts[i] = text
                    live.update(_drawn(session, texts))

                session.answer(write)
        else:
            texts = list(session.answer(lambda i, text: None))
            for speaker, text in zip(session.speakers, texts, strict=True):
                name = f"[{speaker.name}] " if len(texts) > 1 else ""
                console.print(role_text("assistant", f"{name}{text}"), soft_wrap=True)
    except ValueError as error:
        session.undo()
        console.print(Text("error: ", "bold red") + as_text(error), soft_wrap=True)
    except KeyboardInterrupt:
        session.undo()
        console.print("Reply stopped; the turn is removed. /quit ends the chat.", style="yellow")


def _drawn(session: Session, texts: list[str]) -> Text | Table:
    """Return the replies so far, side by side where there are two."""
    if len(texts) == 1:
        return role_text("assistant", texts[0])
    table = Table(expand=True)
    for speaker in session.speakers:
        table.add_column(as_text(speaker.name), ratio=1, overflow="fold")
    table.add_row(*(Text(visible(text), "blue") for text in texts))
    return table
