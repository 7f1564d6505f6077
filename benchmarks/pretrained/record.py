"""Record of one model: a JSON file with a row for every reply, written atomically.

A row is `[source, case, verdicts, reply]`: the row of the published set, the name of the question, one character for
each verdict of the suite, and the reply; suites that measure numbers have `[source, case, number, ...]`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from rolesafe.files import read_versioned, read_whole, write_whole

VERSION: Final = 1


@dataclass
class Part:
    """Rows of one suite.

    Attributes:
        settings: Settings that determine the rows.
        verdicts: Names of the verdict characters, or numbers, of a row.
        rows: Rows so far.
        total: Number of rows of a complete run; 0 before it is known.
        seconds: Wall time in seconds.
    """

    settings: dict[str, Any]
    verdicts: list[str]
    rows: list[list[Any]] = field(default_factory=list)
    total: int = 0
    seconds: float = 0.0

    @property
    def complete(self) -> bool:
        """True where all rows are measured."""
        return 0 < self.total <= len(self.rows)

    @property
    def done(self) -> set[tuple[str, str]]:
        """Source and case of every row."""
        return {(row[0], row[1]) for row in self.rows}


@dataclass
class Record:
    """Measurements of one model.

    Attributes:
        arm: Name in tables, such as ``"plain SFT"``; records of one arm are its training seeds.
        training_seed: Training seed of the checkpoint.
        model: Path or hub id, as given.
        about: Facts about the model and the machine.
        parts: Rows by suite.
    """

    arm: str
    model: str
    training_seed: int = 0
    about: dict[str, Any] = field(default_factory=dict)
    parts: dict[str, Part] = field(default_factory=dict)

    def part(self, suite: str, settings: Mapping[str, Any], verdicts: Iterable[str]) -> Part:
        """Return the rows of a suite, including those of an earlier run.

        Raises:
            ValueError: The earlier rows have other settings.
        """
        found = self.parts.setdefault(suite, Part(dict(settings), list(verdicts)))
        if different := [k for k in settings if found.settings.get(k) != settings[k]]:
            raise ValueError(
                f"`record`: expected rows of {suite!r} with equal settings, got other {', '.join(different)}: "
                f"{[found.settings.get(k) for k in different]} instead of {[settings[k] for k in different]}. "
                "Give another file, or discard these rows with --restart."
            )
        return found

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the record, one row for each line."""
        head = {"schema_version": VERSION, **{k: getattr(self, k) for k in ("arm", "model", "training_seed", "about")}}
        parts = []
        for name, part in self.parts.items():
            values = {k: v for k, v in asdict(part).items() if k != "rows"}
            rows = ",\n".join(json.dumps(row, ensure_ascii=False) for row in part.rows)
            parts.append(f'{json.dumps(name)}: {json.dumps(values)[:-1]}, "rows": [\n{rows}\n]}}')
        write_whole(path, f'{json.dumps(head)[:-1]},\n"parts": {{\n' + ",\n".join(parts) + "\n}}\n")

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Record:
        """Read a record that :meth:`save` wrote.

        Raises:
            ValueError: The file is no such record.
            OSError: The file cannot be read.
        """
        values = read_versioned(read_whole(path), VERSION, f"an evaluation of a model ({path})")
        try:
            parts = {name: Part(**part) for name, part in values.pop("parts").items()}
            return cls(**values, parts=parts)
        except (TypeError, AttributeError, KeyError) as error:
            raise ValueError(
                f"`record`: expected the record of an evaluation in {str(path)!r}, got something else: {error}. Give "
                "a file that `evaluate --record` wrote."
            ) from error

    def without_replies(self) -> Record:
        """Return a small copy for the repository without the replies, because replies may quote the test sets."""
        parts = {}
        for name, part in self.parts.items():
            rows = [[*row[:3], *(c for c in row[3:] if isinstance(c, (int, float)))] for row in part.rows]
            parts[name] = Part(**{**asdict(part), "rows": rows})
        return Record(self.arm, Path(self.model).name, self.training_seed, dict(self.about), parts)
