"""Results of attacks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from rolesafe.attacks.config import AttackConfig
from rolesafe.attacks.memory import is_memory_reason, is_reason_of_the_run
from rolesafe.attacks.rates import Rate
from rolesafe.tasks import Message


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """Record one attacked conversation.

    Attributes:
        id: Id of the example.
        family: Task family of the example.
        messages: Messages that the model got.
        reply: Its reply.
        success: True if the attacker succeeded.
        n_queries: Sequences that the model was run on for the attack; 1 for a text that is only sent.
        n_steps: Steps of the search; 0 without one.
        losses: Loss of the best messages after each step of the search, if it has losses.
        typed: True if a user can type the attack. Otherwise `reply` came from the search, and `messages` alone do not
            lead to it.
        right: True if the reply is right, see :func:`rolesafe.attacks.judge.is_right`: the attacker failed and the
            model did its task. ``None`` if the example states no right reply, and in results of earlier versions.
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
    """Record one attack at one parameter point against one model.

    Attributes:
        config: The attack.
        goal: Text that counted as a success in a reply, or ``None`` for each example's own violation.
        outcomes: One per attacked example, in the order of the examples.
        left_out: Ids of examples with an attacked conversation that does not fit into the model's context.
        failed: Pairs of an id and the reason why that example has no outcome: out of memory in a batch of one, a chat
            template that does not print the attacked conversation, a loss that was not finite. Pass the result as
            `done` to try again.
        met: Ids of examples on which the model met the goal without any attack. They were not attacked, and no rate
            counts them. Empty with ``check_goal=False``.
        complete: False after an interruption; pass the result as `done` to resume.
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
        """Return the name of the attack."""
        return self.config.name

    @property
    def parameters(self) -> Mapping[str, Any]:
        """Return the parameters of the attack."""
        return self.config.parameters

    @property
    def ids(self) -> set[str]:
        """Return the ids of all examples, including those without an outcome."""
        return {*(o.id for o in self.outcomes), *self.left_out, *(name for name, _ in self.failed), *self.met}

    @property
    def rate(self) -> Rate:
        """Return the attack success rate among the examples with an outcome, with its Wilson interval."""
        return Rate(sum(o.success for o in self.outcomes), len(self.outcomes))

    @property
    def n_queries(self) -> int:
        """Return the number of sequences that the model was run on."""
        return sum(o.n_queries for o in self.outcomes)

    @property
    def n_steps(self) -> int:
        """Return the number of steps of all searches."""
        return sum(o.n_steps for o in self.outcomes)

    @property
    def typed(self) -> bool:
        """Return True if a user can type the attack."""
        return self.config.typed

    @property
    def out_of_memory(self) -> tuple[str, ...]:
        """Return the ids in `failed` that lacked memory only: another try may give them an outcome."""
        return tuple(name for name, reason in self.failed if is_memory_reason(reason))

    @property
    def undecided(self) -> tuple[str, ...]:
        """Return the ids in `failed` that failed in this run only, so that an attacker may succeed in another one."""
        return tuple(name for name, reason in self.failed if is_reason_of_the_run(reason))

    def by_family(self) -> dict[str, Rate]:
        """Return the attack success rate of each task family."""
        names = sorted({o.family for o in self.outcomes})
        groups = {name: [o.success for o in self.outcomes if o.family == name] for name in names}
        return {name: Rate(sum(group), len(group)) for name, group in groups.items()}

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values that :meth:`from_dict` reads back to an equal result."""
        return {**asdict(self), "config": self.config.to_dict()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> AttackResult:
        """Return the result that :meth:`to_dict` wrote, in this or an earlier version.

        Raises:
            ValueError: The attack, or one of its parameters, does not exist.
        """
        values = dict(values)
        outcomes = tuple(
            Outcome(**{**o, "messages": tuple(dict(m) for m in o["messages"])}) for o in values.pop("outcomes")
        )
        config = AttackConfig.from_dict(values.pop("config"))
        left_out = tuple(values.pop("left_out"))
        failed = tuple((name, reason) for name, reason in values.pop("failed", ()))
        met = tuple(values.pop("met", ()))
        return cls(config=config, outcomes=outcomes, left_out=left_out, failed=failed, met=met, **values)
