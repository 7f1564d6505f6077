"""What an attack run leaves behind."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from rolesafe.attacks.rates import Rate
from rolesafe.attacks.registry import AttackConfig
from rolesafe.tasks import Message


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """One attacked conversation.

    Attributes:
        id: Of the example.
        family: Of the example.
        messages: What the model was given.
        reply: What it answered.
        success: Whether the attacker won.
        n_queries: Replies of the model that the attack asked for.
    """

    id: str
    family: str
    messages: tuple[Message, ...]
    reply: str
    success: bool
    n_queries: int = 1


@dataclass(frozen=True, kw_only=True)
class AttackResult:
    """One attack at one parameter point against one model.

    Attributes:
        config: The attack with all of its parameters, its seed and its budget.
        goal: What counted as success: a text in the reply, or ``None`` for each example's own violation.
        outcomes: In the order of the examples.
        left_out: Ids of examples whose attacked conversation does not fit into the model's context.
        complete: False where the run was interrupted; pass the result as `done` to go on.
    """

    config: AttackConfig
    goal: str | None
    outcomes: tuple[Outcome, ...]
    left_out: tuple[str, ...] = ()
    complete: bool = True

    @property
    def attack(self) -> str:
        """Name of the attack."""
        return self.config.name

    @property
    def parameters(self) -> Mapping[str, Any]:
        """Its parameters."""
        return self.config.parameters

    @property
    def rate(self) -> Rate:
        """Attack success with its Wilson interval."""
        return Rate(sum(o.success for o in self.outcomes), len(self.outcomes))

    @property
    def n_queries(self) -> int:
        """Replies of the model that were asked for."""
        return sum(o.n_queries for o in self.outcomes)

    def by_family(self) -> dict[str, Rate]:
        """Attack success for each task family."""
        names = sorted({o.family for o in self.outcomes})
        groups = {name: [o.success for o in self.outcomes if o.family == name] for name in names}
        return {name: Rate(sum(group), len(group)) for name, group in groups.items()}

    def to_dict(self) -> dict[str, Any]:
        """JSON values that :meth:`from_dict` reads back to an equal result."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> AttackResult:
        """Read what :meth:`to_dict` wrote, also after JSON."""
        values = dict(values)
        outcomes = tuple(
            Outcome(**{**o, "messages": tuple(dict(m) for m in o["messages"])}) for o in values.pop("outcomes")
        )
        config = AttackConfig(**values.pop("config"))
        return cls(config=config, outcomes=outcomes, left_out=tuple(values.pop("left_out")), **values)
