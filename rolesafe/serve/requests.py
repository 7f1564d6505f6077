"""Read the body of a chat completion: every key is used, named harmless, or refused."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rolesafe.arguments import is_integer, is_number
from rolesafe.config import RoleConfig
from rolesafe.roles.fields import check_depth
from rolesafe.serve.errors import ApiError, invalid
from rolesafe.serve.settings import REFUSED, ServeSettings

MOST_LEVELS = 100
"""Largest depth of a body."""

MOST_STOPS = 16
LONGEST_STOP = 256

_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "logit_bias": ({},),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "store": (False,),
    "functions": ([],),
    "function_call": ("none", "auto"),
}
"""Parameters that are not supported, and their values without effect."""

_IGNORED = {
    "user", "metadata", "service_tier", "safety_identifier", "prompt_cache_key", "prompt_cache_retention",
    "reasoning_effort", "verbosity",
}  # fmt: skip
"""Parameters that do not change a reply of this server."""

_USED = {
    "model", "messages", "tools", "tool_choice", "parallel_tool_calls", "documents", "chat_template_kwargs", "n",
    "stream", "stream_options", "max_tokens", "max_completion_tokens", "temperature", "top_p", "seed", "stop",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class ChatRequest:
    """A valid request.

    Attributes:
        messages: Messages with their roles after the server's role options.
        variables: ``tools`` and ``documents``, where they hold something.
        tools: Names of the tools.
        template_kwargs: Further variables of the chat template.
        n: Number of replies.
        stream: Send the reply in parts.
        include_usage: End a stream with the numbers of tokens.
        max_tokens: Longest reply, in tokens; None for the server's limit.
        temperature: Sampling temperature; 0 is greedy.
        top_p: Smallest probability mass to sample from.
        seed: Seed of sampling, or None.
        stop: Texts that end a reply; they are not part of it.
        parallel_calls: Return several tool calls of one reply.
    """

    messages: list[dict[str, Any]]
    variables: dict[str, list[Any]]
    tools: frozenset[str]
    template_kwargs: dict[str, Any]
    n: int
    stream: bool
    include_usage: bool
    max_tokens: int | None
    temperature: float
    top_p: float
    seed: int | None
    stop: tuple[str, ...]
    parallel_calls: bool


def read_json(body: bytes) -> Mapping[str, Any]:
    """Return the JSON object in a body.

    Raises:
        ApiError: It is no JSON object, or nested too deep.
    """
    try:
        value = json.loads(body)
    except (ValueError, RecursionError) as error:
        reason = "it is nested too deep" if isinstance(error, RecursionError) else str(error)
        raise ApiError(400, f"The body: expected JSON, got text that does not parse: {reason}.", code="bad_json") from (
            error
        )
    if not isinstance(value, dict):
        raise ApiError(400, f"The body: expected a JSON object, got {type(value).__name__}.", code="bad_json")
    try:
        check_depth(value, "body", MOST_LEVELS)
    except ValueError as error:
        raise ApiError.of(error) from error
    return value


def read_request(body: Mapping[str, Any], settings: ServeSettings, config: RoleConfig) -> ChatRequest:
    """Return the request in the JSON object `body`.

    Raises:
        ApiError: A parameter is unknown, not supported or out of range, or a role is unknown or refused.
    """
    given = {name: value for name, value in body.items() if value is not None}
    _check_names(given)
    if given.get("model") != settings.name:
        raise ApiError(
            404,
            f"`model`: expected {settings.name!r}, the model of this server, got {given.get('model')!r:.120}.",
            code="model_not_found",
            param="model",
        )
    options = _value(given, "stream_options", {}, lambda v: isinstance(v, dict), "an object")
    if unknown := sorted(set(options) - {"include_usage", "include_obfuscation"}):
        raise invalid(f"stream_options.{unknown[0]}", "no such option", options[unknown[0]])
    stop = _value(given, "stop", (), lambda v: isinstance(v, (str, list)), "a string or a list of strings")
    stop = (stop,) if isinstance(stop, str) else tuple(stop)
    if len(stop) > MOST_STOPS or not all(isinstance(s, str) and 0 < len(s) <= LONGEST_STOP for s in stop):
        raise invalid("stop", f"at most {MOST_STOPS} texts of 1 to {LONGEST_STOP} characters", stop)
    variables = {name: _list(given, name) for name in ("tools", "documents")}
    choice = given.get("tool_choice", "auto")
    if choice not in ("auto", "none"):
        raise invalid("tool_choice", "'auto' or 'none': a call cannot be forced", choice)
    if choice == "none":
        variables["tools"] = []
    return ChatRequest(
        messages=_messages(given, settings, config),
        variables={name: value for name, value in variables.items() if value},
        tools=frozenset(_tool_name(tool, i) for i, tool in enumerate(variables["tools"])),
        template_kwargs=_value(given, "chat_template_kwargs", {}, lambda v: isinstance(v, dict), "an object"),
        n=_value(
            given, "n", 1, lambda v: is_integer(v, 1) and v <= settings.max_choices, f"1 to {settings.max_choices}"
        ),
        stream=_flag(given, "stream", False),
        include_usage=_flag(options, "include_usage", False),
        max_tokens=_max_tokens(given, settings),
        temperature=_number(given, "temperature", 2.0),
        top_p=_number(given, "top_p", 1.0),
        seed=_value(given, "seed", None, lambda v: is_integer(v) and abs(v) < 2**63, "a 64-bit whole number"),
        stop=stop,
        parallel_calls=_flag(given, "parallel_tool_calls", True),
    )


def _check_names(given: Mapping[str, Any]) -> None:
    for name, value in given.items():
        if name in _NEUTRAL:
            if value not in _NEUTRAL[name]:
                raise ApiError(
                    400,
                    f"`{name}`: expected {_NEUTRAL[name][0]!r}: this server does not support others. Leave it out.",
                    code="unsupported_parameter",
                    param=name,
                )
        elif name not in _USED and name not in _IGNORED:
            raise ApiError(
                400,
                f"`{name}`: expected a parameter of chat completions, got an unknown one. Leave it out.",
                code="unknown_parameter",
                param=str(name)[:80],
            )


def _messages(given: Mapping[str, Any], settings: ServeSettings, config: RoleConfig) -> list[dict[str, Any]]:
    messages = given.get("messages")
    if not isinstance(messages, list) or not messages:
        raise invalid("messages", "a list of at least one message", messages)
    if len(messages) > settings.max_messages:
        raise invalid("messages", f"at most {settings.max_messages} messages", len(messages))
    return [_message(message, i, settings, config) for i, message in enumerate(messages)]


def _message(message: Any, i: int, settings: ServeSettings, config: RoleConfig) -> dict[str, Any]:
    """Return a message without empty fields, in the role that this client has for it."""
    if not isinstance(message, dict):
        raise invalid("messages", f"objects with 'role' and 'content', and `messages[{i}]` is none", message)
    name = message.get("role")
    # the exact names: a role in other letters is not quietly one of ours
    if not isinstance(name, str) or name not in config.roles:
        raise ApiError(
            400,
            f"`messages[{i}].role`: expected one of {', '.join(map(repr, config.roles))}, got {name!r:.80}.",
            code="unknown_role",
            param="messages",
        )
    target = settings.roles.get(name, name)
    if target == REFUSED:
        allowed = [role for role in config.roles if settings.roles.get(role) != REFUSED]
        raise ApiError(
            403,
            f"`messages[{i}].role`: expected one of {allowed}, got {name!r}: this server does not take messages of "
            "that role from clients.",
            code="role_not_allowed",
            param="messages",
        )
    kept = {key: value for key, value in message.items() if value is not None and value != []}
    return {**kept, "role": target, "content": kept.get("content", "")}


def _tool_name(tool: Mapping[str, Any], i: int) -> str:
    inner = tool.get("function", tool)
    name = inner.get("name") if isinstance(inner, dict) and tool.get("type", "function") == "function" else None
    if not isinstance(name, str) or not name:
        raise invalid("tools", f"functions with a name, and `tools[{i}]` is none", tool)
    return name


def _max_tokens(given: Mapping[str, Any], settings: ServeSettings) -> int | None:
    most = settings.max_new_tokens
    for name in ("max_completion_tokens", "max_tokens"):
        if name in given:
            return int(_value(given, name, None, lambda v: is_integer(v, 1) and v <= most, f"1 to {most} tokens"))
    return None


def _number(given: Mapping[str, Any], name: str, most: float) -> float:
    return float(_value(given, name, 1.0, lambda v: is_number(v) and 0 <= v <= most, f"a number of 0 to {most:g}"))


def _flag(given: Mapping[str, Any], name: str, default: bool) -> bool:
    return bool(_value(given, name, default, lambda v: isinstance(v, bool), "true or false"))


def _list(given: Mapping[str, Any], name: str) -> list[Any]:
    found = _value(given, name, [], lambda v: isinstance(v, Sequence) and not isinstance(v, str), "a list of objects")
    if not all(isinstance(item, dict) for item in found):
        raise invalid(name, "a list of objects", found)
    return list(found)


def _value(given: Mapping[str, Any], name: str, default: Any, good: Any, expected: str) -> Any:
    if given.get(name) is None:
        return default
    if not good(given[name]):
        raise invalid(name, expected, given[name])
    return given[name]
