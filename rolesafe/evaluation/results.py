"""The record of a whole comparison: what a report draws, and its JSON file."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from rolesafe.attacks import Outcome, Rate
from rolesafe.evaluation.records import AttackPoint, Environment, Run
from rolesafe.evaluation.utility import Utility
from rolesafe.files import read_versioned, read_whole, write_whole
from rolesafe.tasks import Message

SCHEMA_VERSION = 3
"""Version of the JSON that :meth:`Results.save` writes. Earlier files are read, too: those of version 1 have no marks,
those of version 2 do not say which replies under attack were right."""

_NUMBERS = re.compile(r"\[\n\s+(-?\d[\d.eE+-]*(?:,\n\s+-?\d[\d.eE+-]*)*)\n\s+\]")
"""A list of numbers over several lines. No string matches: JSON writes its line breaks as ``\\n``."""


@dataclass(frozen=True, kw_only=True)
class Results:
    """A comparison of models.

    Attributes:
        runs: One per size, model and seed.
        environment: Where it was made.
        settings: What else decides the outcome: JSON values by name.
        complete: Whether all that was planned has been run.
        forging: Tries to forge a role through text, and how many became one; ``None`` where not measured.
    """

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
        """The runs of one model at one size: one per seed."""
        return tuple(run for run in self.runs if run.size == size and run.model == model)

    @classmethod
    def merge(cls, parts: Sequence[Results]) -> Results:
        """One record of several that belong to one study, made by separate processes.

        Of a run that is in several parts, the finished one is taken; two unfinished ones: the one with more attacks.
        Environments that differ are written beside each other. The whole is complete if every part is.

        Args:
            parts: With the same settings.

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
                        f"`parts`: expected the same settings, got {one} and {other} for {name!r}; they are of two "
                        "studies"
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
        """The results as JSON text; :meth:`from_json` gives an equal object.

        Raises:
            ValueError: A number is NaN or infinite, which JSON does not have.
        """
        text = json.dumps({"schema_version": SCHEMA_VERSION, **asdict(self)}, indent=1, allow_nan=False)
        return _NUMBERS.sub(lambda found: f"[{' '.join(found.group(1).split())}]", text) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Results:
        """Read what :meth:`to_json` wrote.

        Raises:
            ValueError: It is not such a text, or of a newer version.
        """
        values = read_versioned(text, SCHEMA_VERSION, "results")
        try:
            environment = values.pop("environment")
            environment["versions"] = tuple((name, number) for name, number in environment["versions"])
            return cls(
                runs=tuple(_run(run) for run in values.pop("runs")),
                environment=Environment(**environment),
                forging=_rate(values.pop("forging", None)),
                **values,
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(
                f"`text`: expected the JSON of results, got an object that does not fit: {error}"
            ) from error

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the JSON to `path`; an interruption leaves the old file or the new one, never half of one."""
        write_whole(path, self.to_json())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Results:
        """Read a file that :meth:`save` wrote.

        Raises:
            ValueError: It is not such a file, or not all of one.
            OSError: It cannot be read.
        """
        try:
            return cls.from_json(read_whole(path))
        except ValueError as error:
            raise ValueError(f"{os.fspath(path)}: {error}") from error


def _better(one: Run, other: Run) -> Run:
    if one == other or (one.complete and not other.complete):
        return one
    if one.complete:
        raise ValueError(
            f"`parts`: expected one finished record of {one.key}, got two that differ; keep one of the files"
        )
    return other if other.complete or len(other.attacks) >= len(one.attacks) else one


def _run(values: dict[str, Any]) -> Run:
    mass = values.pop("attention_mass", None)
    rates: dict[str, Any] = {
        name: _rate(values.pop(name, None)) for name in ("worst_case", "bound", "false_refusals", "sep", "sep_all")
    }
    return Run(
        utility=_utility(values.pop("utility")),
        attacks=tuple(_point(point) for point in values.pop("attacks")),
        examples=tuple(values.pop("examples", ())),
        attention_mass=None if mass is None else tuple(tuple(layer) for layer in mass),
        **rates,
        **values,
    )


def _utility(values: dict[str, Any]) -> Utility:
    return Utility(
        families=tuple((family, kind, Rate(**rate)) for family, kind, rate in values.pop("families")),
        examples=tuple(values.pop("examples", ())),
        right=values.pop("right", ""),
        **{name: Rate(**rate) for name, rate in values.items()},
    )


def _point(values: dict[str, Any]) -> AttackPoint:
    return AttackPoint(
        success=Rate(**values.pop("success")),
        families=tuple((family, Rate(**rate)) for family, rate in values.pop("families")),
        samples=tuple(_outcome(o) for o in values.pop("samples")),
        n_steps=tuple(values.pop("n_steps", ())),
        losses=tuple(values.pop("losses", ())),
        failed=tuple((id, reason) for id, reason in values.pop("failed", ())),
        **values,
    )


def _outcome(values: dict[str, Any]) -> Outcome:
    messages: tuple[Message, ...] = tuple(values.pop("messages"))
    lists = {name: tuple(value) for name, value in values.items() if isinstance(value, list)}
    return Outcome(messages=messages, **{**values, **lists})


def _rate(values: dict[str, Any] | None) -> Rate | None:
    return None if values is None else Rate(**values)
