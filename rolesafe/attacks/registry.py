"""The attacks by name, and the parameter points they are run at."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rolesafe.attacks import builders


@dataclass(frozen=True, kw_only=True)
class AttackFamily:
    """An attack that can be configured.

    Attributes:
        name: Its name.
        about: What it does, in a few words, for reports.
        build: ``build(example, rng, delimiters, **parameters) -> messages``.
        grid: Parameter points it is run at, mildest first; the first one holds the defaults.
        quick: The points for a short run.
        forges: Whether it needs the delimiters of the chat template.
    """

    name: str
    about: str
    build: Callable[..., builders.Messages]
    grid: tuple[Mapping[str, Any], ...]
    quick: tuple[Mapping[str, Any], ...]
    forges: bool = False

    @property
    def defaults(self) -> Mapping[str, Any]:
        """All parameters with their default values."""
        return self.grid[0]


@dataclass(frozen=True, kw_only=True)
class AttackConfig:
    """One attack at one parameter point.

    Args:
        name: A name in :data:`ATTACKS`.
        parameters: Parameters that differ from the defaults; after creation, all of them.
        seed: Of the attack's own choices (phrasing, filler).
        batch_size: Most conversations in a batch.
        max_new_tokens: Longest reply, in tokens.

    Raises:
        ValueError: The attack or a parameter is not known, or a number is not positive.
    """

    name: str
    parameters: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0
    batch_size: int = 32
    max_new_tokens: int = 16

    def __post_init__(self) -> None:
        family = look_up(self.name)
        unknown = sorted(set(self.parameters) - set(family.defaults))
        if unknown:
            raise ValueError(f"`parameters`: attack {self.name!r} has no {unknown}; expected {sorted(family.defaults)}")
        object.__setattr__(self, "parameters", {**family.defaults, **self.parameters})
        for name in ("batch_size", "max_new_tokens"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"`{name}`: expected a number >= 1, got {value!r}")
        for name in ("repeats", "turns"):
            value = self.parameters.get(name, 1)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"`parameters`: expected `{name}` >= 1, got {value!r}")

    @property
    def label(self) -> str:
        """Name and parameters in one string, such as ``"dilution(repeats=8)"``."""
        inside = ", ".join(f"{key}={value}" for key, value in sorted(self.parameters.items()))
        return f"{self.name}({inside})" if inside else self.name


def _points(name: str, values: Iterable[Any], **fixed: Any) -> tuple[Mapping[str, Any], ...]:
    return tuple({name: value, **fixed} for value in values)


_FORGED = tuple({"turns": turns, "delimiters": literal} for literal in (True, False) for turns in (1, 4, 16))
_PLACED = (
    *_points("at", (1.0, 0.75, 0.5, 0.25, 0.0), words=70, repeats=6, system="first"),
    *_points("at", (1.0, 0.5, 0.0), words=70, repeats=6, system="last"),
)
_FAMILIES = (
    AttackFamily(name="none", about="no attack", build=builders.none, grid=({},), quick=({},)),
    AttackFamily(
        name="ignore-previous",
        about="an order to ignore the rules, then another rule",
        build=builders.ignore_previous,
        grid=_points("repeats", (1, 4)),
        quick=_points("repeats", (1,)),
    ),
    AttackFamily(
        name="mimicry",
        about="the opposite rule in the system text's own words",
        build=builders.mimicry,
        grid=_points("place", ("after", "before")),
        quick=_points("place", ("after",)),
    ),
    AttackFamily(
        name="fake-system",
        about="forged system turns, with and without the literal delimiters",
        build=builders.fake_system,
        grid=_FORGED,
        quick=(_FORGED[1],),
        forges=True,
    ),
    AttackFamily(
        name="dilution",
        about="the opposite rule, many times",
        build=builders.dilution,
        grid=_points("repeats", (1, 2, 4, 8, 16, 32, 64)),
        quick=_points("repeats", (1, 8, 32)),
    ),
    AttackFamily(
        name="position",
        about="six injections at some place of a long harmless text",
        build=builders.position,
        grid=_PLACED,
        quick=(_PLACED[0], _PLACED[2], _PLACED[4]),
    ),
)

ATTACKS: dict[str, AttackFamily] = {family.name: family for family in _FAMILIES}
"""The attacks by name."""


def look_up(name: str) -> AttackFamily:
    """The attack called `name`.

    Raises:
        ValueError: There is none.
    """
    if name not in ATTACKS:
        raise ValueError(f"`name`: unknown attack {name!r}; expected one of {sorted(ATTACKS)}")
    return ATTACKS[name]


def suite(
    names: Sequence[str] | None = None,
    *,
    quick: bool = False,
    seed: int = 0,
    batch_size: int = 32,
    max_new_tokens: int = 16,
) -> list[AttackConfig]:
    """Configurations of the attacks at all their points (`quick`: at a few).

    Args:
        names: Names in :data:`ATTACKS`; default: all. ``"none"`` is what the others have to be compared with.
        quick: Fewer points.
        seed: As in :class:`AttackConfig`.
        batch_size: As in :class:`AttackConfig`.
        max_new_tokens: As in :class:`AttackConfig`.

    Raises:
        ValueError: A name is not known.
    """
    families = [look_up(name) for name in (ATTACKS if names is None else names)]
    return [
        AttackConfig(
            name=family.name, parameters=point, seed=seed, batch_size=batch_size, max_new_tokens=max_new_tokens
        )
        for family in families
        for point in (family.quick if quick else family.grid)
    ]
