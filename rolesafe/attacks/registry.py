"""The attacks by name, and their configurations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rolesafe.attacks.catalogue import FAMILIES
from rolesafe.attacks.family import AttackFamily

ATTACKS: dict[str, AttackFamily] = {family.name: family for family in FAMILIES}
"""The attacks by name."""

TEXT_ATTACKS: tuple[str, ...] = tuple(family.name for family in FAMILIES if family.build is not None)
"""Names of the attacks that need nothing of the model but its replies, ``"none"`` included: one reply per example."""


@dataclass(frozen=True, kw_only=True)
class AttackConfig:
    """One attack at one parameter point.

    Args:
        name: A name in :data:`ATTACKS`.
        parameters: Parameters that differ from the defaults; after creation, all of them. Those of a search are its
            budget.
        seed: Of the attack's own choices (phrasing, filler, candidates).
        batch_size: Most conversations in a batch; of a search, most candidates.
        max_new_tokens: Longest reply, in tokens.

    Raises:
        ValueError: The attack or a parameter is not known, a value is of another kind than the default's, or a number
            is not positive.
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
        for name, default in family.defaults.items():
            value, kind = self.parameters[name], type(default)
            if not (isinstance(value, (int, float)) if kind is float else isinstance(value, kind)) or (
                isinstance(value, bool) and kind is not bool
            ):
                raise ValueError(f"`parameters`: expected `{name}` to be {_KINDS[kind]}, got {value!r}")

    @property
    def label(self) -> str:
        """Name and parameters in one string, such as ``"dilution(repeats=8)"``."""
        inside = ", ".join(f"{key}={value}" for key, value in sorted(self.parameters.items()) if value != "")
        return f"{self.name}({inside})" if inside else self.name


_KINDS = {bool: "True or False", int: "a whole number", float: "a number", str: "a text"}


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
        names: Names in :data:`ATTACKS`; default: all, gradient attacks included. :data:`TEXT_ATTACKS` are those that
            cost one reply per example. ``"none"`` is what the others have to be compared with.
        quick: Fewer points, and smaller budgets of the searches.
        seed: As in :class:`AttackConfig`.
        batch_size: As in :class:`AttackConfig`.
        max_new_tokens: As in :class:`AttackConfig`.

    Raises:
        ValueError: A name is not known, or there is none.
    """
    if isinstance(names, str) or (names is not None and not names):
        raise ValueError(f"`names`: expected a sequence of names out of {sorted(ATTACKS)}, or None, got {names!r}")
    families = [look_up(name) for name in (ATTACKS if names is None else names)]
    return [
        AttackConfig(
            name=family.name, parameters=point, seed=seed, batch_size=batch_size, max_new_tokens=max_new_tokens
        )
        for family in families
        for point in (family.quick if quick else family.grid)
    ]
