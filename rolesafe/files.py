"""Records on disk: written as a whole or not at all, and read only by a version that knows them."""

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


def write_whole(path: str | os.PathLike[str], content: str | bytes) -> Path:
    """Write `content` to `path`; an interruption leaves the old file or the new one, never half of one. Processes that
    write the same file at a time do not meet: the last one's stays.

    Raises:
        OSError: It cannot be written; the error names `path`, and what was there is still there.
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
    """Raise where no file could be written to `path`, without leaving anything there: to be called before the work.

    Args:
        path: File to write later.
        argument: What an error calls it, such as ``"--json"``.

    Raises:
        ValueError: It is a directory or no regular file, or the nearest folder that exists takes no new file.
    """
    target = Path(path)
    try:
        if target.exists() and not target.is_file():
            what = "the directory" if target.is_dir() else "the special file"
            raise ValueError(
                f"`{argument}`: expected a file to write, got {what} {str(target)!r}; name another, as result.json"
            )
        folder = next(parent for parent in target.absolute().parents if parent.exists())
        with TemporaryFile(dir=folder):  # tried, because modes do not tell of read-only and full file systems
            pass
    except OSError as error:
        raise ValueError(
            f"`{argument}`: expected a path that can be written, got {str(target)!r}: {error.strerror}; name another "
            "one"
        ) from error


@contextmanager
def whole_directory(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a scratch directory that becomes `path`, in place of what is there, if the block ends without an error."""
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
    """Make `directory` and keep every other run out of it; the lock ends with the process, however that ends.

    Args:
        directory: Where a run writes.
        argument: What an error calls it.

    Raises:
        ValueError: Another process holds it, or it cannot be written.
    """
    folder = Path(directory)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / ".lock", timeout=0)
        lock.acquire()
    except Timeout as error:
        raise ValueError(
            f"`{argument}`: expected a directory that no other run is writing into, got {str(folder)!r}; wait for that "
            "run to end, or give another directory"
        ) from error
    except OSError as error:
        raise ValueError(
            f"`{argument}`: expected a directory that can be written, got {str(folder)!r}: {error.strerror}; give "
            "another directory"
        ) from error
    try:
        yield
    finally:
        lock.release()


def read_whole(path: str | os.PathLike[str]) -> str:
    """Return the text of a file.

    Raises:
        ValueError: It is no text in UTF-8.
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
        what: What an error calls it, such as ``"a study's settings"``.

    Raises:
        ValueError: It holds no JSON object, or not all of one.
        OSError: It cannot be read.
    """
    try:
        values = json.loads(Path(path).read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"`path`: expected {what} as JSON in {os.fspath(path)!r}, got something else: {error}; delete that file"
        ) from error
    if not isinstance(values, dict):
        raise ValueError(
            f"`path`: expected {what}, a JSON object, in {os.fspath(path)!r}, got {type(values).__name__}; delete it"
        )
    return values


def read_versioned(text: str, newest: int, what: str, *, oldest: int = 1) -> dict[str, Any]:
    """The JSON object in `text` without its `schema_version`.

    Args:
        text: JSON.
        newest: Newest version that is understood.
        what: What an error calls the record, such as ``"results"``.
        oldest: Oldest version that is understood.

    Raises:
        ValueError: It is no such object, or of another version.
    """
    try:
        values = json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"`text`: expected the JSON of {what}, got something else: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"`text`: expected a JSON object, got {type(values).__name__}")
    version = values.pop("schema_version", None)
    if isinstance(version, int) and not isinstance(version, bool) and 1 <= version < oldest:
        raise ValueError(
            f"`schema_version`: expected {oldest} to {newest}, got {version}: {what} of an earlier version of rolesafe "
            "lacks what is needed today; make it again"
        )
    if not isinstance(version, int) or isinstance(version, bool) or not oldest <= version <= newest:
        raise ValueError(
            f"`schema_version`: expected {oldest} to {newest}, got {version!r}; upgrade rolesafe for newer files"
        )
    return values
