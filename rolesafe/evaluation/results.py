"""Record of a comparison of models, and its JSON file."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from rolesafe.attacks import Rate
from rolesafe.evaluation.records import Environment, Run
from rolesafe.stored_record import StoredRecord

SCHEMA_VERSION = 4
"""Version of the JSON that :meth:`Results.save` writes. Earlier files load too: version 1 has no marks, versions 1
and 2 do not record which replies were right under attack, and fields that no report shows were removed in version 4."""

_NUMBERS = re.compile(r"\[\n\s+(-?\d[\d.eE+-]*(?:,\n\s+-?\d[\d.eE+-]*)*)\n\s+\]")
"""List of numbers over several lines. No string matches: JSON escapes its line breaks."""


@dataclass(frozen=True, kw_only=True)
class Results(StoredRecord):
    """Record of a comparison of models.

    Attributes:
        runs: One per size, model and seed.
        environment: Versions and hardware.
        settings: All else that decides the outcome: JSON values by name.
        complete: False after an interruption.
        forging: Tries to forge a role through text, and successes; None if not measured.
    """

    schema_version: ClassVar[int] = SCHEMA_VERSION
    oldest_version: ClassVar[int] = 1
    noun: ClassVar[str] = "results"

    runs: tuple[Run, ...]
    environment: Environment
    settings: Mapping[str, Any] = field(default_factory=dict)
    complete: bool = True
    forging: Rate | None = None

    @property
    def models(self) -> tuple[str, ...]:
        """Names of the models, in order of appearance."""
        return tuple(dict.fromkeys(run.model for run in self.runs))

    @property
    def seeds(self) -> tuple[int, ...]:
        """Seeds of the runs, in order of appearance."""
        return tuple(dict.fromkeys(run.seed for run in self.runs))

    @property
    def sizes(self) -> tuple[str, ...]:
        """Labels of the model sizes, in order of appearance."""
        return tuple(dict.fromkeys(run.size for run in self.runs))

    def of(self, size: str, model: str) -> tuple[Run, ...]:
        """Return the runs of one model at one size, one per seed."""
        return tuple(run for run in self.runs if run.size == size and run.model == model)

    @classmethod
    def merge(cls, parts: Sequence[Results]) -> Results:
        """Merge the records of separate processes of one study.

        Of a run in several parts, the finished record is taken; of unfinished ones, the one with more attacks.
        Environments that differ are joined by ``/``. The result is complete if every part is.

        Args:
            parts: Records with the same settings.

        Raises:
            ValueError: There is none, their settings differ, or two finished records of one run do.
        """
        if not parts:
            raise ValueError("`parts`: expected at least one, got none")
        runs: dict[tuple[str, str, int], Run] = {}
        for part in parts:
            for name in {*part.settings, *parts[0].settings}:
                one, other = (json.dumps(p.settings.get(name), sort_keys=True) for p in (parts[0], part))
                if one != other:  # compared as JSON: a tuple comes back as a list
                    raise ValueError(
                        f"`parts`: expected the same settings, got {one} and {other} for {name!r}. Merge the "
                        "parts of one study."
                    )
            for run in part.runs:
                runs[run.key] = _better(runs[run.key], run) if run.key in runs else run
        forging = [part.forging for part in parts if part.forging is not None]
        if len(set(forging)) > 1:
            raise ValueError(f"`parts`: expected one count of forged roles, got {', '.join(map(str, forging))}")
        return cls(
            runs=tuple(runs.values()),
            environment=Environment.joined([part.environment for part in parts]),
            settings=parts[0].settings,
            complete=all(part.complete for part in parts),
            forging=forging[0] if forging else None,
        )

    def to_json(self) -> str:
        """Return the results as JSON text, with the numbers of a list on one line.

        Raises:
            ValueError: A number is NaN or infinite.
        """
        return _NUMBERS.sub(lambda found: f"[{' '.join(found.group(1).split())}]", super().to_json())


def _better(one: Run, other: Run) -> Run:
    if one == other or (one.complete and not other.complete):
        return one
    if one.complete:
        raise ValueError(
            f"`parts`: expected one finished record of {one.key}, got two that differ. Keep one of the files."
        )
    return other if other.complete or len(other.attacks) >= len(one.attacks) else one
