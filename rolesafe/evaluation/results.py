"""The record of a whole comparison: what a report draws, and its JSON file."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rolesafe.attacks import AttackResult, Outcome, Rate
from rolesafe.evaluation.resistance import Resistance
from rolesafe.evaluation.utility import Utility
from rolesafe.tasks import Message

SCHEMA_VERSION = 1
"""Version of the JSON that :meth:`Results.save` writes."""


@dataclass(frozen=True, kw_only=True)
class Environment:
    """Where a run was made.

    Attributes:
        versions: Pairs of a package and its version; Python is one of them.
        hardware: The processor or accelerator in words.
        commit: The source commit, where it is known.
    """

    versions: tuple[tuple[str, str], ...]
    hardware: str
    commit: str | None = None


@dataclass(frozen=True, kw_only=True)
class AttackPoint:
    """The success of one attack at one parameter point.

    Attributes:
        attack: Name of the attack.
        parameters: Its parameters.
        seed: Of the attack's own choices.
        success: Attack success.
        families: Attack success for each task family, as pairs.
        n_left_out: Examples whose attacked conversation did not fit into the model's context.
        complete: Whether all examples were attacked.
        samples: A few of the attacked conversations.
    """

    attack: str
    parameters: Mapping[str, Any]
    seed: int
    success: Rate
    families: tuple[tuple[str, Rate], ...] = ()
    n_left_out: int = 0
    complete: bool = True
    samples: tuple[Outcome, ...] = ()

    @classmethod
    def of(cls, result: AttackResult, *, samples: int = 0) -> AttackPoint:
        """The record of `result`, with the first `samples` outcomes."""
        return cls(
            attack=result.attack,
            parameters=dict(result.parameters),
            seed=result.config.seed,
            success=result.rate,
            families=tuple(sorted(result.by_family().items())),
            n_left_out=len(result.left_out),
            complete=result.complete,
            samples=result.outcomes[:samples],
        )


@dataclass(frozen=True, kw_only=True)
class Run:
    """One trained model, measured. Attack success is never recorded without utility.

    Attributes:
        model: Name of the model in the comparison, such as ``"plain"`` or ``"role-aware"``.
        seed: Of its training.
        n_parameters: Number of parameters.
        train_seconds: Wall-clock time of training, in seconds.
        utility: Without any attack.
        attacks: One per attack and parameter point.
        worst_case: Per-sample OR over all attacks; ``None`` where none has been run yet.
        complete: Whether the suite was finished.
    """

    model: str
    seed: int
    n_parameters: int
    train_seconds: float
    utility: Utility
    attacks: tuple[AttackPoint, ...] = ()
    worst_case: Rate | None = None
    complete: bool = True

    @classmethod
    def of(
        cls,
        resistance: Resistance,
        *,
        model: str,
        seed: int,
        n_parameters: int,
        train_seconds: float,
        utility: Utility,
        samples: int = 0,
    ) -> Run:
        """The record of a measured model, with the first `samples` conversations of each attack."""
        return cls(
            model=model,
            seed=seed,
            n_parameters=n_parameters,
            train_seconds=train_seconds,
            utility=utility,
            attacks=tuple(AttackPoint.of(r, samples=samples) for r in resistance.results),
            worst_case=resistance.worst_case,
            complete=resistance.complete,
        )


@dataclass(frozen=True, kw_only=True)
class Results:
    """A comparison of models.

    Attributes:
        runs: One per model and seed.
        environment: Where it was made.
        settings: What else decides the outcome: JSON values by name.
        complete: Whether all that was planned has been run.
    """

    runs: tuple[Run, ...]
    environment: Environment
    settings: Mapping[str, Any] = field(default_factory=dict)
    complete: bool = True

    @property
    def models(self) -> tuple[str, ...]:
        """Names of the models, in order of appearance."""
        return tuple(dict.fromkeys(run.model for run in self.runs))

    @property
    def seeds(self) -> tuple[int, ...]:
        """Seeds of the runs, in order of appearance."""
        return tuple(dict.fromkeys(run.seed for run in self.runs))

    def to_json(self) -> str:
        """The results as JSON text; :meth:`from_json` gives an equal object.

        Raises:
            ValueError: A number is NaN or infinite, which JSON does not have.
        """
        return json.dumps({"schema_version": SCHEMA_VERSION, **asdict(self)}, indent=1, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Results:
        """Read what :meth:`to_json` wrote.

        Raises:
            ValueError: It is not such a text, or of a newer version.
        """
        try:
            values = json.loads(text)
        except json.JSONDecodeError as error:
            raise ValueError(f"`text`: expected the JSON of results, got something else: {error}") from error
        if not isinstance(values, dict):
            raise ValueError(f"`text`: expected a JSON object, got {type(values).__name__}")
        version = values.pop("schema_version", None)
        if not isinstance(version, int) or not 1 <= version <= SCHEMA_VERSION:
            raise ValueError(
                f"`schema_version`: expected 1 to {SCHEMA_VERSION}, got {version!r}; upgrade rolesafe for newer files"
            )
        try:
            environment = values.pop("environment")
            environment["versions"] = tuple((name, number) for name, number in environment["versions"])
            runs = tuple(_run(run) for run in values.pop("runs"))
            return cls(runs=runs, environment=Environment(**environment), **values)
        except (KeyError, TypeError) as error:
            raise ValueError(
                f"`text`: expected the JSON of results, got an object that does not fit: {error}"
            ) from error

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the JSON to `path`; an interruption leaves the old file or the new one, never half of one."""
        target = Path(path)
        scratch = target.with_name(target.name + ".part")
        scratch.write_text(self.to_json(), encoding="utf-8")
        os.replace(scratch, target)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Results:
        """Read a file that :meth:`save` wrote.

        Raises:
            ValueError: It is not such a file.
            OSError: It cannot be read.
        """
        return cls.from_json(Path(path).read_text(encoding="utf-8"))


def _run(values: dict[str, Any]) -> Run:
    found = values.pop("utility")
    families = tuple((family, kind, Rate(**rate)) for family, kind, rate in found.pop("families"))
    utility = Utility(families=families, **{name: Rate(**rate) for name, rate in found.items()})
    worst = values.pop("worst_case")
    return Run(
        utility=utility,
        attacks=tuple(_point(point) for point in values.pop("attacks")),
        worst_case=None if worst is None else Rate(**worst),
        **values,
    )


def _point(values: dict[str, Any]) -> AttackPoint:
    return AttackPoint(
        success=Rate(**values.pop("success")),
        families=tuple((family, Rate(**rate)) for family, rate in values.pop("families")),
        samples=tuple(_outcome(o) for o in values.pop("samples")),
        **values,
    )


def _outcome(values: dict[str, Any]) -> Outcome:
    messages: tuple[Message, ...] = tuple(values.pop("messages"))
    return Outcome(messages=messages, **values)
