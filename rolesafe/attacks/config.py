"""Configurations of attacks: one frozen dataclass per attack, with the parameters as fields."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from random import Random
from types import NoneType, UnionType
from typing import Any, ClassVar, Literal, Self, get_args, get_origin, get_type_hints

from rolesafe.arguments import is_integer, is_number
from rolesafe.attacks.delimiters import Delimiters, Marks
from rolesafe.attacks.search import Found, SearchContext
from rolesafe.tasks import Example, Message

Messages = tuple[Message, ...]
Point = Mapping[str, Any]
"""Values of an attack's parameters."""


_KINDS: dict[str, type[AttackConfig]] = {}
"""Classes by the name of their attack, filled as their modules are imported; the package imports all."""


def look_up(name: str) -> type[AttackConfig]:
    """Return the configuration class of the attack called `name`.

    Raises:
        ValueError: There is no such attack.
    """
    if name not in _KINDS:
        raise ValueError(f"`name`: expected one of {sorted(_KINDS)}, got the unknown attack {name!r}")
    return _KINDS[name]


@dataclass(frozen=True, kw_only=True)
class AttackConfig:
    """Hold the parameters, the seed and the budget of one attack.

    The base class of all configurations. :data:`rolesafe.attacks.ATTACKS` maps the name of each attack to its class.

    Attributes:
        name: Name of the attack.
        about: Description in a few words, for reports.
        typed: True if a user can type the attack. Embeddings and a prefilled reply cannot be typed: they are an upper
            bound, not part of the worst case over text attacks.
        grid: Parameter points of :func:`rolesafe.attacks.suite`, mildest first. The first one holds the defaults.
        quick: Parameter points of a quick suite.

    Args:
        seed: Seed of the attack's own choices (phrasing, filler, candidates).
        batch_size: Maximum number of conversations in a batch; in a search, of candidates.
        max_new_tokens: Maximum length of a reply, in tokens.

    Raises:
        ValueError: A field has a value of the wrong type or out of range.
        TypeError: Called on a base class, or with a field that the attack does not have.

    >>> from rolesafe.attacks import DilutionConfig
    >>> DilutionConfig(repeats=8, seed=1).to_dict()
    {'name': 'dilution', 'parameters': {'repeats': 8}, 'seed': 1, 'batch_size': 32, 'max_new_tokens': 16}
    """

    name: ClassVar[str] = ""
    about: ClassVar[str] = ""
    typed: ClassVar[bool] = True
    grid: ClassVar[tuple[Point, ...]] = ({},)
    quick: ClassVar[tuple[Point, ...]] = ({},)

    seed: int = field(default=0, metadata={"least": None})
    batch_size: int = 32
    max_new_tokens: int = 16

    def __init_subclass__(cls, **values: Any) -> None:
        super().__init_subclass__(**values)
        if cls.name:
            _KINDS[cls.name] = cls

    def __new__(cls, *args: Any, **values: Any) -> Self:
        if not cls.name:
            kind = _KINDS.get(values.get("name", ""), _KINDS["gcg"])
            (key, value), *_ = kind.grid[0].items() or [("seed", 0)]
            raise TypeError(
                f"`{cls.__name__}`: expected the class of one attack, got a base class. Write "
                f"`{kind.__name__}({key}={value!r})` instead of `AttackConfig(name={kind.name!r}, parameters={{...}})`."
            )
        return super().__new__(cls)

    def __post_init__(self) -> None:
        hints = get_type_hints(type(self))
        for one in fields(self):
            _check(one.name, getattr(self, one.name), hints[one.name], one.metadata)

    @property
    def parameters(self) -> dict[str, Any]:
        """Return the parameters that the grid names, and the others that differ from their defaults."""
        own = [f for f in fields(self) if f.name not in _COMMON]
        changed = [f.name for f in own if getattr(self, f.name) != f.default]
        return {name: getattr(self, name) for name in dict.fromkeys([*self.grid[0], *changed])}

    @property
    def label(self) -> str:
        """Return name and parameters in one string, such as ``"dilution(repeats=8)"``."""
        inside = ", ".join(f"{key}={value}" for key, value in sorted(self.parameters.items()) if value != "")
        return f"{self.name}({inside})" if inside else self.name

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values with the attack's name, which :meth:`from_dict` reads back."""
        common = {name: getattr(self, name) for name in _COMMON}
        return {"name": self.name, "parameters": self.parameters, **common}

    @staticmethod
    def from_dict(values: Mapping[str, Any]) -> AttackConfig:
        """Return the configuration that :meth:`to_dict` wrote, in this or an earlier version.

        Raises:
            ValueError: The attack, or one of its parameters, does not exist.
        """
        given = {**values, **values.get("parameters", {})}
        given.pop("parameters", None)
        kind = look_up(given.pop("name", ""))
        known = [f.name for f in fields(kind)]
        if unknown := sorted(set(given) - set(known)):
            raise ValueError(f"`parameters`: expected some of {known} for attack {kind.name!r}, got {unknown}")
        return kind(**given)


_COMMON = tuple(f.name for f in fields(AttackConfig))


@dataclass(frozen=True, kw_only=True)
class TextAttackConfig(AttackConfig, ABC):
    """Base class of the attacks that build their messages from an example, at the cost of one reply.

    Attributes:
        marks: Makes the delimiters that :meth:`build` forges turns with; ``None`` for an attack that forges none. A
            field ``delimiters=False`` switches it off.
    """

    marks: ClassVar[Marks | None] = None

    @abstractmethod
    def build(self, example: Example, rng: Random, marks: Delimiters | None) -> Messages:
        """Return the attacked messages of `example`.

        Only the message of the role :attr:`Example.target` may be edited. The system message may move.

        Args:
            example: The example to attack.
            rng: Source of all random choices.
            marks: Delimiters of the chat template, or None, see :attr:`marks`.
        """


@dataclass(frozen=True, kw_only=True)
class SearchAttackConfig(AttackConfig, ABC):
    """Base class of the attacks that search for their messages with the model."""

    @abstractmethod
    def search(self, context: SearchContext) -> Found:
        """Search for messages that make the model break the rule of one example."""


def option(default: Any, **limits: Any) -> Any:
    """Return a dataclass field with limits that :class:`AttackConfig` checks.

    Args:
        default: Default value.
        limits: ``least`` and ``most`` (inclusive) or ``above`` (exclusive) of a number, or ``choices``. Without limits
            an ``int`` must be >= 1.
    """
    return field(default=default, metadata=limits)


def points(name: str, values: Iterable[Any], **fixed: Any) -> tuple[Point, ...]:
    """Return parameter points along one parameter."""
    return tuple({name: value, **fixed} for value in values)


def join(*parts: str) -> str:
    """Return the parts with one space between them."""
    return " ".join(part.strip() for part in parts)


def _check(name: str, value: Any, hint: Any, limits: Mapping[str, Any]) -> None:
    """Refuse a value that does not fit the type hint and the limits of its field."""
    choices = get_args(hint) if get_origin(hint) is Literal else limits.get("choices", ())
    types = get_args(hint) if get_origin(hint) is UnionType else (hint,)
    least, most, above = (limits.get(key) for key in ("least", "most", "above"))
    if choices:
        good, expected = value in choices, f"one of {choices}"
    elif int in types:
        least = limits.get("least", 1)
        good, expected = is_integer(value, least), "a whole number" + ("" if least is None else f" >= {least}")
    elif float in types:
        inside = is_number(value) and (least is None or value >= least) and (most is None or value <= most)
        good = inside and (above is None or value > above)
        span = f" in [{least}, {most}]" if most is not None else f" >= {least}" if least is not None else ""
        expected = f"a finite number{span}" + ("" if above is None else f" > {above}")
    elif bool in types:
        good, expected = isinstance(value, bool), "True or False"
    elif str in types:
        optional = NoneType in types
        good = isinstance(value, str) or (optional and value is None)
        expected = "a text or None" if optional else "a text"
    else:  # other types are left to the attack
        return
    if not good:
        raise ValueError(f"`{name}`: expected {expected}, got {value!r}")
