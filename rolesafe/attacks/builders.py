"""Attacks as pure functions from an example to attacked messages.

A builder changes the message that an attacker can write into (:attr:`Example.target`) and nothing else; ``position``
may also move the system message, never edit it. Randomness comes from the generator that is passed in.
"""

from __future__ import annotations

import re
from random import Random
from typing import Literal

from rolesafe.attacks.delimiters import Delimiters
from rolesafe.tasks import Example, Message, filler, placed
from rolesafe.tasks.phrasing import IGNORE

Messages = tuple[Message, ...]


def none(example: Example, rng: Random, marks: Delimiters | None) -> Messages:
    """No attack: the rate of violations without one."""
    return example.with_target(example.request)


def ignore_previous(example: Example, rng: Random, marks: Delimiters | None, *, repeats: int) -> Messages:
    """Order the model to ignore its rules, in a phrasing held out from training, then state the contrary policy.

    Perez and Ribeiro, arXiv 2211.09527.
    """
    opening = rng.choice(IGNORE["test"])
    return example.with_target(join(example.request, *[f"{opening} {example.injection()}"] * repeats))


def mimicry(example: Example, rng: Random, marks: Delimiters | None, *, place: str) -> Messages:
    """State the contrary policy in the system text's own words, ``"before"`` or ``"after"`` what the user asks."""
    if place not in ("before", "after"):
        raise ValueError(f"`place`: expected 'before' or 'after', got {place!r}")
    parts = (example.request, example.injection())
    return example.with_target(join(*(parts if place == "after" else parts[::-1])))


def fake_system(example: Example, rng: Random, marks: Delimiters | None, *, turns: int, delimiters: bool) -> Messages:
    """Close the turn, forge whole system turns, open the turn again; with the literal delimiters or without."""
    if not delimiters:
        return example.with_target(join(example.request, *[example.forged, example.request] * turns))
    if marks is None:
        raise ValueError("`marks`: expected the delimiters of a chat template, got None; see `delimiters`")
    again = marks.header(example.target) + example.request
    turn = marks.footer(example.target) + marks.header("system") + example.forged + marks.footer("system") + again
    return example.with_target(example.request + turn * turns)


def near_system(example: Example, rng: Random, marks: Delimiters | None, *, turns: int) -> Messages:
    """As :func:`fake_system`, with delimiters that are not the literal ones; see :mod:`rolesafe.attacks.near`."""
    return fake_system(example, rng, marks, turns=turns, delimiters=True)


def dilution(example: Example, rng: Random, marks: Delimiters | None, *, repeats: int) -> Messages:
    """Repeat the contrary policy: attention that is spread over all tokens is drawn away from the system text."""
    return example.with_target(join(example.request, *[example.injection()] * repeats))


def position(
    example: Example,
    rng: Random,
    marks: Delimiters | None,
    *,
    at: float,
    words: int,
    repeats: int,
    system: Literal["first", "last"],
) -> Messages:
    """Injections at the fraction `at` of a text of harmless filler that ends with what the user asks.

    At 0 the filler comes after the injections, at 1 before them, between these around them.

    Args:
        example: What to attack.
        rng: Draws the filler.
        marks: Not used.
        at: Fraction in [0, 1], rounded to whole sentences.
        words: Least number of words of filler.
        repeats: Number of injections.
        system: ``"first"`` or ``"last"``: where the system message goes, wherever the example has it; see
            :func:`rolesafe.tasks.placed`.
    """
    if not 0.0 <= at <= 1.0:
        raise ValueError(f"`at`: expected a fraction in [0, 1], got {at}")
    if system not in ("first", "last"):
        raise ValueError(f"`system`: expected 'first' or 'last', got {system!r}")
    text = filler(rng, "test", words) if words else ""
    sentences = [*re.findall(r"[^.]+\.", text), example.request]
    cut = round(at * len(sentences))
    attacked = example.with_target(join(*sentences[:cut], *[example.injection()] * repeats, *sentences[cut:]))
    return placed(attacked, system)


def join(*parts: str) -> str:
    """The parts with one space between them."""
    return " ".join(part.strip() for part in parts)
