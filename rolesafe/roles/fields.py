"""Fields of a message besides its role and content: tool calls, the id of a call, a name, reasoning."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

FIELDS = ("tool_calls", "tool_call_id", "name", "reasoning_content")
"""Keys that a message may have besides ``"role"`` and ``"content"``."""

OF_THE_MODEL = ("tool_calls", "reasoning_content")
"""Fields of messages of the generated role only."""

MOST_LEVELS = 64
"""Largest depth of the arguments of a call."""


@dataclass(frozen=True)
class Call:
    """A tool call.

    Attributes:
        name: Name of the function.
        text: Its arguments as JSON, as they were sent.
        arguments: Its arguments by name; None where `text` is no JSON object.
        id: Id of the call, or None.
    """

    name: str
    text: str
    arguments: Mapping[str, Any] | None = None
    id: str | None = None

    def as_json(self) -> str:
        """Return the call as one JSON object with ``"name"`` and ``"arguments"``."""
        arguments = self.text if self.arguments is None else self.arguments
        return json.dumps({"name": self.name, "arguments": arguments}, ensure_ascii=False)


@dataclass(frozen=True)
class Fields:
    """Further fields of a message.

    Attributes:
        calls: Tool calls.
        texts: Name and text of the other fields.
    """

    calls: tuple[Call, ...] = ()
    texts: tuple[tuple[str, str], ...] = ()

    @property
    def form(self) -> tuple[Any, ...]:
        """Everything about the fields but their texts: the attribution of template text may depend on it."""
        calls = tuple((call.arguments is None, bool(call.arguments), call.id is not None) for call in self.calls)
        return calls, tuple(name for name, _ in self.texts)


NONE = Fields()
"""The fields of a message with role and content alone."""

NEUTRAL = "Hello"
"""Text of conversations that are rendered to analyse a template."""

_NEUTRAL_ID = "call00000"
"""Nine letters and digits, as Mistral's templates ask for."""


def neutral(form: tuple[Any, ...]) -> Fields:
    """Return fields of this form with neutral texts."""
    calls = tuple(
        Call(
            NEUTRAL,
            NEUTRAL,
            None if bare else ({NEUTRAL: NEUTRAL} if some else {}),
            _NEUTRAL_ID if identified else None,
        )
        for bare, some, identified in form[0]
    )
    return Fields(calls, tuple((name, _NEUTRAL_ID if name == "tool_call_id" else NEUTRAL) for name in form[1]))


def read_fields(message: Mapping[str, Any], is_model: bool, argument: str) -> Fields:
    """Return the fields of a message; those that are None are absent.

    Args:
        message: The message.
        is_model: True if its role is that of generated tokens.
        argument: Its name in errors.

    Raises:
        ValueError: A field has a wrong type, or belongs to a message of another role.
    """
    found = [name for name in FIELDS if message.get(name) is not None]
    if not found:
        return NONE
    for name in found:
        if (name in OF_THE_MODEL) != is_model and name != "name":
            wanted = "a message of the model" if name in OF_THE_MODEL else "the result of a tool"
            raise ValueError(
                f"`{argument}[{name!r}]`: expected this key in {wanted} only, got it in a message of role "
                f"{message['role']!r}. Remove it, or correct the role."
            )
    calls = _read_calls(message["tool_calls"], f"{argument}['tool_calls']") if "tool_calls" in found else ()
    texts = [(name, _text(message[name], f"{argument}[{name!r}]")) for name in found if name != "tool_calls"]
    return Fields(calls, tuple(texts))


def _read_calls(calls: Any, argument: str) -> tuple[Call, ...]:
    if not isinstance(calls, Sequence) or isinstance(calls, (str, bytes)):
        raise ValueError(f"`{argument}`: expected a list of calls, got {type(calls).__name__}. Pass a list.")
    return tuple(_read_call(call, f"{argument}[{i}]") for i, call in enumerate(calls))


def _read_call(call: Any, argument: str) -> Call:
    # OpenAI nests the name and the arguments in "function"; templates of Hugging Face take both forms.
    inner = call.get("function", call) if isinstance(call, Mapping) else None
    if not isinstance(inner, Mapping) or not isinstance(inner.get("name"), str) or not inner["name"].strip():
        raise ValueError(
            f"`{argument}`: expected {{'type': 'function', 'function': {{'name': ..., 'arguments': ...}}}}, got "
            f"{call!r:.120}. Only calls of functions are supported."
        )
    kind, given, number = call.get("type") or "function", inner.get("arguments"), call.get("id")
    if kind != "function":
        raise ValueError(f"`{argument}['type']`: expected 'function', got {kind!r:.80}. Other calls are not supported.")
    identifier = None if number is None else _text(number, f"{argument}['id']")
    if given is None:
        given = {}
    where = f"{argument}['function']['arguments']"
    if isinstance(given, str):
        given = text = _text(given, where)
        arguments = _parsed(text)
    elif isinstance(given, Mapping):
        arguments = given
        check_depth(given, where)
        try:
            text = json.dumps(given, ensure_ascii=False)
        except (TypeError, ValueError) as error:
            raise ValueError(f"`{where}`: expected values that JSON can hold, got {error}. Convert them.") from error
        arguments = json.loads(whole(text))
    else:
        raise ValueError(f"`{where}`: expected a mapping or a JSON string, got {type(given).__name__}. Pass a mapping.")
    if arguments is not None:
        check_depth(arguments, where)
    return Call(_text(inner["name"], f"{argument}['function']['name']"), whole(text), arguments, identifier)


def _parsed(text: str) -> Mapping[str, Any] | None:
    """Return the JSON object in a text, or None."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def check_depth(value: Any, argument: str, most: int = MOST_LEVELS) -> None:
    """Raise a ValueError where data is nested more than `most` levels deep; recursive code would fail on it."""
    level, ahead = 0, [value]
    while ahead := [item for item in ahead if isinstance(item, (Mapping, list, tuple))]:
        level += 1
        if level > most:
            raise ValueError(f"`{argument}`: expected at most {most} nested levels, got more. Make it flatter.")
        ahead = [inner for item in ahead for inner in (item.values() if isinstance(item, Mapping) else item)]


def _text(value: Any, argument: str) -> str:
    if not isinstance(value, str):
        raise ValueError(
            f"`{argument}`: expected a string, got {type(value).__name__}. Pass a string, or leave it out."
        )
    return whole(value)


def whole(text: str) -> str:
    """Return `text` with half surrogate pairs as U+FFFD: tokenizers reject them, and text of users must not raise."""
    if text.isascii():
        return text
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
