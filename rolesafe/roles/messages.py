"""Read and validate messages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rolesafe.roles.fields import FIELDS, NONE, Fields, read_fields, whole
from rolesafe.roles.role import DEFAULT_GENERATED, role_id

_KEYS = ("role", "content")


@dataclass(frozen=True)
class Message:
    """A valid message.

    Attributes:
        role: Name of its role.
        role_id: Id of its role.
        content: Its text; empty for None.
        parts: The texts of its parts, if the content was a list; else None.
        fields: Tool calls, ids, names and reasoning.
    """

    role: str
    role_id: int
    content: str
    parts: tuple[str, ...] | None = None
    fields: Fields = NONE

    def shown(self, as_parts: bool) -> str | tuple[str, ...]:
        """Return the content as one text, or as the texts of its parts."""
        if not as_parts:
            return self.content
        return (self.content,) if self.parts is None else self.parts


def read_batch(messages: Any) -> tuple[list[Any], list[str]]:
    """Return the conversations in `messages`, and the name of each for error messages.

    Raises:
        ValueError: `messages` is neither a list of messages nor a list of lists.
    """
    if not _is_list(messages):
        raise ValueError(
            "`messages`: expected a list of {'role': ..., 'content': ...} (one conversation) or a list of such lists "
            f"(a batch), got {type(messages).__name__}"
        )
    if not messages:
        raise ValueError("`messages`: expected at least one message, got none")
    if all(_is_list(conversation) for conversation in messages):
        return list(messages), [f"messages[{i}]" for i in range(len(messages))]
    return [messages], ["messages"]


def read_conversation(
    messages: Any, roles: Sequence[str], argument: str, generated: str = DEFAULT_GENERATED
) -> list[Message]:
    """Return messages with their role ids, their contents as strings and their further fields.

    Args:
        messages: The messages.
        roles: Names of the roles.
        argument: Name of `messages` in errors.
        generated: Role of generated tokens; only its messages have tool calls and reasoning.

    Raises:
        ValueError: There is none, or one has no known role, no text, or a key that is not supported.
    """
    if not _is_list(messages):
        raise ValueError(f"`{argument}`: expected a list of messages, got {type(messages).__name__}")
    if not messages:
        raise ValueError(f"`{argument}`: expected at least one message, got none. Leave this conversation out.")
    return [_read(message, roles, f"{argument}[{i}]", generated) for i, message in enumerate(messages)]


def _read(message: Any, roles: Sequence[str], argument: str, generated: str) -> Message:
    if not isinstance(message, Mapping):
        raise ValueError(
            f"`{argument}`: expected a mapping with 'role' and 'content', got {type(message).__name__}: {message!r:.80}"
        )
    calls = message.get("tool_calls")
    for key in _KEYS:
        if key not in message and not (key == "content" and calls):
            raise ValueError(f"`{argument}`: expected the keys 'role' and 'content', got {sorted(message)}")
    for key, value in message.items():
        if key not in _KEYS and key not in FIELDS and value is not None:
            # Dropped, a text could be lost; passed to the template, it could become structural.
            raise ValueError(
                f"`{argument}`: expected only the keys 'role', 'content' and {FIELDS}, got {key!r}. Put all text for "
                "the model into the content."
            )
    number = role_id(message["role"], roles, argument=f"{argument}['role']")
    fields = read_fields(message, roles[number] == generated, argument)
    name = f"{argument}['content']"
    content: Any = message.get("content")
    if content is None and fields.calls:
        content = ""
    if not _is_list(content):
        return Message(roles[number], number, _read_content(content, name), None, fields)
    parts = tuple(_read_content(part, name) for part in _read_parts(content, name))
    return Message(roles[number], number, "".join(parts), parts, fields)


def _read_parts(content: Sequence[Any], argument: str) -> list[str]:
    for i, part in enumerate(content):
        if not isinstance(part, Mapping) or part.get("type") != "text" or not isinstance(part.get("text"), str):
            raise ValueError(
                f"`{argument}[{i}]`: expected a part {{'type': 'text', 'text': a string}}, got {part!r:.80}"
            )
    return [part["text"] for part in content]


def _read_content(content: Any, argument: str) -> str:
    if not isinstance(content, str):
        raise ValueError(
            f"`{argument}`: expected a string or a list of text parts, got {type(content).__name__}. Pass '' for an "
            "empty message."
        )
    return whole(content)


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, (str, bytes))
