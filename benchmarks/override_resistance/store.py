"""Records of a study on disk: one file per run, written by separate processes."""

from __future__ import annotations

import os
import re
from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path

from rolesafe.evaluation.results import Results

Key = tuple[str, str, int]
"""Size, model and seed of a run."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9.+_-]*")


@dataclass(frozen=True)
class Store:
    """Directory with the JSON of one run per file.

    Attributes:
        directory: Created by the first :meth:`save`.
    """

    directory: Path

    def path(self, key: Key) -> Path:
        """Return the path of a run.

        Raises:
            ValueError: Size or model cannot be part of a file name.
        """
        size, model, seed = key
        parts = {"size": size, "model": model} if size else {"model": model}
        for name, value in parts.items():
            if not _NAME.fullmatch(value) or "--" in value:
                raise ValueError(
                    f"`{name}`: expected a letter or digit, then letters, digits, '.', '+', '_' or single '-', got "
                    f"{value!r}; it becomes part of a file's name"
                )
        return self.directory / f"{'--'.join(parts.values())}--{seed}.json"

    def save(self, results: Results) -> Path:
        """Write the record of one run atomically; an earlier record of the same run is replaced.

        Raises:
            ValueError: `results` does not have exactly one run.
        """
        if len(results.runs) != 1:
            raise ValueError(f"`results`: expected one run, got {len(results.runs)}; save them one by one")
        path = self.path(results.runs[0].key)
        self.directory.mkdir(parents=True, exist_ok=True)
        results.save(path)
        return path

    def load(self, key: Key) -> Results | None:
        """Return the record of a run, or None."""
        path = self.path(key)
        return Results.load(path) if path.exists() else None

    def read(self, planned: Collection[Key] | None = None) -> Results:
        """Return all runs as one record, in the order of `planned` (default: of the file names).

        Args:
            planned: Runs of the study. The record is complete only if all of them are finished; other files are
                ignored.

        Raises:
            ValueError: There is no file, a file is not a record, or files belong to different studies.
            OSError: A file cannot be read.
        """
        if planned is None:
            paths = sorted(self.directory.glob("*--*.json"))
        else:
            paths = [path for path in dict.fromkeys(self.path(key) for key in planned) if path.exists()]
        if not paths:
            raise ValueError(f"`directory`: expected files of runs in {os.fspath(self.directory)!r}, found none")
        merged = Results.merge([Results.load(path) for path in paths])
        missing = len(set(planned) - {run.key for run in merged.runs}) if planned is not None else 0
        return replace(merged, complete=merged.complete and not missing and all(run.complete for run in merged.runs))
