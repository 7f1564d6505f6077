"""Pieces of a rendered conversation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Literal, NamedTuple

from rolesafe.roles.fields import NEUTRAL, Fields, neutral
from rolesafe.roles.messages import Message
from rolesafe.roles.traced import Kind

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


class Form(NamedTuple):
    """Form in which a template gets tool calls.

    Attributes:
        text_arguments: Arguments are passed as JSON text, not as a mapping.
        no_content: A message with calls and without text has the content None, not an empty one.
        spelled: Calls are JSON at the end of the content: for templates that do not print calls.
    """

    text_arguments: bool = False
    no_content: bool = False
    spelled: bool = False


PLAIN = Form()

FORMS = (PLAIN, Form(no_content=True), Form(text_arguments=True), Form(True, True), Form(spelled=True))
"""All forms, in the order in which they are tried."""

Body = tuple["str | Sequence[str] | None", Fields]
"""Content and further fields of a message."""


Contents = Literal["sent", "text", "parts"]
"""Form in which a template gets contents: as they were sent, all as text, or all as lists of parts."""


def bodies(conversation: Sequence[Message], contents: Contents, form: Form) -> list[Body]:
    """Return the bodies of messages in these forms."""
    return [_body(message, contents, form) for message in conversation]


def _body(message: Message, contents: Contents, form: Form) -> Body:
    as_parts = message.parts is not None if contents == "sent" else contents == "parts"
    content: str | Sequence[str] | None = message.shown(as_parts)
    fields = message.fields
    if not fields.calls:
        return content, fields
    if form.spelled:
        spelled = "\n".join(call.as_json() for call in fields.calls)
        text = f"{message.content}\n{spelled}" if message.content.strip() else spelled
        return (text if isinstance(content, str) else (text,)), Fields((), fields.texts)
    return (None if form.no_content and not message.content else content), fields


@dataclass(frozen=True)
class Shape:
    """Form in which a template gets a conversation.

    Attributes:
        names: Names of the roles.
        parts: True for each content passed as a list of parts.
        fields: Form of the further fields of each message.
        form: Form of the tool calls.
    """

    names: tuple[str, ...]
    parts: tuple[bool, ...]
    fields: tuple[tuple[Any, ...], ...]
    form: Form

    @classmethod
    def of(cls, names: tuple[str, ...], given: Sequence[Body], form: Form) -> Shape:
        """Return the shape of messages with these names and bodies."""
        parts = tuple(content is not None and not isinstance(content, str) for content, _ in given)
        return cls(names, parts, tuple(fields.form for _, fields in given), form)

    def neutral(self) -> list[Body]:
        """Return neutral bodies, so that no text of a message influences the attribution of template text."""
        out: list[Body] = []
        for parts, form in zip(self.parts, self.fields, strict=True):
            fields = neutral(form)
            empty = self.form.no_content and fields.calls
            out.append((None if empty else [NEUTRAL] if parts else NEUTRAL, fields))
        return out
