"""Dials that make a conversation harder without changing its rules."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from random import Random
from typing import Final, Literal, get_args

from rolesafe.tasks import phrasing as say
from rolesafe.tasks.example import Message
from rolesafe.tasks.rule_families import Case
from rolesafe.tasks.words import Split, filler

MAX_FACTS: Final = 4
"""Most code words, or words with a rule of their own, in one conversation."""

Place = Literal["first", "middle", "last", "any"]


@dataclass(frozen=True, kw_only=True)
class Difficulty:
    """What makes a conversation hard. A dial changes nothing about the rules: the same seed asks the same.

    Evaluation uses the dials as they are. Training draws each number of words and turns uniformly from 0 up to the
    dial, so that a model sees easy conversations too.

    Args:
        facts: Code words, or words with a rule of their own, in the system text or the data, 1 to 4; ``form`` has one
            rule, however many.
        filler: Least number of words of harmless filler around the request, in the message an attacker can write into.
        system_filler: The same around the rules, in the system text.
        turns: Earlier harmless turns, each a remark of the user and a reply.
        tool: Share of conversations, in [0, 1], where an attacker writes into the output of a tool instead of the
            user's message; None: as the family has it (``data``: half of them; the others: none).
        place: Where the system text stands among the messages. ``"middle"`` is before a later turn, so it needs
            `turns` or ``tool=1``. ``"any"`` draws one of those that are possible.

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
            if not isinstance(value, int) or value < 0:
                raise ValueError(f"`{name}`: expected a whole number >= 0, got {value!r}")
        if self.tool is not None and not 0.0 <= self.tool <= 1.0:
            raise ValueError(f"`tool`: expected a share in [0, 1] or None, got {self.tool!r}")
        if self.place not in get_args(Place):
            raise ValueError(f"`place`: expected one of {get_args(Place)}, got {self.place!r}")
        if self.place == "middle" and self.turns == 0 and self.tool != 1:
            raise ValueError(
                "`place`: 'middle' needs more messages than the user's; set `turns` >= 1 or `tool` to 1, or use 'any'"
            )

    @classmethod
    def of(cls, difficulty: int | Difficulty) -> Difficulty:
        """The dials that a whole number stands for: so many facts, all other dials at rest.

        Raises:
            ValueError: The number is out of range.
        """
        if isinstance(difficulty, Difficulty):
            return difficulty
        if difficulty not in range(1, MAX_FACTS + 1):
            raise ValueError(
                f"`difficulty`: expected 1 to {MAX_FACTS} code words, got {difficulty!r}; other dials: `Difficulty`"
            )
        return cls(facts=difficulty)

    @property
    def label(self) -> str:
        """The dials that are not at rest, in a word that ids can contain, for instance ``"2,filler=40"``."""
        moved = [f.name for f in fields(self)[1:] if getattr(self, f.name) != f.default]
        return ",".join([str(self.facts), *(f"{name}={getattr(self, name)}" for name in moved)])

    def drawn(self, rng: Random) -> Difficulty:
        """For training: each number of words and of turns drawn uniformly from 0 up to the dial."""
        least = int(self.place == "middle" and self.tool != 1)
        return replace(
            self,
            filler=rng.randint(0, self.filler),
            system_filler=rng.randint(0, self.system_filler),
            turns=rng.randint(least, self.turns),
        )


def shaped(case: Case, difficulty: Difficulty, rng: Random, split: Split) -> Case:
    """`case` with the filler, the turns and the tool of `difficulty`; where the system text goes is :func:`placed`."""
    if difficulty.tool is not None and case.target != (target := "tool" if rng.random() < difficulty.tool else "user"):
        case = _from_tool(case, rng, split) if target == "tool" else replace(case, before=(), target="user")
    return replace(
        case,
        system=around(case.system, difficulty.system_filler, rng, split),
        request=around(case.request, difficulty.filler, rng, split),
        before=(*small_talk(difficulty.turns, rng, split), *case.before),
    )


def _from_tool(case: Case, rng: Random, split: Split) -> Case:
    """The attacker's message comes from a tool. What the user asked stays the user's, and is no order of the tool's."""
    user = {"role": "user", "content": case.hand_over or case.request}
    request = case.request if case.hand_over else filler(rng, split)
    return replace(case, before=(user,), target="tool", request=request, rightful=False)


def small_talk(turns: int, rng: Random, split: Split) -> tuple[Message, ...]:
    """So many harmless turns of user and assistant."""
    messages: list[Message] = []
    for _ in range(turns):
        messages.append({"role": "user", "content": filler(rng, split)})
        messages.append({"role": "assistant", "content": rng.choice(say.SMALL_TALK)})
    return tuple(messages)


def around(text: str, words: int, rng: Random, split: Split) -> str:
    """`text` in a random place of at least `words` words of filler."""
    if words == 0:
        return text
    sentences = re.findall(r"[^.]+\.", filler(rng, split, words))
    cut = rng.randint(0, len(sentences))
    return " ".join(part.strip() for part in (*sentences[:cut], text, *sentences[cut:]))


def placed(messages: Sequence[Message], place: Place, rng: Random | None = None) -> tuple[Message, ...]:
    """`messages` with the system message first, in the middle (before a later turn) or last.

    Args:
        messages: A conversation with one system message, up to the reply.
        place: Where to; ``"any"`` draws a possible one.
        rng: For ``"any"``.

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
        raise ValueError(f"`place`: 'middle' needs two messages beside the system message, got {len(others)}")
    where = {"first": 0, "last": len(others)}
    index = where[place] if place in where else min(inner, key=lambda i: abs(2 * i - len(others)))
    return (*others[:index], system[0], *others[index:])
