"""Read rows of a published set from JSON, JSON lines or CSV files, or from the hub. No code in a file is run."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

SUFFIXES: Final = (".json", ".jsonl", ".csv")
_HUB: Final = re.compile(r"[\w.-]+/[\w.-]+(@[\w.-]+)?(:[\w.-]+)?")


class RowError(ValueError):
    """A row cannot become an example."""


@dataclass(frozen=True)
class Row:
    """Row of a set.

    Attributes:
        fields: Content; methods raise if it is not an object with fields.
        source: File, or name on the hub.
        number: Position in the source, from 1; CSV headers do not count.
    """

    fields: Any
    source: str
    number: int

    @property
    def where(self) -> str:
        """Source and number, for errors."""
        return f"{self.source}, row {self.number}"

    def has(self, name: str) -> bool:
        """Return True if the row has the field.

        Raises:
            RowError: The row is not an object with fields.
        """
        return name in self._object()

    def get(self, *names: str) -> Any:
        """Return the first existing field of `names`.

        Raises:
            RowError: None exists, or the row is not an object with fields.
        """
        fields = self._object()
        for name in names:
            if name in fields:
                return fields[name]
        wanted = " or ".join(f"`{name}`" for name in names)
        raise RowError(f"{self.where}: expected a field {wanted}, got the fields {sorted(map(str, fields))}")

    def text(self, *names: str, empty: bool = False) -> str:
        """Return the first existing field of `names`, a text.

        Raises:
            RowError: None exists, or it is not a text, or it is empty and `empty` is False.
        """
        value = self.get(*names)
        if not isinstance(value, str) or not (empty or value.strip()):
            name = next(name for name in names if name in self.fields)
            raise RowError(f"{self.where}: `{name}`: expected a text that is not empty, got {value!r:.80}")
        return value

    def messages(self, name: str = "messages", *, plain: bool = True) -> list[dict[str, Any]]:
        """Return a field that is a list of chat messages; every `role` is a text.

        Args:
            name: Name of the field.
            plain: Require a text as every `content`; otherwise the caller checks it.

        Raises:
            RowError: The field is something else.
        """
        value = self.get(name)
        if not isinstance(value, list) or not all(isinstance(m, Mapping) and "role" in m for m in value) or not value:
            raise RowError(
                f"{self.where}: `{name}`: expected a list of messages with `role` and `content`, got {value!r:.80}"
            )
        for m in value:
            if not isinstance(m["role"], str) or not m["role"].strip():
                raise RowError(f"{self.where}: `{name}`: expected a text as `role`, got {m['role']!r:.80}")
            if plain and not isinstance(m.get("content"), str):
                got = f"{m['content']!r:.80}" if "content" in m else f"the fields {sorted(map(str, m))}"
                raise RowError(f"{self.where}: `{name}`: expected a text as `content`, got {got}")
        return [dict(m) for m in value]

    def _object(self) -> Mapping[str, Any]:
        if not isinstance(self.fields, Mapping):
            raise RowError(f"{self.where}: expected an object with fields, got {self.fields!r:.80}")
        return self.fields


def read(path_or_hub: str | Path) -> list[Row]:
    """Return all rows.

    Args:
        path_or_hub: File that ends in .json, .jsonl or .csv, folder of such files, or data set on the hub as
            ``owner/name``, ``owner/name@revision``, ``owner/name:split`` (needs `datasets`).

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: A file is not in its format, or there are no rows.
        ImportError: The hub is asked for and `datasets` is not installed.
    """
    path = Path(path_or_hub)
    if path.is_dir():
        files = sorted(p for p in path.rglob("*") if p.suffix in SUFFIXES and p.is_file())
        rows = [row for file in files for row in _file(file, str(file.relative_to(path)))]
    elif path.is_file():
        rows = list(_file(path, path.name))
    elif path.suffix not in SUFFIXES and _HUB.fullmatch(str(path_or_hub)):
        rows = list(_hub(str(path_or_hub)))
    else:
        raise FileNotFoundError(
            f"`path_or_hub`: no such file: {str(path_or_hub)!r}; expected a {', '.join(SUFFIXES)} file, a folder of "
            "such files, or the name of a data set on the hub as 'owner/name'"
        )
    if not rows:
        raise ValueError(f"`path_or_hub`: {str(path_or_hub)!r} is an empty set; expected at least one row")
    return rows


def _file(path: Path, source: str) -> Iterator[Row]:
    readers = {".json": _json, ".jsonl": _jsonl, ".csv": _csv}
    if path.suffix not in readers:
        raise ValueError(f"`path_or_hub`: {source}: expected a file that ends in {', '.join(SUFFIXES)}")
    for number, fields in enumerate(readers[path.suffix](path, source), 1):
        yield Row(fields, source, number)


def _json(path: Path, source: str) -> Sequence[Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8-sig"))
    except ValueError as error:
        raise ValueError(f"`path_or_hub`: {source}: expected JSON in UTF-8: {error}") from error
    return found if isinstance(found, list) else [found]


def _jsonl(path: Path, source: str) -> Iterator[Any]:
    with path.open(encoding="utf-8-sig") as lines:
        for number, line in enumerate(lines, 1):
            if line.strip():
                try:
                    yield json.loads(line)
                except ValueError as error:
                    raise ValueError(f"`path_or_hub`: {source}, line {number}: expected JSON: {error}") from error


def _csv(path: Path, source: str) -> Iterator[Any]:
    with path.open(encoding="utf-8-sig", newline="") as lines:
        try:
            yield from csv.DictReader(lines, restkey="more columns", restval="")
        except (csv.Error, UnicodeDecodeError) as error:
            raise ValueError(f"`path_or_hub`: {source}: expected CSV in UTF-8: {error}") from error


def _hub(name: str) -> Iterator[Row]:
    """Yield rows of a data set on the hub. `datasets` >= 4 refuses data sets that come as a script."""
    try:
        import datasets
    except ImportError as error:
        raise ImportError(
            f"`path_or_hub`: {name!r} is not a file, and the hub needs the package `datasets`. Run "
            "pip install 'datasets>=4', or download the set and pass its path."
        ) from error
    if int(datasets.__version__.split(".")[0]) < 4:
        raise ImportError(
            f"`path_or_hub`: {name!r} from the hub needs datasets >= 4, which runs no code of a data set, got "
            f"{datasets.__version__}. Run pip install 'datasets>=4'."
        )
    name, _, split = name.partition(":")
    name, _, revision = name.partition("@")
    found = datasets.load_dataset(name, revision=revision or None)
    if split and split not in found:
        raise ValueError(f"`path_or_hub`: {name!r} has no split {split!r}; expected one of {sorted(found)}")
    if not split and len(found) > 1:
        raise ValueError(f"`path_or_hub`: {name!r} has the splits {sorted(found)}: choose one, '{name}:{min(found)}'")
    for number, fields in enumerate(found[split or next(iter(found))], 1):
        yield Row(fields, name, number)
