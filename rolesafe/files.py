"""Files of records: atomic writes, locks, and JSON with a schema version."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

from filelock import FileLock, Timeout

from rolesafe.arguments import is_integer


def write_whole(path: str | os.PathLike[str], content: str | bytes) -> Path:
    """Write `content` to `path` as a whole: an interruption leaves the old file or the new one.

    Of several processes that write the same file, the last one wins.

    Raises:
        OSError: It cannot be written; the error names `path`, and the old file is kept.
    """
    target = Path(path)
    scratch = target.with_name(f".{target.name}.{os.getpid()}.part")
    data = content.encode("utf-8") if isinstance(content, str) else content
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with scratch.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())  # or a power cut leaves an empty file under the final name
        scratch.replace(target)
    except OSError as error:
        raise OSError(error.errno, error.strerror or str(error), str(target)) from error
    finally:
        with suppress(OSError):
            scratch.unlink(missing_ok=True)
    return target


def check_writable(path: str | os.PathLike[str], argument: str) -> None:
    """Check that a file can be written to `path`, without creating one.

    Args:
        path: File to write later.
        argument: Its name in errors, such as ``"--json"``.

    Raises:
        ValueError: It is a directory or no regular file, or the nearest existing folder takes no new file.
    """
    target = Path(path)
    try:
        if target.exists() and not target.is_file():
            what = "the directory" if target.is_dir() else "the special file"
            raise ValueError(f"`{argument}`: expected a file to write, got {what} {str(target)!r}. Pass another path.")
        folder = next(parent for parent in target.absolute().parents if parent.exists())
        with TemporaryFile(dir=folder):  # file modes do not reveal read-only and full file systems
            pass
    except OSError as error:
        raise ValueError(
            f"`{argument}`: expected a path that can be written, got {str(target)!r}: {error.strerror}. Pass "
            "another path."
        ) from error


@contextmanager
def whole_directory(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a scratch directory that replaces `path` if the block ends without an error."""
    target = Path(path)
    scratch = target.with_name(f".{target.name}.{os.getpid()}.part")
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    try:
        yield scratch
        if target.exists():
            shutil.rmtree(target)
        scratch.replace(target)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


@contextmanager
def locked(directory: str | os.PathLike[str], argument: str = "directory") -> Iterator[None]:
    """Create `directory` and lock it against other processes; the lock ends with the process.

    Args:
        directory: Output directory of a run.
        argument: Its name in errors.

    Raises:
        ValueError: Another process holds the lock, or the directory cannot be written.
    """
    folder = Path(directory)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / ".lock", timeout=0)
        lock.acquire()
    except Timeout as error:
        raise ValueError(
            f"`{argument}`: expected a directory that no other run is writing into, got {str(folder)!r}. Wait for that "
            "run to end, or pass another directory."
        ) from error
    except OSError as error:
        raise ValueError(
            f"`{argument}`: expected a directory that can be written, got {str(folder)!r}: {error.strerror}. Pass "
            "another directory."
        ) from error
    try:
        yield
    finally:
        lock.release()


def read_whole(path: str | os.PathLike[str]) -> str:
    """Return the text of a file.

    Raises:
        ValueError: It is not UTF-8.
        OSError: It cannot be read.
    """
    try:
        return Path(path).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"`path`: expected text in UTF-8, got something else: {error}") from error


def read_json(path: str | os.PathLike[str], what: str) -> dict[str, Any]:
    """Return the JSON object in a file.

    Args:
        path: The file.
        what: Its name in errors, such as ``"a study's settings"``.

    Raises:
        ValueError: It holds no JSON object, or is cut short.
        OSError: It cannot be read.
    """
    try:
        values = json.loads(Path(path).read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"`path`: expected {what} as JSON in {os.fspath(path)!r}, got something else: {error}. Delete it."
        ) from error
    if not isinstance(values, dict):
        raise ValueError(
            f"`path`: expected {what}, a JSON object, in {os.fspath(path)!r}, got {type(values).__name__}. Delete it."
        )
    return values


def read_versioned(text: str, newest: int, what: str, *, oldest: int = 1) -> dict[str, Any]:
    """Return the JSON object in `text` without its `schema_version`.

    Args:
        text: JSON.
        newest: Newest supported version.
        what: Name of the record in errors, such as ``"results"``.
        oldest: Oldest supported version.

    Raises:
        ValueError: It is no such object, or of another version; the message has the version of rolesafe that wrote it.
    """
    try:
        values = json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"`text`: expected the JSON of {what}, got something else: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"`text`: expected a JSON object, got {type(values).__name__}")
    version = values.pop("schema_version", None)
    if is_integer(version, oldest) and version <= newest:
        return values
    action = f"Create {what} again" if is_integer(version, 1) and version < oldest else "Upgrade rolesafe"
    raise ValueError(
        f"`schema_version`: expected {oldest} to {newest}, got {version!r}{_writer(values)}. {action} to read it."
    )


def _writer(values: dict[str, Any]) -> str:
    """Return the version of rolesafe that a record names as its writer, for an error message."""
    try:
        return f", written by rolesafe {dict(values['environment']['versions'])['rolesafe']}"
    except (KeyError, TypeError, ValueError):
        return ""
