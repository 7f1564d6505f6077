"""`StoredRecord`: a dataclass that is written as versioned JSON and read back to an equal object."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from typing import Any, ClassVar, Self

from rolesafe.files import read_versioned, read_whole, write_whole
from rolesafe.typed_json import from_values


class StoredRecord:
    """Base class of dataclasses that a file holds.

    Attributes:
        schema_version: Version that :meth:`to_json` writes.
        oldest_version: Oldest version that :meth:`from_json` reads.
        noun: Name of the record in errors, such as ``"an audit"``.
    """

    schema_version: ClassVar[int]
    oldest_version: ClassVar[int]
    noun: ClassVar[str]

    def to_json(self) -> str:
        """Return the record as JSON text; :meth:`from_json` gives an equal object.

        Raises:
            ValueError: A number is NaN or infinite.
        """
        record: Any = self
        values = {"schema_version": self.schema_version, **asdict(record)}
        return json.dumps(values, indent=1, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read the text that :meth:`to_json` wrote.

        Raises:
            ValueError: It is not such a text, or of a version that is not supported.
        """
        return from_values(cls, read_versioned(text, cls.schema_version, cls.noun, oldest=cls.oldest_version))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the JSON to `path` as a whole: an interruption leaves the old file or the new one."""
        write_whole(path, self.to_json())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Read a file that :meth:`save` wrote.

        Raises:
            ValueError: It is not such a file, or cut short.
            OSError: It cannot be read.
        """
        try:
            return cls.from_json(read_whole(path))
        except ValueError as error:
            raise ValueError(f"{os.fspath(path)}: {error}") from error
