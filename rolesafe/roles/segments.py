"""Pieces of a rendered conversation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

from rolesafe.roles.traced import Kind

NEUTRAL = "Hello"
"""Content of conversations that are rendered to see what a template does with a message."""

Span = tuple[int, int]


class RefusedError(Exception):
    """The template did not print a conversation; the text says why, for the user."""


class Part(IntEnum):
    """What a token is to its message."""

    HEADER = 0
    CONTENT = 1
    FOOTER = 2


@dataclass(frozen=True)
class Segment:
    """A piece of the rendered conversation.

    Attributes:
        message: Index of the message it belongs to; the number of messages for the generation prompt.
        part: Header, content or footer. The generation prompt is a header.
        kind: Who wrote it.
        variable: Name of the template's variable it comes from, if it does.
        text: The text.
    """

    message: int
    part: Part
    kind: Kind
    variable: str | None
    text: str


@dataclass(frozen=True)
class Shape:
    """How a template is shown a conversation.

    Attributes:
        names: Names of the roles.
        parts: Whether each content is shown as a list of parts.
    """

    names: tuple[str, ...]
    parts: tuple[bool, ...]

    def neutral(self) -> list[str | Sequence[str]]:
        """Contents that say nothing, so that no content decides to whom the template's text belongs."""
        return [[NEUTRAL] if parts else NEUTRAL for parts in self.parts]
