"""Terminal output: escaped text, errors on one line, and exit statuses.

Exit status: 0 success; 1 failure; 2 unusable argument, or file or model that it names; 130 after Ctrl-C.
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
"""Exit status after Ctrl-C, as after SIGINT."""

_KEPT = "\n"
_HIDDEN = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}
"""Unicode categories of invisible characters and of characters that change the text around them."""
_MARKS = {"Mn", "Me"}

MOST_MARKS = 6
"""Combining marks kept on one letter: more than any script needs, too few to cover other text."""


def visible(text: str) -> str:
    r"""Return `text` with every control and invisible character escaped, as in ``\u202e`` or ``\x1b``.

    This removes terminal escape sequences and changes of text direction, and shows zero-width characters. Combining
    marks after the first :data:`MOST_MARKS` on a letter are escaped too. Line feeds, HTML and rich markup are kept.
    """
    found, marks = [], 0
    for character in text:
        category = unicodedata.category(character)
        marks = marks + 1 if category in _MARKS else 0
        hidden = category in _HIDDEN and character not in _KEPT
        found.append(_spell(character) if hidden or marks > MOST_MARKS else character)
    return "".join(found)


def one_line(text: object) -> str:
    """Return `text` escaped by :func:`visible`, with line feeds escaped too: a name cannot forge a line of output."""
    return visible(str(text)).replace("\n", "\\x0a")


def as_text(text: object, style: str = "") -> Text:
    """Return `text` for a rich console, table or panel: on one line, without escape sequences, markup or emoji codes.

    Use it for all text from models, files and users.
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
    """Run a command and return its exit status; None counts as 0. Unexpected errors are raised."""
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
    """Run the main function of a script and exit with its status."""
    guard_terminal()
    sys.exit(status_of(main))


def guard_terminal() -> None:
    """Escape all logs, warnings and tracebacks of this process by :func:`visible`.

    Characters that the terminal's encoding lacks are escaped too.
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
    """Return the first non-empty line of an error."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
