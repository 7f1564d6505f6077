"""Injections of training rows: another row's instruction inserted into untrusted data."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Any, Final

from rolesafe.attacks.delimiters import Delimiters, delimiters
from rolesafe.config import RoleConfig
from rolesafe.retrain import phrasing

METHODS: Final = ("naive", "ignore", "fake completion", "fake turn", "live turn", "several")
"""A fake turn's delimiters are ordinary text; those of a live turn become structural tokens in the role of the data."""
PLACES: Final = ("first", "middle", "last")
MOST: Final = 4
"""Maximum number of injections of the method "several"."""

_LONG: Final = 8
"""Minimum number of words of a sentence for an injection at its middle."""

_SPACE: Final = re.compile(r"\s+")
_BOUNDARY: Final = re.compile(r"(?<=[.!?])\s+|\n+")


@dataclass(frozen=True)
class Marks:
    """Delimiters of a chat template for fake turns.

    Attributes:
        user: Delimiters of a conversation of the turns system, user and assistant.
        tool: Delimiters of a conversation with a tool turn; ``None`` where the template does not support it.
    """

    user: Delimiters
    tool: Delimiters | None

    def of(self, role: str) -> Delimiters:
        """Return the delimiters for data in a turn of `role`."""
        return self.tool if role == "tool" and self.tool is not None else self.user


def read_marks(tokenizer: Any, config: RoleConfig) -> Marks:
    """Return the delimiters of the tokenizer's chat template.

    Raises:
        ValueError: The template does not support a conversation of the roles system, user and assistant.
    """
    user = delimiters(tokenizer, ("system", "user", config.generated), config)
    try:
        tool = delimiters(tokenizer, ("system", "user", "tool", config.generated), config)
    except ValueError:
        tool = None
    return Marks(user, tool)


@dataclass(frozen=True)
class Injected:
    """Data with injections.

    Attributes:
        data: The text.
        detail: Method and place in words.
        live: True where typed delimiters become structural tokens.
    """

    data: str
    detail: str
    live: bool = False


def inject(data: str, goals: Sequence[str], role: str, marks: Marks, rng: Random) -> Injected:
    """Insert injections into `data`.

    Args:
        data: Clean data.
        goals: Goals of the injections; the method "several" uses all of them, the others the first.
        role: Role of the turn with the data, ``"user"`` or ``"tool"``.
        marks: Delimiters for fake turns.
        rng: Random generator of method, place and phrasing.
    """
    method, place = rng.choice(METHODS), rng.choice(PLACES)
    if place == "middle" and not _boundaries(data):
        place = "last"
    if method == "several":
        chosen = list(goals[: rng.randint(2, MOST)])
        while len(chosen) < 2:
            chosen.append(chosen[0])
        text = data
        for goal in chosen:
            opening = f"{rng.choice(phrasing.OPENINGS)} " if rng.random() < 0.5 else ""
            text = insert(text, opening + goal, rng.choice(PLACES), rng)
        return Injected(text, f"{len(chosen)} injections")
    goal = goals[0]
    if method == "naive":
        return Injected(insert(data, goal, place, rng), f"{method}, {place}")
    if method == "ignore":
        return Injected(insert(data, f"{rng.choice(phrasing.OPENINGS)} {goal}", place, rng), f"{method}, {place}")
    # a fake reply has to follow a part of the data
    place = "last" if place == "first" else place
    if method == "fake completion":
        before, again = rng.choice(phrasing.COMPLETIONS)
        fake = f"{before}{rng.choice(phrasing.FAKE_REPLIES)}{again}{goal}"
    else:
        fake = _fake_turn(goal, role, marks.of(role), rng)
    return Injected(insert(data, fake, place, rng, glue=""), f"{method}, {place}", live=method == "live turn")


def _fake_turn(goal: str, role: str, marks: Delimiters, rng: Random) -> str:
    """Return text that closes the data's turn and opens another with the template's own delimiters."""
    headers = dict(marks.headers)
    generated = next(name for name in reversed(headers) if name not in ("system", "user", "tool"))
    opened = rng.choice(("user", "system", role))
    fake = marks.footer(role)
    if rng.random() < 0.7:
        reply = rng.choice(phrasing.FAKE_REPLIES)
        fake += marks.header(generated) + reply + marks.footer(generated)
    return fake + marks.header(opened) + goal


def insert(data: str, text: str, place: str, rng: Random, *, glue: str | None = None) -> str:
    """Return `data` with `text` first, in the middle (between two sentences, lines or words) or last.

    Args:
        data: Surrounding text.
        text: Text to insert.
        place: One of :data:`PLACES`; short data of one sentence have no middle, and `text` is appended.
        rng: Random generator of the boundary and the white space.
        glue: White space between the two; default: a space or line breaks.
    """
    gap = rng.choice((" ", "\n", "\n\n")) if glue is None else glue
    if place == "first":
        return f"{text}{gap}{data}"
    bounds = _boundaries(data)
    if place == "middle" and bounds:
        start, end = rng.choice(bounds)
        return f"{data[:start]}{gap}{text}{gap or data[start:end]}{data[end:]}"
    return f"{data}{gap}{text}"


def _boundaries(data: str) -> list[tuple[int, int]]:
    """Return the spans of white space between sentences and lines, or between words of one long sentence."""
    for pattern in (_BOUNDARY, _SPACE):
        spans = [found.span() for found in pattern.finditer(data) if found.start() > 0 and found.end() < len(data)]
        if spans or len(data.split()) < _LONG:
            return spans
    return []
