"""Pieces of a rendered conversation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

from rolesafe.roles.traced import Kind

NEUTRAL = "Hello"
"""Content for conversations that are rendered to analyse a template."""

Span = tuple[int, int]


class RefusedError(Exception):
    """The template did not print a conversation; the message is the reason, for the user."""


class Part(IntEnum):
    """Place of a token in its message."""

    HEADER = 0
    CONTENT = 1
    FOOTER = 2


@dataclass(frozen=True)
class Segment:
    """A piece of the rendered conversation.

    Attributes:
        message: Index of the message it belongs to; the number of messages for the generation prompt.
        part: Header, content or footer. The generation prompt is a header.
        kind: Its author.
        variable: Name of the template variable it comes from, or None.
        text: The text.
    """

    message: int
    part: Part
    kind: Kind
    variable: str | None
    text: str


@dataclass(frozen=True)
class Shape:
    """Form in which a template gets a conversation.

    Attributes:
        names: Names of the roles.
        parts: True for each content passed as a list of parts.
    """

    names: tuple[str, ...]
    parts: tuple[bool, ...]

    def neutral(self) -> list[str | Sequence[str]]:
        """Return neutral contents, so that no content influences the attribution of template text."""
        return [[NEUTRAL] if parts else NEUTRAL for parts in self.parts]
