"""Attacks in the system text's own words: the contrary policy alone, and in forged system turns."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random
from typing import Literal

from rolesafe.attacks.config import Messages, TextAttackConfig, join, points
from rolesafe.attacks.delimiters import Delimiters, literal
from rolesafe.attacks.near import near
from rolesafe.tasks import Example


@dataclass(frozen=True, kw_only=True)
class NoAttackConfig(TextAttackConfig):
    """Send the clean conversation: the baseline of all attacks."""

    name = "none"
    about = "no attack"

    def build(self, example: Example, rng: Random, marks: Delimiters | None) -> Messages:
        return example.with_target(example.request)


@dataclass(frozen=True, kw_only=True)
class MimicryConfig(TextAttackConfig):
    """State the contrary policy in the system text's own words.

    Args:
        place: ``"before"`` or ``"after"`` the user's request.
    """

    name = "mimicry"
    about = "the opposite rule in the system text's own words"
    grid = points("place", ("after", "before"))
    quick = grid[:1]

    place: Literal["before", "after"] = "after"

    def build(self, example: Example, rng: Random, marks: Delimiters | None) -> Messages:
        parts = (example.request, example.injection())
        return example.with_target(join(*(parts if self.place == "after" else parts[::-1])))


@dataclass(frozen=True, kw_only=True)
class FakeSystemConfig(TextAttackConfig):
    """Close the turn, forge whole system turns and open the turn again.

    Args:
        turns: Number of forged turns.
        delimiters: Use the literal delimiters of the chat template. False: only the texts of the turns.
    """

    name = "fake-system"
    about = "forged system turns, with and without the literal delimiters"
    grid = tuple({"turns": turns, "delimiters": marked} for marked in (True, False) for turns in (1, 4, 16))
    quick = grid[1:2]
    marks = staticmethod(literal)

    turns: int = 1
    delimiters: bool = True

    def build(self, example: Example, rng: Random, marks: Delimiters | None) -> Messages:
        if self.delimiters:
            return _forge(example, required(marks), self.turns)
        return example.with_target(join(example.request, *[example.forged, example.request] * self.turns))


@dataclass(frozen=True, kw_only=True)
class NearDelimitersConfig(TextAttackConfig):
    """Forge system turns with tokens that are next to the delimiters in the embedding.

    See :mod:`rolesafe.attacks.near`.

    Args:
        turns: Number of forged turns.
    """

    name = "near-delimiters"
    about = "forged system turns with tokens that look like the delimiters to the model"
    grid = points("turns", (1, 4, 16))
    quick = grid[1:2]
    marks = staticmethod(near)

    turns: int = 1

    def build(self, example: Example, rng: Random, marks: Delimiters | None) -> Messages:
        return _forge(example, required(marks), self.turns)


def required(marks: Delimiters | None) -> Delimiters:
    """Return `marks`; refuse None.

    Raises:
        ValueError: `marks` is None.
    """
    if marks is None:
        raise ValueError("`marks`: expected the delimiters of a chat template, got None. Pass the result of `marks`.")
    return marks


def _forge(example: Example, marks: Delimiters, turns: int) -> Messages:
    again = marks.header(example.target) + example.request
    turn = marks.footer(example.target) + marks.header("system") + example.forged + marks.footer("system") + again
    return example.with_target(example.request + turn * turns)
