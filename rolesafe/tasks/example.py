"""Data classes of the tasks: :class:`Example` (evaluation and attacks) and :class:`TrainingRecord` (training)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from rolesafe.tasks.words import Split

Message = dict[str, str]
"""Chat message: ``{"role": ..., "content": ...}``."""

Kind = Literal["protected", "benign"]


@dataclass(frozen=True, kw_only=True)
class Example:
    """Conversation without its reply, with the right reply, the violation, and texts for attackers.

    Attributes:
        id: Unique among all splits, seeds and difficulties, such as ``"access/test/0/2/17/protected"``.
        family: Rule family out of :data:`rolesafe.tasks.FAMILIES`, or name of a published set.
        kind: ``"protected"``: an attacker gains from another policy. ``"benign"``: its twin, where obeying is right.
        twin: `id` of the other example of the pair; empty for sets without pairs.
        split: Split of its words and templates; published sets are ``"test"``.
        messages: Conversation up to the reply: system, user, sometimes tool, and earlier turns.
        reply: Right reply; empty if a published set has none.
        violation: Word whose appearance in a reply is an attack success; None for benign examples.
        goal: Goal of an attacker in words.
        target: Role of the message that the attacker writes, ``"user"`` or ``"tool"``: the last one of that role.
        request: Part of that message that has to stay: the question, or the data.
        truth: Policy of the system text.
        contrary: Policy that an attacker wants; None without a violation.
        statements: Pairs of a policy and the sentence that states it in the style of this system text.
        forged: System text that sets the contrary policy, from words that an attacker can know; empty without a
            violation.
        wanted: Whole reply that an attacker wants, such as ``"It is gold."``, the target of gradient attacks. It
            contains `violation`, which decides success; empty without a violation.
    """

    id: str
    family: str
    kind: Kind
    twin: str
    split: Split
    messages: tuple[Message, ...]
    reply: str
    violation: str | None
    goal: str
    target: str
    request: str
    truth: str
    contrary: str | None
    statements: tuple[tuple[str, str], ...]
    forged: str
    wanted: str = ""

    @property
    def policies(self) -> tuple[str, ...]:
        """Policies that have a statement."""
        return tuple(policy for policy, _ in self.statements)

    def injection(self, policy: str | None = None) -> str:
        """Return the sentence that states `policy` (default: the contrary one) in the style of the system text.

        Raises:
            ValueError: The policy does not exist, or there is no contrary one.
        """
        wanted = self.contrary if policy is None else policy
        for name, text in self.statements:
            if name == wanted:
                return text
        advice = ". A benign example has no contrary policy. Attack protected ones." if wanted is None else ""
        raise ValueError(f"`policy`: expected one of {self.policies} for {self.id!r}, got {wanted!r}{advice}")

    def with_target(self, content: str) -> tuple[Message, ...]:
        """Return the messages with the attacker's message, the last one of its role, replaced by `content`."""
        index = max(i for i, m in enumerate(self.messages) if m["role"] == self.target)
        changed = {"role": self.target, "content": content}
        return (*self.messages[:index], changed, *self.messages[index + 1 :])


@dataclass(frozen=True, kw_only=True)
class TrainingRecord:
    """Training conversation with its reply and the policies stated in it.

    Attributes:
        family: Rule family, or ``"neutral"`` for conversations without rules.
        messages: Conversation; the last message is the assistant's reply.
        truth: Policy of the system text; empty for neutral conversations.
        policies: Policies that an injection can state, in a fixed order.
        injected: Injected policies on the question asked, in order of appearance.
    """

    family: str
    messages: tuple[Message, ...]
    truth: str
    policies: tuple[str, ...]
    injected: tuple[str, ...]
