"""Choose the chat template, print a conversation with it and cut the text into segments of messages.

The template is run on the real conversation by :mod:`rolesafe.roles.rendering`, which traces every character of the
result. Template text is attributed to messages by :mod:`rolesafe.roles.attribution`.

Roles that a template does not support (it raises, or omits the message) are printed under a supported name: privileged
roles as ``system``, others as ``user``. The role *id* stays that of the sender. The role of generated tokens is always
printed as ``assistant``.

A template may reorder messages (Mistral v0.3 puts the system message into the last user turn): each keeps its role. A
template that omits a message raises.
"""

from __future__ import annotations

import inspect
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import combinations
from typing import TYPE_CHECKING, Any, get_args

from rolesafe.config import RoleConfig
from rolesafe.roles.attribution import attribute
from rolesafe.roles.fields import NEUTRAL, NONE
from rolesafe.roles.messages import Message
from rolesafe.roles.role import DEFAULT_ROLES
from rolesafe.roles.segments import FORMS, PLAIN, Body, Contents, Form, RefusedError, Segment, Shape, Span, bodies
from rolesafe.roles.segments import Part as Part
from rolesafe.roles.traced import Kind, Traced

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from rolesafe.roles.rendering import Renderer

DEFAULT_TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>\n' + message['content'] }}{{ eos_token }}{{ '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)
"""The template of ``chat_template="default"``, for tokenizers that have none: ``<|role|>\\ncontent</s>\\n``.

It adds no token to the vocabulary: the headers are plain text, the only special tokens are the tokenizer's own
beginning and end of sequence, where it has them. Role ids separate the messages.
"""

ROLE_NAMES = DEFAULT_ROLES
"""Names that a template may print for roles."""

CORE_ROLES = ("system", "user", "assistant")
"""Roles that every chat template supports, or rejects by name."""

_CACHE_SIZE = 1024


def resolve_template(tokenizer: PreTrainedTokenizerBase, chat_template: str | None, tools: Any = None) -> str:
    """Return the Jinja template to use: the argument, the tokenizer's own, or the default if requested.

    Args:
        tokenizer: A transformers tokenizer.
        chat_template: A Jinja template, the name of one of the tokenizer's, ``"default"``, or None.
        tools: The template's ``tools``: with them a tokenizer of several templates uses ``tool_use``.

    Raises:
        ValueError: There is no template.
    """
    if chat_template is not None and not isinstance(chat_template, str):
        raise ValueError(
            f"`chat_template`: expected a Jinja template, a name or None, got {type(chat_template).__name__}"
        )
    own = tokenizer.chat_template
    named = isinstance(own, dict) and chat_template in own
    if chat_template == "default" and not named:
        return DEFAULT_TEMPLATE
    if own is None and chat_template is None:
        raise ValueError(
            "`chat_template`: expected a template for a tokenizer without one, got None. Pass "
            'chat_template="default" (rolesafe.roles.templates.DEFAULT_TEMPLATE), or a Jinja template.'
        )
    template = str(tokenizer.get_chat_template(chat_template, tools))
    if chat_template is not None and not named and "{" not in template:
        names = sorted(own) if isinstance(own, dict) else []
        raise ValueError(
            f'`chat_template`: expected a Jinja template, "default" or one of {names}, got {chat_template!r}'
        )
    return template


class Layout:
    """Print conversations with one template and the variables of one call, and cut the text into segments.

    Args:
        renderer: The template.
        config: Role configuration.
        variables: Further variables of the template, traced.
        add_generation_prompt: As in ``apply_chat_template``.
        markers: Returns the spans of the structural tokens in a text of the template, in order.
        known: Cache of earlier calls with the same template, configuration and variables.
        required: Names of variables that the template has to print, where they hold something.
    """

    def __init__(
        self,
        renderer: Renderer,
        config: RoleConfig,
        variables: Mapping[str, Any],
        *,
        add_generation_prompt: bool,
        markers: Callable[[str], list[Span]],
        known: dict[Any, Any] | None = None,
        required: Sequence[str] = (),
    ) -> None:
        self.renderer = renderer
        self.config = config
        self.variables = variables
        self.generation = add_generation_prompt
        self.markers = markers
        self.known = {} if known is None else known
        self.required = [name for name in required if variables.get(name)]

    def segments(self, conversation: Sequence[Message], argument: str = "messages") -> list[Segment]:
        """Print a conversation and cut it into segments, in the order in which the template prints them.

        Raises:
            ValueError: The template rejects the conversation or omits a message.
        """
        shape, text = self._print(conversation, argument)
        key = ("plan", shape, tuple(source for _, source in text._runs))
        if key not in self.known:  # the same for every conversation that is printed from the same literals
            _keep(self.known, key, attribute(self, shape, conversation, text))
        runs, at, plain = [], 0, str.__str__(text)
        for length, _ in text._runs:
            runs.append(plain[at : at + length])
            at += length
        found = [(owner, "".join([runs[k][a:b] for k, a, b in cuts])) for owner, cuts in self.known[key]]
        return [Segment(owner[0], owner[1], owner[2], owner[3], text) for owner, text in found if text]

    # ------------------------------------------------------------------------------------------------------- printing

    def render(
        self,
        names: Sequence[str],
        given: Sequence[Body],
        *,
        form: Form = PLAIN,
        without: int | None = None,
        generation: bool | None = None,
    ) -> Traced:
        """Return the text of a conversation, optionally without one of its messages.

        Raises:
            RefusedError: The template does not print it.
        """
        from rolesafe.roles.rendering import make_message

        return self.renderer.render(
            [
                make_message(i, name, body, form)
                for i, (name, body) in enumerate(zip(names, given, strict=True))
                if i != without
            ],
            self.variables,
            add_generation_prompt=self.generation if generation is None else generation,
        )

    def _print(self, conversation: Sequence[Message], argument: str) -> tuple[Shape, Traced]:
        """Return the form in which the template gets the messages, and its text."""
        roles = tuple(message.role for message in conversation)
        own = tuple("assistant" if name == self.config.generated else name for name in roles)
        shapes = tuple((message.parts is not None, message.fields.form) for message in conversation)
        key = ("names", own, shapes, tuple(bool(message.content.strip()) for message in conversation))
        reasons = []
        plans = self._plans(own, conversation)
        for names, contents, form in dict.fromkeys([self.known.get(key, (own, "sent", PLAIN)), *plans]):
            given = bodies(conversation, contents, form)
            try:
                text = self.render(names, given, form=form)
                self._check_whole(names, given, form, text)
            except RefusedError as error:
                reasons.append(str(error))
                continue
            self._check_variables(text)
            if key not in self.known:
                _warn_changed(roles, own, names, form)
            _keep(self.known, key, (names, contents, form))
            return Shape.of(names, given, form), text
        culprit = self._refused_role(own)
        raise ValueError(
            f"`{argument}`: the chat template does not print this conversation of roles {list(roles)}: {reasons[0]}. "
            + (f"It rejects role {culprit!r}. " if culprit else "")
            + 'Pass another `chat_template` (a Jinja template, or "default", which prints every role), or send '
            "messages in an order and with roles that this one prints."
        )

    def _plans(
        self, own: tuple[str, ...], conversation: Sequence[Message]
    ) -> Iterator[tuple[tuple[str, ...], Contents, Form]]:
        """Iterate over ways to print a conversation: names of the roles, form of the contents, form of the calls.

        As few roles are renamed as possible, and none that every template supports. Calls become text of the content
        where no names print them.
        """
        foreign = [name for name in dict.fromkeys(own) if name not in CORE_ROLES]
        for form in FORMS if any(message.fields.calls for message in conversation) else FORMS[:1]:
            for count in range(len(foreign) + 1):
                for renamed in combinations(foreign, count):
                    names = tuple(
                        ("system" if name in self.config.privileged else "user") if name in renamed else name
                        for name in own
                    )
                    yield from ((names, contents, form) for contents in get_args(Contents))

    def _check_whole(self, names: tuple[str, ...], given: Sequence[Body], form: Form, text: Traced) -> None:
        """Raise where the template omits a content or a tool call that has text."""
        printed = _printed(text)
        for i, (content, fields) in enumerate(given):
            for k, call in enumerate(fields.calls):
                # Kimi K2 prints the id alone, which holds the name
                names_it = (i, ("name", k)) in printed or (call.name in (call.id or "") and (i, ("id", k)) in printed)
                has_arguments = bool(call.text if form.text_arguments else call.arguments)
                if not names_it or (has_arguments and (i, ("arguments", k)) not in printed):
                    raise RefusedError(f"it omits a tool call of message {i} (role {names[i]!r})")
            if (i, None) in printed or content is None or not "".join(content).strip():
                continue
            neutral = Shape.of(names, given, form).neutral()
            if (i, None) not in _printed(self.render(names, neutral, form=form)):
                raise RefusedError(f"it omits message {i} (role {names[i]!r})")

    def _check_variables(self, text: Traced) -> None:
        """Raise where the template omits a required variable."""
        printed = {source.name for length, source in text._runs if length and source.kind is Kind.VARIABLE}
        for name in self.required:
            if name not in printed:
                raise ValueError(
                    f"`{name}`: expected a chat template that prints them, got one that does not: the model would not "
                    f"read them. Leave out `{name}`, write them into a message, or pass another `chat_template`."
                )

    def _refused_role(self, names: Sequence[str]) -> str | None:
        """Return the role without which the template prints the conversation, if there is exactly one."""
        culprits = []
        for role in dict.fromkeys(names):
            rest = [name for name in names if name != role]
            try:
                neutral: list[Body] = [(NEUTRAL, NONE)] * len(rest)
                printed = _printed(self.render(rest, neutral, generation=False))
                if rest and printed == {(i, None) for i in range(len(rest))}:
                    culprits.append(role)
            except RefusedError:
                continue
        return culprits[0] if len(culprits) == 1 else None

    # ------------------------------------------------------------------- output of the template in other conversations

    def generation_literals(self, shape: Shape) -> frozenset[Any]:
        """Return the names of the literals that the template prints because of ``add_generation_prompt``."""
        try:
            whole, less = (
                self.render(shape.names, shape.neutral(), form=shape.form, generation=g) for g in (True, False)
            )
        except RefusedError:
            return frozenset()
        return frozenset(_literals(whole) - _literals(less))

    def opening_without(self, shape: Shape, guest: int, host: int) -> str | None:
        """Return the text in the round of `host` before its content in the conversation without `guest`.

        None where the template does not print it, or prints `host` outside of its round.
        """
        try:
            text = self.render(shape.names, shape.neutral(), form=shape.form, without=guest)
        except RefusedError:
            return None
        at, opening = 0, ""
        for length, source in text._runs:
            piece = str.__str__(text)[at : at + length]
            at += length
            if source.kind is Kind.CONTENT and source.message == host:
                return opening
            if source.kind is not Kind.TEMPLATE or source.message != host:
                opening = ""
            elif source.name != "bos_token":
                opening += piece
        return None


def _warn_changed(roles: Sequence[str], own: Sequence[str], names: Sequence[str], form: Form) -> None:
    """Warn that roles are printed under other names, or calls as text, at the line outside of rolesafe."""
    renamed = {role: name for role, before, name in zip(roles, own, names, strict=True) if before != name}
    changed = [f"{role!r} is printed as {name!r}" for role, name in renamed.items()]
    wanted = ["every role"] * bool(renamed)
    if form.spelled:
        changed.append("tool calls are printed as JSON at the end of the content")
        wanted.append("the tool calls")
    if not changed:
        return
    level, frame = 1, inspect.currentframe()
    while frame is not None and frame.f_globals.get("__name__", "").startswith("rolesafe."):
        level, frame = level + 1, frame.f_back
    warnings.warn(
        f"`chat_template`: expected support for {' and '.join(wanted)} of this conversation, got "
        f'{", ".join(changed)}. Role ids are kept. Pass another `chat_template` (a Jinja template, or "default") to '
        "print them under their names.",
        stacklevel=level,
    )


def _keep(known: dict[Any, Any], key: Any, value: Any) -> None:
    if len(known) >= _CACHE_SIZE:
        known.clear()
    known[key] = value


def _literals(text: Traced) -> Counter[Any]:
    """Return the number of times that each literal is printed."""
    return Counter(source.name for _, source in text._runs if source.kind is Kind.TEMPLATE)


def _printed(text: Traced) -> set[tuple[int | None, tuple[str, int] | None]]:
    """Return the message and the field of every content with some text."""
    return {(source.message, source.field) for length, source in text._runs if length and source.kind is Kind.CONTENT}
