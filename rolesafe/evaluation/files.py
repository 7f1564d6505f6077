"""Records on disk: written as a whole or not at all, and read only by a version that knows them."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any


def write_whole(path: str | os.PathLike[str], content: str | bytes) -> Path:
    """Write `content` to `path`; an interruption leaves the old file or the new one, never half of one. Processes that
    write the same file at a time do not meet: the last one's stays."""
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = target.with_name(f".{target.name}.{os.getpid()}.part")
    scratch.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)
    scratch.replace(target)
    return target


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
    except json.JSONDecodeError as error:
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
