"""Attacks by repetition and position: number and place of the injections, place of the system text."""

from __future__ import annotations

import re
from dataclasses import dataclass
from random import Random
from typing import Literal, get_args

from rolesafe.attacks.config import Messages, TextAttackConfig, join, option, points
from rolesafe.attacks.delimiters import Delimiters
from rolesafe.tasks import Example, filler, placed

System = Literal["first", "middle", "last"]
Side = Literal["before", "after", "around"]


@dataclass(frozen=True, kw_only=True)
class DilutionConfig(TextAttackConfig):
    """Repeat the contrary policy, so that attention to the system text is diluted.

    Args:
        repeats: Number of injections.
    """

    name = "dilution"
    about = "the opposite rule, many times"
    grid = points("repeats", (1, 2, 4, 8, 16, 32, 64))
    quick = points("repeats", (1, 8, 32))

    repeats: int = 1

    def build(self, example: Example, rng: Random, marks: Delimiters | None) -> Messages:
        return example.with_target(join(example.request, *[example.injection()] * self.repeats))


@dataclass(frozen=True, kw_only=True)
class FillerConfig(TextAttackConfig):
    """Put harmless text around one injection, which adds distance between the system text and the reply.

    Args:
        where: ``"before"``: the injection comes last (recency). ``"after"``: the filler comes last. ``"around"``: half
            of the filler on each side.
        words: Minimum number of words of filler.
    """

    name = "filler"
    about = "much harmless text before, after or around the opposite rule"
    grid = tuple({"where": where, "words": words} for where in get_args(Side) for words in (70, 280))
    quick = grid[:1]

    where: Side = "before"
    words: int = option(70, least=0)

    def build(self, example: Example, rng: Random, marks: Delimiters | None) -> Messages:
        sentences = _filling(rng, self.words)
        cut = {"before": len(sentences), "after": 0, "around": len(sentences) // 2}[self.where]
        return example.with_target(join(*sentences[:cut], example.request, example.injection(), *sentences[cut:]))


@dataclass(frozen=True, kw_only=True)
class PositionConfig(TextAttackConfig):
    """Put injections at a fraction of a harmless text that ends with the request.

    Args:
        at: Fraction in [0, 1], rounded to whole sentences. At 0 the filler follows the injections, at 1 it precedes
            them.
        words: Minimum number of words of filler.
        repeats: Number of injections.
        system: Place of the system message, see :func:`rolesafe.tasks.placed`.
    """

    name = "position"
    about = "six injections at some place of a long harmless text"
    grid = (
        *points("at", (1.0, 0.75, 0.5, 0.25, 0.0), words=70, repeats=6, system="first"),
        *points("at", (1.0, 0.5, 0.0), words=70, repeats=6, system="last"),
    )
    quick = grid[0:5:2]

    at: float = option(1.0, least=0, most=1)
    words: int = option(70, least=0)
    repeats: int = 6
    system: Literal["first", "last"] = "first"

    def build(self, example: Example, rng: Random, marks: Delimiters | None) -> Messages:
        return placed(example.with_target(join(*_spread(self, example, rng))), self.system)


@dataclass(frozen=True, kw_only=True)
class PlacementConfig(TextAttackConfig):
    """Put the system text first, in the middle or last, and injections at a fraction of the attacker's text.

    Args:
        system: Place of the system message, see :func:`rolesafe.tasks.placed`. ``"middle"`` cuts the attacker's message
            in two of the same role if it is the only other one.
        at: Fraction in [0, 1], rounded to whole sentences.
        words: Minimum number of words of filler.
        repeats: Number of injections.
    """

    name = "placement"
    about = "the system text first, in the middle or last, injections at some place of a text"
    grid = tuple(
        {"system": system, "at": at, "words": 70, "repeats": repeats}
        for repeats, fractions in ((1, (0.0, 0.25, 0.5, 0.75, 1.0)), (6, (0.0, 0.5, 1.0)))
        for system in get_args(System)
        for at in fractions
    )
    quick = grid[2:13:5]

    system: System = "first"
    at: float = option(0.0, least=0, most=1)
    words: int = option(70, least=0)
    repeats: int = 1

    def build(self, example: Example, rng: Random, marks: Delimiters | None) -> Messages:
        parts = _spread(self, example, rng)
        messages = example.with_target(join(*parts))
        if self.system == "middle" and len(messages) == 2:
            half = len(parts) // 2
            pieces = [{"role": example.target, "content": join(*some)} for some in (parts[:half], parts[half:])]
            messages = (*(m for m in messages if m["role"] != example.target), *pieces)
        return placed(messages, self.system)


@dataclass(frozen=True, kw_only=True)
class InsertionConfig(TextAttackConfig):
    """Insert the injection between random words of the user's text, past filters that check its end only.

    Args:
        words: Minimum number of words of filler before the request.
        repeats: Number of injections.
    """

    name = "insertion"
    about = "the opposite rule between two random words"
    grid = ({"words": 0, "repeats": 1}, {"words": 35, "repeats": 1}, {"words": 35, "repeats": 4})
    quick = grid[:1]

    words: int = option(0, least=0)
    repeats: int = 1

    def build(self, example: Example, rng: Random, marks: Delimiters | None) -> Messages:
        text = carrier(example, rng, self.words)
        spots = [rng.randrange(len(text.split()) + 1) for _ in range(self.repeats)]
        for at in sorted(spots, reverse=True):  # from the end on, so that no injection splits another
            text = insert(text, example.injection(), at)
        return example.with_target(text)


def carrier(example: Example, rng: Random, words: int) -> str:
    """Return the request after at least `words` words of harmless text."""
    return join(*_filling(rng, words), example.request)


def insert(text: str, span: str, at: int) -> str:
    """Return `text` with `span` in front of word number `at`, or after the last word."""
    starts = [match.start() for match in re.finditer(r"\S+", text)]
    if at == len(starts):
        return join(text, span)
    return f"{text[: starts[at]]}{span} {text[starts[at] :]}"  # keeps the line breaks of the text


def _spread(config: PositionConfig | PlacementConfig, example: Example, rng: Random) -> list[str]:
    """Return sentences of filler and the request, with the injections at the fraction `config.at`."""
    sentences = [*_filling(rng, config.words), example.request]
    cut = round(config.at * len(sentences))
    return [*sentences[:cut], *[example.injection()] * config.repeats, *sentences[cut:]]


def _filling(rng: Random, words: int) -> list[str]:
    return re.findall(r"[^.]+\.", filler(rng, "test", words)) if words else []
