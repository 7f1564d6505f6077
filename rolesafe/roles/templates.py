"""Chat templates, laid out without ever showing them a message's text.

A chat template is a program over the whole conversation: it may strip a content, merge a system message into the first
user turn, or look for ``</think>`` inside an answer. Here it is run with a *placeholder* in place of every content, so
nothing that anybody wrote can steer it. What comes out is cut at the placeholders into a list of :class:`Segment`:
template text that belongs to a message (its header, its footer) and the slots its content goes into.

How template text is shared out among the messages:

- text before the first content, the beginning-of-sequence token included, belongs to the first message printed;
- text between two contents is the footer of the first and the header of the second. The footer is what the template
  prints after that message when the conversation ends there, as far as both agree; where it cannot be printed on its
  own, the footer ends before the token that opens turns, else after the first added token and its line breaks, else it
  is all of the text (Llama 2's ``<</SYS>>`` belongs to the system message);
- text after the last content is its footer; what follows that is the generation prompt;
- a system prompt that a template makes up when there is none is text before the first content: it gets no more
  standing than the message it precedes. Send a system message to have one.

Roles that a template does not know (it raises, or leaves the message out) are printed under a name it knows:
privileged roles as ``system``, others as ``user``. The role *id* stays that of the sender. The role of what the model
generates is always printed as ``assistant``.

A template may print messages in another order than they were sent (Mistral v0.3 puts the system message into the last
user turn): each keeps its role. A template that loses a message, or prints one twice, is an error.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

from rolesafe.config import RoleConfig

DEFAULT_TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>\n' + message['content'] }}{{ eos_token }}{{ '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)
"""The template of ``chat_template="default"``, for tokenizers that have none: ``<|role|>\\ncontent</s>\\n``.

It adds no token to the vocabulary: the headers are plain text, the only special tokens are the tokenizer's own
beginning and end of sequence, where it has them. What separates the messages is their role ids.
"""

_CORE_ROLES = ("system", "user", "assistant")  # every chat template knows these, or refuses them by name

# A placeholder is letters only, so that no trimming, splitting or escaping in a template touches it. The white space
# around it shows what the template strips: U+2003 goes with `trim`, but not with `strip('\n')`. The line breaks are
# more than any header ends with.
_MARK, _END = "Xqzrolesafe", "Zqx"
_WIDE, _LINES = "\u2003", "\n" * 7
_LINES_AS_JSON = r"\n" * 7
_PLACEHOLDER = re.compile(rf"{_MARK}([a-z]{{6}}){_END}")

Span = tuple[int, int]


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
        text: The template's text; empty for a content.
        left, right: What the template strips from that end of a content: characters, ``None`` for all white space,
            ``""`` for nothing.
        json: Whether the template prints the content as JSON.
    """

    message: int
    part: Part
    text: str = ""
    left: str | None = ""
    right: str | None = ""
    json: bool = False


class _RefusedError(Exception):
    """The template did not print this conversation; the text says why, for the user."""


def resolve_template(tokenizer: Any, chat_template: str | None) -> str:
    """The Jinja template to use: the argument, the tokenizer's own, or the default where it is asked for.

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
            "`chat_template`: the tokenizer has no chat template and none was passed; expected one of the two. Pass "
            'chat_template="default" for rolesafe\'s documented default (rolesafe.roles.templates.DEFAULT_TEMPLATE), '
            "or a Jinja template of your own."
        )
    template = str(tokenizer.get_chat_template(chat_template))
    if chat_template is not None and not named and "{" not in template:
        names = sorted(own) if isinstance(own, dict) else []
        raise ValueError(
            f"`chat_template`: {chat_template!r} is no Jinja template and no name the tokenizer knows; expected a "
            f'template, "default" or one of {names}'
        )
    if _MARK in template:
        raise ValueError(f"`chat_template`: contains {_MARK!r}, which marks the contents while it is rendered")
    return template


def lay_out(
    template: str,
    roles: Sequence[str],
    *,
    config: RoleConfig,
    add_generation_prompt: bool,
    variables: Mapping[str, Any],
    markers: Callable[[str], list[Span]],
) -> tuple[Segment, ...]:
    """Segments of a conversation of these roles, in the order in which the template prints them.

    Args:
        template: A Jinja chat template.
        roles: Role names of the messages.
        config: Says which roles are privileged and which one is generated.
        add_generation_prompt: As in ``apply_chat_template``.
        variables: What the template sees besides the messages: the special tokens by name, and the caller's own.
        markers: Spans of the added tokens in a text, in order.

    Raises:
        ValueError: The template refuses the conversation, loses a message or prints one twice.
    """
    page = _Page(template, variables, markers)
    own = ["assistant" if name == config.generated else name for name in roles]
    known = [name if name in _CORE_ROLES else "system" if name in config.privileged else "user" for name in own]
    reasons = []
    for names in [own] if own == known else [own, known]:
        try:
            return page.segments(names, add_generation_prompt)
        except _RefusedError as error:  # noqa: PERF203 - two rounds at most
            reasons.append(str(error))
    culprit = page.refused_role(own)
    raise ValueError(
        f"`messages`: the chat template does not print this conversation of roles {list(roles)}: {reasons[-1]}. "
        + (f"It refuses role {culprit!r}. " if culprit else "")
        + 'Pass another `chat_template` (a Jinja template, or "default" for rolesafe\'s own, which prints every '
        "role), or send the messages in an order and with roles that this one prints."
    )


class _Page:
    """One template with its variables: renders placeholders and cuts the result."""

    def __init__(self, template: str, variables: Mapping[str, Any], markers: Callable[[str], list[Span]]) -> None:
        self.template = template
        self.variables = variables
        self.markers = markers

    def segments(self, names: Sequence[str], add_generation_prompt: bool) -> tuple[Segment, ...]:
        gaps, slots = self._split(self._render(names, add_generation_prompt), len(names))
        for i, name in enumerate(names):
            count = sum(slot.message == i for slot in slots)
            if count != 1:
                fault = "loses" if count == 0 else "repeats"
                raise _RefusedError(f"it {fault} message {i} (role {name!r})")
        opener = self._opener(gaps[0])
        cuts: dict[tuple[str, str | None, str], int] = {}  # equal text between equal roles is cut alike
        out = [Segment(slots[0].message, Part.HEADER, gaps[0]), slots[0]]
        for slot, gap, following in zip(slots, gaps[1:], [*slots[1:], None], strict=True):
            key = (names[slot.message], names[following.message] if following else None, gap)
            if key not in cuts:
                # The last message is closed by the whole conversation, whatever order it was printed in.
                closing = self._closing(names, slot.message, whole=following is None)
                cuts[key] = self._cut(gap, closing, opener)
            at = cuts[key]
            out.append(Segment(slot.message, Part.FOOTER, gap[:at]))
            out.append(Segment(following.message if following else len(names), Part.HEADER, gap[at:]))
            if following is not None:
                out.append(following)
        return tuple(s for s in out if s.text or s.part is Part.CONTENT)

    def refused_role(self, names: Sequence[str]) -> str | None:
        """The role without which the template would print the conversation, if there is exactly one."""
        culprits = []
        for role in dict.fromkeys(names):
            rest = [name for name in names if name != role]
            try:
                if rest:
                    self.segments(rest, False)
                    culprits.append(role)
            except _RefusedError:
                continue
        return culprits[0] if len(culprits) == 1 else None

    # ----------------------------------------------------------------------------------------------------- rendering

    def _render(self, names: Sequence[str], add_generation_prompt: bool) -> str:
        from jinja2 import TemplateError
        from transformers.utils.chat_template_utils import render_jinja_template

        messages = [
            {"role": name, "content": f"{_LINES}{_WIDE}{_MARK}{_letters(i)}{_END}{_WIDE}{_LINES}"}
            for i, name in enumerate(names)
        ]
        try:
            rendered, _ = render_jinja_template(
                conversations=[messages],
                chat_template=self.template,
                add_generation_prompt=add_generation_prompt,
                **self.variables,
            )
        except (TemplateError, TypeError, LookupError, AttributeError) as error:
            raise _RefusedError(f"it says {str(error)!r}") from error
        return str(rendered[0])

    def _split(self, text: str, count: int) -> tuple[list[str], list[Segment]]:
        """Cut at the placeholders: ``n + 1`` stretches of template text around n contents."""
        gaps, slots, at = [], [], 0
        for match in _PLACEHOLDER.finditer(text):
            message = _number(match[1])
            if message >= count:  # pragma: no cover - a template cannot know these letters
                raise _RefusedError("it prints a content that is not there")
            start, end = match.span()
            before, after = text[at:start], text[end : end + 1 + len(_LINES_AS_JSON)]
            left: str | None = None
            right: str | None = None
            as_json = before.endswith(_LINES_AS_JSON + _WIDE) and after == _WIDE + _LINES_AS_JSON
            if as_json:
                before, end, left, right = before[: -len(after)], end + len(after), "", ""
            elif before.endswith(_WIDE):
                before, left = before[:-1], "\n"
                if before.endswith(_LINES):
                    before, left = before[: -len(_LINES)], ""
            if not as_json and after.startswith(_WIDE):
                end, right = end + 1, "\n"
                if after.startswith(_WIDE + _LINES):
                    end, right = end + len(_LINES), ""
            gaps.append(before)
            slots.append(Segment(message, Part.CONTENT, left=left, right=right, json=as_json))
            at = end
        gaps.append(text[at:])
        return gaps, slots

    # ---------------------------------------------------------------------------------------- footer | header of a gap

    def _opener(self, first: str) -> str | None:
        """The added token that opens a turn: the first one of the first header that is not the sequence's own."""
        outer = {self.variables.get("bos_token"), self.variables.get("eos_token")}
        for start, end in self.markers(first):
            if first[start:end] not in outer:
                return first[start:end]
        return None

    def _closing(self, names: Sequence[str], message: int, *, whole: bool) -> str | None:
        """What the template prints after `message` when it is the last one; None where that cannot be printed."""
        head = names if whole else names[: message + 1]
        try:
            gaps, slots = self._split(self._render(head, False), len(head))
        except _RefusedError:
            return None
        if not slots or slots[-1].message != message or len(slots) != len(head):
            return None
        return gaps[-1]

    def _cut(self, gap: str, closing: str | None, opener: str | None) -> int:
        """Length of the footer at the start of `gap`."""
        spans = self.markers(gap)
        opens = [start for start, end in spans if gap[start:end] == opener]
        if closing is not None:
            length = self._agreed(gap, closing)
            return min([length, *opens])
        if opens:
            return opens[0]
        if spans:
            rest = gap[spans[0][1] :]
            return len(gap) - len(rest.lstrip("\n"))
        return len(gap)

    def _agreed(self, gap: str, closing: str) -> int:
        """Length of the longest start that both have, counting added tokens as a whole and not ending inside a word."""
        if gap.startswith(closing):
            return len(closing)
        ends = {end for _, end in self.markers(gap)}
        starts = [{start for start, _ in self.markers(text)} for text in (gap, closing)]
        inside = {i for start, end in self.markers(gap) for i in range(start + 1, end)}
        inside |= {i for start, end in self.markers(closing) for i in range(start + 1, end)}
        length = 0
        while length < min(len(gap), len(closing)) and gap[length] == closing[length]:
            length += 1
        while length in inside:
            length -= 1
        if any(
            length == len(t) or length in s or t[length] == "\n" for t, s in zip((gap, closing), starts, strict=True)
        ):
            return length
        # Both go on with ordinary text: fall back to the last line break or added token, or "<|" would be torn off.
        return max([0, *(end for end in ends if end <= length), gap.rfind("\n", 0, length) + 1])


def _letters(number: int) -> str:
    return "".join(chr(ord("a") + number // 26**k % 26) for k in range(6))


def _number(letters: str) -> int:
    return sum((ord(c) - ord("a")) * 26**k for k, c in enumerate(letters))
