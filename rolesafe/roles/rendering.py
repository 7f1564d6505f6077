"""Chat templates rendered so that every character of the result has a source.

The template runs as in ``apply_chat_template``: same Jinja environment, same variables, the real contents. But its
literals, the messages and the caller's variables are :class:`~rolesafe.roles.traced.Traced` strings, and the compiled
code records the message of each printed run (:mod:`rolesafe.roles.jinja_tracing`). :meth:`Renderer.render` raises where
the text differs from that of ``apply_chat_template``.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any, cast

from jinja2 import TemplateError
from transformers.utils.chat_template_utils import _compile_jinja_template, get_json_schema

from rolesafe.roles.fields import Call
from rolesafe.roles.jinja_tracing import Message, TracingEnvironment, Turn, current_turn
from rolesafe.roles.segments import Body, Form, RefusedError
from rolesafe.roles.traced import PRINTED, Kind, Source, Traced
from rolesafe.roles.traced_data import wrap


def make_message(index: int, role: str, body: Body, form: Form = Form()) -> Message:  # noqa: B008  (immutable)
    """Return a message for the template: its role traced as template text, its content and fields as content."""
    source = Source(Kind.CONTENT, index)
    content, fields = body
    shown: Any = Traced.of(content, source) if isinstance(content, str) else None
    if shown is None and content is not None:
        shown = [{"type": "text", "text": Traced.of(text, source)} for text in content]
    message = Message(role=Traced.of(role, Source(Kind.TEMPLATE, index, "role")), content=shown)
    message._index = index
    for name, text in fields.texts:
        message[name] = Traced.of(text, source._replace(field=(name, 0)))
    if fields.calls:
        message["tool_calls"] = [_call(call, k, source, form) for k, call in enumerate(fields.calls)]
    return message


def _call(call: Call, k: int, source: Source, form: Form) -> dict[str, Any]:
    """Return a tool call in the form of OpenAI and Hugging Face."""
    arguments = call.text if form.text_arguments or call.arguments is None else call.arguments
    function = {
        _printed("name"): Traced.of(call.name, source._replace(field=("name", k))),
        _printed("arguments"): wrap(arguments, source._replace(field=("arguments", k))),
    }
    about: dict[str, Any] = {_printed("type"): _printed("function"), _printed("function"): function}
    if call.id is None:
        return about
    return {_printed("id"): Traced.of(call.id, source._replace(field=("id", k))), **about}


def _printed(text: str) -> Traced:
    """Return a text that is the template's where it is printed, such as a key of JSON."""
    return Traced.of(text, PRINTED)


class Renderer:
    """Chat template, compiled with tracing.

    Args:
        template: A Jinja chat template.

    Attributes:
        literals: Texts that the template can print or looks for, in its order.

    Raises:
        ValueError: The template does not compile.
    """

    def __init__(self, template: str) -> None:
        try:
            self._plain = _compile_jinja_template(template)
            self._environment = TracingEnvironment(self._plain.environment)
            self._traced = self._environment.from_string(template)
        except TemplateError as error:
            raise ValueError(
                f"`chat_template`: expected a Jinja template, got one that does not compile: {error}. Correct it."
            ) from error
        self.literals = self._environment.literals

    def render(
        self,
        messages: Sequence[Message],
        variables: Mapping[str, Any],
        *,
        add_generation_prompt: bool = False,
    ) -> Traced:
        """Return the conversation printed by the template.

        Args:
            messages: Messages with traced contents.
            variables: Further variables of the template, traced (:func:`trace_variables`).
            add_generation_prompt: As in ``apply_chat_template``.

        Raises:
            RefusedError: The template raised, or does something that cannot be traced.
        """
        given = {"tools": None, "documents": None, **variables, "add_generation_prompt": add_generation_prompt}
        token = current_turn.set(Turn())
        try:
            text = cast(Traced, self._traced.render(messages=list(messages), **given))
            expected = self._plain.render(messages=_plain(list(messages)), **_plain(given))
        except (TemplateError, TypeError, LookupError, AttributeError) as error:
            raise RefusedError(f"it raises {str(error)!r}") from error
        finally:
            current_turn.reset(token)
        if str.__str__(text) != expected or any(n and s.kind is Kind.UNKNOWN for n, s in text._runs):
            raise RefusedError("it changes a text in a way that rolesafe cannot trace")
        return text


@functools.lru_cache(maxsize=256)
def renderer(template: str) -> Renderer:
    """Return the :class:`Renderer` of a template, compiled once."""
    return Renderer(template)


def trace_variables(special_tokens: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the template's variables: special tokens traced as template text, the caller's texts as variables.

    Functions among the ``tools`` become their JSON schemas, as in ``apply_chat_template``.
    """
    known = {name: wrap(value, Source(Kind.TEMPLATE, name=name)) for name, value in special_tokens.items()}
    for name, value in given.items():
        if name in special_tokens and value == special_tokens[name]:
            continue
        if name == "tools" and value is not None:
            value = [tool if isinstance(tool, Mapping) else get_json_schema(tool) for tool in value]
        known[name] = wrap(value, Source(Kind.VARIABLE, name=name))
    return known


def _plain(value: Any) -> Any:
    """Return a copy of data with plain strings."""
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, (dict, Mapping)):  # dict first: checks against abstract classes are slow
        return {_plain(key): _plain(item) for key, item in value.items()}
    return value
