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
from typing import TYPE_CHECKING, Any

from rolesafe.config import RoleConfig
from rolesafe.roles.attribution import attribute
from rolesafe.roles.messages import Message
from rolesafe.roles.role import DEFAULT_ROLES
from rolesafe.roles.segments import NEUTRAL, RefusedError, Segment, Shape, Span
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
    ) -> None:
        self.renderer = renderer
        self.config = config
        self.variables = variables
        self.generation = add_generation_prompt
        self.markers = markers
        self.known = {} if known is None else known

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
        contents: Sequence[str | Sequence[str]],
        *,
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
                make_message(i, name, content)
                for i, (name, content) in enumerate(zip(names, contents, strict=True))
                if i != without
            ],
            self.variables,
            add_generation_prompt=self.generation if generation is None else generation,
        )

    def _print(self, conversation: Sequence[Message], argument: str) -> tuple[Shape, Traced]:
        """Return the form in which the template gets the messages, and its text."""
        roles = tuple(message.role for message in conversation)
        own = tuple("assistant" if name == self.config.generated else name for name in roles)
        shapes = tuple(message.parts is not None for message in conversation)
        key = ("names", own, shapes, tuple(bool(message.content.strip()) for message in conversation))
        reasons = []
        for names, joined in dict.fromkeys([self.known.get(key, (own, False)), *self._plans(own, any(shapes))]):
            contents = [m.shown(self._reads_parts(m, joined)) for m in conversation]
            try:
                text = self.render(names, contents)
                self._check_whole(names, contents, text)
            except RefusedError as error:
                reasons.append(str(error))
                continue
            if key not in self.known:
                _warn_renamed(roles, own, names)
            _keep(self.known, key, (names, joined))
            return Shape(names, tuple(not isinstance(content, str) for content in contents)), text
        culprit = self._refused_role(own)
        raise ValueError(
            f"`{argument}`: the chat template does not print this conversation of roles {list(roles)}: {reasons[0]}. "
            + (f"It rejects role {culprit!r}. " if culprit else "")
            + 'Pass another `chat_template` (a Jinja template, or "default", which prints every role), or send '
            "messages in an order and with roles that this one prints."
        )

    @staticmethod
    def _reads_parts(message: Message, other: bool) -> bool:
        """Return True if the content is passed as a list of parts: as it was sent, or inverted for `other`."""
        return (message.parts is not None) != other

    def _plans(self, own: tuple[str, ...], parts: bool) -> Iterator[tuple[tuple[str, ...], bool]]:
        """Iterate over ways to print a conversation: names of the roles, True for contents in their other form.

        As few roles are renamed as possible, and none that every template supports.
        """
        foreign = [name for name in dict.fromkeys(own) if name not in CORE_ROLES]
        for count in range(len(foreign) + 1):
            for renamed in combinations(foreign, count):
                names = tuple(
                    ("system" if name in self.config.privileged else "user") if name in renamed else name
                    for name in own
                )
                yield names, False
                yield names, True

    def _check_whole(self, names: tuple[str, ...], contents: Sequence[str | Sequence[str]], text: Traced) -> None:
        """Raise where the template omits a message that has text."""
        printed = _printed(text)
        for i, content in enumerate(contents):
            if i in printed or not "".join(content).strip():
                continue
            neutral = [NEUTRAL if isinstance(content, str) else [NEUTRAL] for content in contents]
            if i not in _printed(self.render(names, neutral)):
                raise RefusedError(f"it omits message {i} (role {names[i]!r})")

    def _refused_role(self, names: Sequence[str]) -> str | None:
        """Return the role without which the template prints the conversation, if there is exactly one."""
        culprits = []
        for role in dict.fromkeys(names):
            rest = [name for name in names if name != role]
            try:
                if rest and _printed(self.render(rest, [NEUTRAL] * len(rest), generation=False)) == set(
                    range(len(rest))
                ):
                    culprits.append(role)
            except RefusedError:
                continue
        return culprits[0] if len(culprits) == 1 else None

    # ------------------------------------------------------------------- output of the template in other conversations

    def generation_literals(self, shape: Shape) -> frozenset[Any]:
        """Return the names of the literals that the template prints because of ``add_generation_prompt``."""
        try:
            whole, less = (self.render(shape.names, shape.neutral(), generation=g) for g in (True, False))
        except RefusedError:
            return frozenset()
        return frozenset(_literals(whole) - _literals(less))

    def opening_without(self, shape: Shape, guest: int, host: int) -> str | None:
        """Return the text in the round of `host` before its content in the conversation without `guest`.

        None where the template does not print it, or prints `host` outside of its round.
        """
        try:
            text = self.render(shape.names, shape.neutral(), without=guest)
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


def _warn_renamed(roles: Sequence[str], own: Sequence[str], names: Sequence[str]) -> None:
    """Warn that roles are printed under other names, at the line outside of rolesafe."""
    renamed = {role: name for role, before, name in zip(roles, own, names, strict=True) if before != name}
    if not renamed:
        return
    level, frame = 1, inspect.currentframe()
    while frame is not None and frame.f_globals.get("__name__", "").startswith("rolesafe."):
        level, frame = level + 1, frame.f_back
    printed = ", ".join(f"{role!r} is printed as {name!r}" for role, name in renamed.items())
    warnings.warn(
        f"`chat_template`: expected support for every role of this conversation, got {printed}. Their role ids are "
        'kept. Pass another `chat_template` (a Jinja template, or "default") to print them under their names.',
        stacklevel=level,
    )


def _keep(known: dict[Any, Any], key: Any, value: Any) -> None:
    if len(known) >= _CACHE_SIZE:
        known.clear()
    known[key] = value


def _literals(text: Traced) -> Counter[Any]:
    """Return the number of times that each literal is printed."""
    return Counter(source.name for _, source in text._runs if source.kind is Kind.TEMPLATE)


def _printed(text: Traced) -> set[int | None]:
    """Return the messages with some content in the text."""
    return {source.message for length, source in text._runs if length and source.kind is Kind.CONTENT}
