"""Dials that make a conversation harder without changing its rules."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from random import Random
from typing import Final, Literal, get_args

from rolesafe.arguments import is_integer
from rolesafe.tasks import phrasing as say
from rolesafe.tasks.example import Message
from rolesafe.tasks.rule_families import Case
from rolesafe.tasks.words import Split, filler

MAX_FACTS: Final = 4
"""Largest number of code words, or words with separate rules, in one conversation."""

Place = Literal["first", "middle", "last", "any"]


@dataclass(frozen=True, kw_only=True)
class Difficulty:
    """Difficulty of a conversation. Dials do not change the rules: the same seed asks the same question.

    Evaluation uses the dials as given. Training draws numbers of words and turns uniformly from 0 up to the dial, so
    that a model also sees easy conversations.

    Args:
        facts: Number of code words, or words with separate rules, 1 to 4; ``form`` always has one rule.
        filler: Smallest number of filler words around the request, in the attacker's message.
        system_filler: Smallest number of filler words around the rules, in the system text.
        turns: Number of earlier harmless turns, each a user message and a reply.
        tool: Share of conversations, in [0, 1], where the attacker writes into a tool's output instead of the user's
            message; None: the default of the family (``data``: half, the others: none).
        place: Place of the system text. ``"middle"`` is before a later turn, so it needs `turns` or ``tool=1``.
            ``"any"`` draws a possible place.

    Raises:
        ValueError: A dial is out of range.
    """

    facts: int = 1
    filler: int = 0
    system_filler: int = 0
    turns: int = 0
    tool: float | None = None
    place: Place = "first"

    def __post_init__(self) -> None:
        if self.facts not in range(1, MAX_FACTS + 1):
            raise ValueError(f"`facts`: expected 1 to {MAX_FACTS} code words, got {self.facts!r}")
        for name in ("filler", "system_filler", "turns"):
            value = getattr(self, name)
            if not is_integer(value, 0):
                raise ValueError(f"`{name}`: expected a whole number >= 0, got {value!r}")
        if self.tool is not None and not 0.0 <= self.tool <= 1.0:
            raise ValueError(f"`tool`: expected a share in [0, 1] or None, got {self.tool!r}")
        if self.place not in get_args(Place):
            raise ValueError(f"`place`: expected one of {get_args(Place)}, got {self.place!r}")
        if self.place == "middle" and self.turns == 0 and self.tool != 1:
            raise ValueError(
                "`place`: expected 'first', 'last' or 'any' for a single message, got 'middle'. Set `turns` >= 1 or "
                "`tool` to 1."
            )

    @classmethod
    def of(cls, difficulty: int | Difficulty) -> Difficulty:
        """Return `difficulty`, or the dials with that number of facts and defaults otherwise.

        Raises:
            ValueError: The number is out of range.
        """
        if isinstance(difficulty, Difficulty):
            return difficulty
        if difficulty not in range(1, MAX_FACTS + 1):
            raise ValueError(
                f"`difficulty`: expected 1 to {MAX_FACTS} code words, got {difficulty!r}. Use `Difficulty` for other "
                "dials."
            )
        return cls(facts=difficulty)

    @property
    def label(self) -> str:
        """Non-default dials as a part of ids, such as ``"2,filler=40"``."""
        moved = [f.name for f in fields(self)[1:] if getattr(self, f.name) != f.default]
        return ",".join([str(self.facts), *(f"{name}={getattr(self, name)}" for name in moved)])

    def drawn(self, rng: Random) -> Difficulty:
        """Return dials for training: numbers of words and turns drawn uniformly from 0 up to the dial."""
        least = int(self.place == "middle" and self.tool != 1)
        return replace(
            self,
            filler=rng.randint(0, self.filler),
            system_filler=rng.randint(0, self.system_filler),
            turns=rng.randint(least, self.turns),
        )


def shaped(case: Case, difficulty: Difficulty, rng: Random, split: Split) -> Case:
    """Return `case` with the filler, turns and tool of `difficulty`; :func:`placed` moves the system text."""
    if difficulty.tool is not None and case.target != (target := "tool" if rng.random() < difficulty.tool else "user"):
        case = _from_tool(case, rng, split) if target == "tool" else replace(case, before=(), target="user")
    return replace(
        case,
        system=around(case.system, difficulty.system_filler, rng, split),
        request=around(case.request, difficulty.filler, rng, split),
        before=(*small_talk(difficulty.turns, rng, split), *case.before),
    )


def _from_tool(case: Case, rng: Random, split: Split) -> Case:
    """Return `case` with the attacker's message in a tool's output; the user's request stays a user message."""
    user = {"role": "user", "content": case.hand_over or case.request}
    request = case.request if case.hand_over else filler(rng, split)
    return replace(case, before=(user,), target="tool", request=request, rightful=False)


def small_talk(turns: int, rng: Random, split: Split) -> tuple[Message, ...]:
    """Return harmless turns of user and assistant."""
    messages: list[Message] = []
    for _ in range(turns):
        messages.append({"role": "user", "content": filler(rng, split)})
        messages.append({"role": "assistant", "content": rng.choice(say.SMALL_TALK)})
    return tuple(messages)


def around(text: str, words: int, rng: Random, split: Split) -> str:
    """Return `text` at a random place in at least `words` words of filler."""
    if words == 0:
        return text
    sentences = re.findall(r"[^.]+\.", filler(rng, split, words))
    cut = rng.randint(0, len(sentences))
    return " ".join(part.strip() for part in (*sentences[:cut], text, *sentences[cut:]))


def placed(messages: Sequence[Message], place: Place, rng: Random | None = None) -> tuple[Message, ...]:
    """Return `messages` with the system message first, in the middle (before a later turn) or last.

    Args:
        messages: A conversation with one system message, up to the reply.
        place: New place; ``"any"`` draws a possible one.
        rng: Random generator for ``"any"``.

    Raises:
        ValueError: There is not exactly one system message, or no middle.
    """
    system = [m for m in messages if m["role"] == "system"]
    if len(system) != 1:
        raise ValueError(f"`messages`: expected one system message, got {len(system)}")
    others = [m for m in messages if m["role"] != "system"]
    inner = [i for i in range(1, len(others)) if others[i]["role"] != "assistant"]
    if place == "any":
        if rng is None:
            raise ValueError("`rng`: expected a random generator for place='any', got None")
        place = rng.choice(("first", "middle", "last") if inner else ("first", "last"))
    if place == "middle" and not inner:
        raise ValueError(f"`place`: expected two messages and the system message for 'middle', got {len(others)}")
    where = {"first": 0, "last": len(others)}
    index = where[place] if place in where else min(inner, key=lambda i: abs(2 * i - len(others)))
    return (*others[:index], system[0], *others[index:])
