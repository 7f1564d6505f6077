"""Files of the tools: written as a whole or not at all, and an exit status for Ctrl-C."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn


def write_whole(path: Path, text: str) -> None:
    """Write `text` to `path`; an interruption or a full disk leaves what was there.

    Raises:
        OSError: It cannot be written; the error names `path`.
    """
    scratch = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with scratch.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(scratch, path)
    except OSError as error:
        raise OSError(error.errno, error.strerror or str(error), str(path)) from error
    finally:
        scratch.unlink(missing_ok=True)


def run_main(main: Callable[[], int]) -> NoReturn:
    """Run the main function of a tool and end the process with its status: 130 after Ctrl-C, 1 on a failed write."""
    try:
        status = main()
    except KeyboardInterrupt:
        print("Interrupted.", file=sys.stderr)
        status = 130
    except OSError as error:
        print(f"error: {error.filename!r} cannot be used: {error.strerror}", file=sys.stderr)
        status = 1
    sys.exit(status)
