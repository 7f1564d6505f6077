"""What reaches a terminal: text from elsewhere made visible, errors on one line, and the exit status of a command.

Exit status: 0; 1 where the work failed; 2 where an argument, or what it names, cannot be used; 130 after Ctrl-C.
"""

from __future__ import annotations

import logging
import sys
import traceback
import unicodedata
import warnings
from collections.abc import Callable
from types import TracebackType
from typing import Any, NoReturn

from rich.console import Console
from rich.text import Text

INTERRUPTED = 130
"""Exit status after Ctrl-C, as of a process that SIGINT ended."""

_KEPT = "\n"
_HIDDEN = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}
"""Unicode categories that are drawn as nothing, or that change how the text around them is drawn."""
_MARKS = {"Mn", "Me"}

MOST_MARKS = 6
"""Combining marks on one letter that are drawn: more than any script needs, fewer than it takes to cover other text."""


def visible(text: str) -> str:
    r"""`text` with every control and invisible character spelled out, as in ``\u202e`` or ``\x1b``.

    A terminal then gets no escape sequence, a page no change of direction, and a reader sees zero-width characters that
    an attacker hid between letters. Of a heap of combining marks only the first ones are drawn, the others are spelled
    out, too. Line feeds stay. This does not escape HTML or rich's markup: the writers do.
    """
    found, marks = [], 0
    for character in text:
        category = unicodedata.category(character)
        marks = marks + 1 if category in _MARKS else 0
        hidden = category in _HIDDEN and character not in _KEPT
        found.append(_spell(character) if hidden or marks > MOST_MARKS else character)
    return "".join(found)


def one_line(text: object) -> str:
    """Return `text` as :func:`visible` spells it, on one line: line feeds are spelled out, too.

    A name with a line feed could otherwise print a line that looks like ours.
    """
    return visible(str(text)).replace("\n", "\\x0a")


def as_text(text: object, style: str = "") -> Text:
    """Return `text` for a rich console, table or panel: on one line, without escape sequences, markup or emoji codes.

    Everything that is printed and was not written by this project goes through this function.
    """
    return Text(one_line(text), style)


def print_error(error: object, status: int) -> int:
    """Print an error on one line of standard error, and return `status`."""
    said = str(error)
    if isinstance(error, OSError) and error.filename is not None:
        said = f"{str(error.filename)!r} cannot be used: {error.strerror}"
    lines = [line.strip() for line in said.splitlines()]
    text = " ".join(filter(None, lines)) or type(error).__name__
    Console(stderr=True).print(Text("error: ", style="bold red"), as_text(text), sep="", soft_wrap=True)
    return status


def status_of(command: Callable[[], Any]) -> int:
    """Run a command and return its exit status; None counts as 0. Other errors are faults of ours, and are raised."""
    try:
        status = command()
    except ValueError as error:
        return print_error(error, 2)
    except (OSError, ImportError) as error:
        return print_error(error, 1)
    except KeyboardInterrupt:
        status = INTERRUPTED
    if status == INTERRUPTED:
        Console(stderr=True).print("Interrupted.", style="yellow")
    return status if isinstance(status, int) else 0


def run_main(main: Callable[[], int | None]) -> NoReturn:
    """Run the main function of a script and end the process with its exit status."""
    guard_terminal()
    sys.exit(status_of(main))


def guard_terminal() -> None:
    """Send what libraries print of a checkpoint (logs, warnings, tracebacks) through :func:`visible` in this process.

    Characters that the terminal's encoding lacks are spelled out, too, instead of ending the program after its work.
    """
    make = logging.getLogRecordFactory()

    def record(*args: Any, **keywords: Any) -> logging.LogRecord:
        made = make(*args, **keywords)
        made.msg, made.args = visible(made.getMessage()), ()
        if isinstance(made.exc_info, tuple):
            made.exc_text = visible("".join(traceback.format_exception(*made.exc_info)))
        return made

    logging.setLogRecordFactory(record)
    warnings.showwarning = _show_warning
    sys.excepthook = _show_traceback
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def _show_warning(message: Warning | str, category: type[Warning], *where: Any, **more: Any) -> None:
    sys.stderr.write(visible(f"{category.__name__}: {message}\n"))


def _show_traceback(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    sys.stderr.write(visible("".join(traceback.format_exception(kind, error, trace))))


def _spell(character: str) -> str:
    code = ord(character)
    if code < 0x100:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def first_line(error: BaseException) -> str:
    """Return the first line of an error that is not empty."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
