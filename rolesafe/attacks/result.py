"""What an attack run leaves behind."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from rolesafe.attacks.memory import is_memory_reason, is_reason_of_the_run
from rolesafe.attacks.rates import Rate
from rolesafe.attacks.registry import AttackConfig, look_up
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
        n_queries: Sequences that the model was run on for the attack; 1 for a text that is only sent.
        n_steps: Steps of the search; 0 where there was none.
        losses: Loss of the best messages after each step of the search, where it has one.
        typed: Whether somebody can type the attack. Where not, `reply` came from the search, and `messages` alone do
            not bring it about.
        right: Whether the reply is the right one, see :func:`rolesafe.attacks.judge.is_right`: the attacker did not win
            and the model still did its task. ``None`` where the example states no right reply, and in results of
            earlier versions.
    """

    id: str
    family: str
    messages: tuple[Message, ...]
    reply: str
    success: bool
    n_queries: int = 1
    n_steps: int = 0
    losses: tuple[float, ...] = ()
    typed: bool = True
    right: bool | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "losses", tuple(self.losses))  # JSON has lists only


@dataclass(frozen=True, kw_only=True)
class AttackResult:
    """One attack at one parameter point against one model.

    Attributes:
        config: The attack with all of its parameters, its seed and its budget.
        goal: What counted as success: a text in the reply, or ``None`` for each example's own violation.
        outcomes: In the order of the examples.
        left_out: Ids of examples whose attacked conversation does not fit into the model's context.
        failed: Pairs of an id and the reason why that example has no outcome: out of memory even alone, a chat template
            that does not print the attacked conversation, a search whose loss was not finite. Pass the result as `done`
            to try them again.
        met: Ids of examples on which the model met the goal without any attack: they were not attacked, and no rate
            counts them. Empty where that was not looked for (``check_goal=False``).
        complete: False where the run was interrupted; pass the result as `done` to go on.
    """

    config: AttackConfig
    goal: str | None
    outcomes: tuple[Outcome, ...]
    left_out: tuple[str, ...] = ()
    failed: tuple[tuple[str, str], ...] = ()
    met: tuple[str, ...] = ()
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
    def ids(self) -> set[str]:
        """Of all examples that were looked at, those without an outcome too."""
        return {*(o.id for o in self.outcomes), *self.left_out, *(name for name, _ in self.failed), *self.met}

    @property
    def rate(self) -> Rate:
        """Attack success with its Wilson interval, among the examples with an outcome."""
        return Rate(sum(o.success for o in self.outcomes), len(self.outcomes))

    @property
    def n_queries(self) -> int:
        """Sequences that the model was run on."""
        return sum(o.n_queries for o in self.outcomes)

    @property
    def n_steps(self) -> int:
        """Steps of all searches."""
        return sum(o.n_steps for o in self.outcomes)

    @property
    def typed(self) -> bool:
        """Whether somebody can type the attack."""
        return look_up(self.config.name).typed

    @property
    def out_of_memory(self) -> tuple[str, ...]:
        """Ids of those in `failed` that lacked nothing but memory: another try may give them an outcome."""
        return tuple(name for name, reason in self.failed if is_memory_reason(reason))

    @property
    def undecided(self) -> tuple[str, ...]:
        """Ids of those in `failed` that failed for a reason of this run alone: an attacker may have had more luck."""
        return tuple(name for name, reason in self.failed if is_reason_of_the_run(reason))

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
        left_out = tuple(values.pop("left_out"))
        failed = tuple((name, reason) for name, reason in values.pop("failed", ()))
        met = tuple(values.pop("met", ()))
        return cls(config=config, outcomes=outcomes, left_out=left_out, failed=failed, met=met, **values)
