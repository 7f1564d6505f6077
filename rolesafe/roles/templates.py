"""Chat templates: which one is used, and to which message each piece of the printed text belongs.

The template is run on the real conversation by :mod:`rolesafe.roles.rendering`, where every character of the result
knows its source. What the template prints itself is given to messages by these rules, the first that applies:

- text printed in the round of a loop over the messages belongs to the message of that round;
- except where another message is printed inside that round, before its own content, or both outside of all rounds
  (Llama 2 prints the system message inside the first user turn): what the template would not print there without that
  other message belongs to it (``<<SYS>>``, but not ``[INST]``);
- text outside of such loops belongs to the message around whose content it is printed, the beginning-of-sequence token
  to the first one, and text between two contents to the less privileged one;
- a turn that is opened inside the round of the message before belongs to the message that fills it, and what closes a
  turn to the message that it closes, though the round of the next message prints it;
- after the last content, what is printed for ``add_generation_prompt`` alone or opens a turn is the generation prompt;
- a system prompt that a template makes up when there is none belongs to the message it precedes. Send a system message
  to have one.

Roles that a template does not know (it raises, or leaves the message out) are printed under a name it knows:
privileged roles as ``system``, others as ``user``; the other roles keep their names. The role *id* stays that of the
sender. The role of what the model generates is always printed as ``assistant``.

A template may print messages in another order than they were sent (Mistral v0.3 puts the system message into the last
user turn): each keeps its role. A template that loses a message is an error.
"""

from __future__ import annotations

import inspect
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import IntEnum
from itertools import combinations
from typing import TYPE_CHECKING, Any

from rolesafe.config import RoleConfig
from rolesafe.roles.messages import Message
from rolesafe.roles.role import DEFAULT_ROLES
from rolesafe.roles.traced import Kind, Traced

if TYPE_CHECKING:
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
beginning and end of sequence, where it has them. What separates the messages is their role ids.
"""

ROLE_NAMES = DEFAULT_ROLES
"""Names that a template may print for roles."""

CORE_ROLES = ("system", "user", "assistant")
"""Every chat template knows these, or refuses them by name."""

_NEUTRAL = "Hello"  # content of conversations that are rendered to see what the template does with a message
_CACHE_SIZE = 1024

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


def resolve_template(tokenizer: Any, chat_template: str | None, tools: Any = None) -> str:
    """Return the Jinja template to use: the argument, the tokenizer's own, or the default where it is asked for.

    Args:
        tokenizer: A transformers tokenizer.
        chat_template: A Jinja template, the name of one of the tokenizer's, ``"default"``, or None.
        tools: What the template gets as ``tools``: with them a tokenizer of several templates uses ``tool_use``.

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
    template = str(tokenizer.get_chat_template(chat_template, tools))
    if chat_template is not None and not named and "{" not in template:
        names = sorted(own) if isinstance(own, dict) else []
        raise ValueError(
            f"`chat_template`: {chat_template!r} is no Jinja template and no name the tokenizer knows; expected a "
            f'template, "default" or one of {names}'
        )
    return template


@dataclass(frozen=True)
class _Shape:
    """How a template is shown a conversation.

    Attributes:
        names: Names of the roles.
        parts: Whether each content is shown as a list of parts.
    """

    names: tuple[str, ...]
    parts: tuple[bool, ...]

    def neutral(self) -> list[str | Sequence[str]]:
        """Contents that say nothing, so that no content decides to whom the template's text belongs."""
        return [[_NEUTRAL] if parts else _NEUTRAL for parts in self.parts]


class Layout:
    """One template with the variables of one call: prints conversations and says what belongs to which message.

    Args:
        renderer: The template.
        config: Says which roles are privileged and which one is generated.
        variables: What the template sees besides the messages, traced.
        add_generation_prompt: As in ``apply_chat_template``.
        markers: Returns the spans of the structural tokens in a text of the template, in order.
        known: What earlier calls with the same template, configuration and variables found out.
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
            ValueError: The template refuses the conversation or loses a message.
        """
        shape, text = self._print(conversation, argument)
        key = ("plan", shape, tuple(source for _, source in text._runs))
        if key not in self.known:  # the same for every conversation that is printed from the same literals
            _keep(self.known, key, _attribute(self, shape, conversation, text))
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
        """The text of a conversation, without one of its messages if asked for.

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

    def _print(self, conversation: Sequence[Message], argument: str) -> tuple[_Shape, Traced]:
        """How the template is shown the messages, and its text."""
        roles = tuple(message.role for message in conversation)
        own = tuple("assistant" if name == self.config.generated else name for name in roles)
        shapes = tuple(message.parts is not None for message in conversation)
        key = ("names", own, shapes)
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
                _tell_of_renamed(roles, own, names)
            _keep(self.known, key, (names, joined))
            return _Shape(names, tuple(not isinstance(content, str) for content in contents)), text
        culprit = self._refused_role(own)
        raise ValueError(
            f"`{argument}`: the chat template does not print this conversation of roles {list(roles)}: {reasons[0]}. "
            + (f"It refuses role {culprit!r}. " if culprit else "")
            + 'Pass another `chat_template` (a Jinja template, or "default" for rolesafe\'s own, which prints every '
            "role), or send the messages in an order and with roles that this one prints."
        )

    @staticmethod
    def _reads_parts(message: Message, other: bool) -> bool:
        """Whether the content is shown as a list of parts: as it was sent, or the other way."""
        return (message.parts is not None) != other

    def _plans(self, own: tuple[str, ...], parts: bool) -> Iterator[tuple[tuple[str, ...], bool]]:
        """Ways to print a conversation: names of the roles, and whether contents are shown in their other form.

        As few roles are renamed as possible, and none of those that every template knows.
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
        """Raise where a message is lost: it has text, and the template prints none, whatever the text is."""
        printed = _printed(text)
        for i, content in enumerate(contents):
            if i in printed or not "".join(content).strip():
                continue
            neutral = [_NEUTRAL if isinstance(content, str) else [_NEUTRAL] for content in contents]
            if i not in _printed(self.render(names, neutral)):
                raise RefusedError(f"it loses message {i} (role {names[i]!r})")

    def _refused_role(self, names: Sequence[str]) -> str | None:
        """The role without which the template would print the conversation, if there is exactly one."""
        culprits = []
        for role in dict.fromkeys(names):
            rest = [name for name in names if name != role]
            try:
                if rest and _printed(self.render(rest, [_NEUTRAL] * len(rest), generation=False)) == set(
                    range(len(rest))
                ):
                    culprits.append(role)
            except RefusedError:
                continue
        return culprits[0] if len(culprits) == 1 else None

    # ----------------------------------------------------------------- what the template prints in other conversations

    def generation_literals(self, shape: _Shape) -> frozenset[Any]:
        """Names of the literals that the template prints because of ``add_generation_prompt``."""
        try:
            whole, less = (self.render(shape.names, shape.neutral(), generation=g) for g in (True, False))
        except RefusedError:
            return frozenset()
        return frozenset(_literals(whole) - _literals(less))

    def opening_without(self, shape: _Shape, guest: int, host: int) -> str | None:
        """What the template prints in the round of `host` before its content where `guest` is not in the conversation.

        None where it does not print that, or prints `host` outside of its round.
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


def _tell_of_renamed(roles: Sequence[str], own: Sequence[str], names: Sequence[str]) -> None:
    """Warn that roles are printed under other names, at the line that called rolesafe."""
    renamed = {role: name for role, before, name in zip(roles, own, names, strict=True) if before != name}
    if not renamed:
        return
    level, frame = 1, inspect.currentframe()
    while frame is not None and frame.f_globals.get("__name__", "").startswith("rolesafe."):
        level, frame = level + 1, frame.f_back
    printed = ", ".join(f"{role!r} is printed as {name!r}" for role, name in renamed.items())
    warnings.warn(
        f"`chat_template`: does not know every role of this conversation: {printed}. Their role ids stay their own. "
        'Pass another `chat_template` (a Jinja template, or "default") to print them under their names.',
        stacklevel=level,
    )


def _keep(known: dict[Any, Any], key: Any, value: Any) -> None:
    if len(known) >= _CACHE_SIZE:
        known.clear()
    known[key] = value


def _literals(text: Traced) -> Counter[Any]:
    """How often each literal is printed."""
    return Counter(source.name for _, source in text._runs if source.kind is Kind.TEMPLATE)


def _printed(text: Traced) -> set[int | None]:
    """Messages of which there is some content in the text."""
    return {source.message for length, source in text._runs if length and source.kind is Kind.CONTENT}


# ------------------------------------------------------------------------------------------------------- who owns what


_Owner = tuple[int, Part, Kind, "str | None"]
"""Message, part, kind and variable of a segment."""

_Cut = tuple[int, int, "int | None"]
"""A piece of a run: its number, start and end."""


@dataclass(slots=True)
class _Piece:
    """A run of the text, or a part of one.

    Attributes:
        cut: Which part of which run.
        owner: The message it belongs to; None until that is known.
        outside: Whether it was printed outside of the rounds of all messages.
        written: Whether it is of a content.
    """

    text: str
    cut: _Cut
    kind: Kind
    owner: int | None
    name: Any
    outside: bool
    written: bool

    def parted(self, at: int, owner: int | None) -> list[_Piece]:
        """The text before `at`, and the rest, which belongs to `owner`."""
        k, start, end = self.cut
        return [
            replace(self, text=self.text[:at], cut=(k, start, start + at)),
            replace(self, text=self.text[at:], cut=(k, start + at, end), owner=owner),
        ]


def _attribute(
    layout: Layout, shape: _Shape, conversation: Sequence[Message], text: Traced
) -> list[tuple[_Owner, list[_Cut]]]:
    """Owner of every piece of a rendered conversation; neighbours of one owner are put together."""
    pieces, at = [], 0
    plain = str.__str__(text)
    for k, (length, (kind, message, name)) in enumerate(text._runs):
        content = kind is Kind.CONTENT
        outside = name != "round" if content else message is None
        pieces.append(_Piece(plain[at : at + length], (k, 0, None), kind, message, name, outside, content))
        at += length
    if any(piece.written for piece in pieces):
        pieces = _give_guests_their_text(layout, shape, pieces)
        written = [k for k, piece in enumerate(pieces) if piece.written]
        _give_the_rest(conversation, pieces, written)
        opener = _opener(layout, pieces[: written[0]])
        pieces = _open_turns_early(layout, pieces, opener)
    else:
        opener = None
        for piece in pieces:
            piece.owner = piece.owner if piece.owner is not None else 0
    pieces = _cut_generation_prompt(layout, shape, pieces, opener)
    pieces = _close_turns(layout, pieces, len(shape.names))
    begun: set[int | None] = set()
    found: list[tuple[_Owner, list[_Cut]]] = []
    for piece in pieces:
        assert piece.owner is not None
        if piece.written:
            begun.add(piece.owner)
        part = Part.CONTENT if piece.written else Part.FOOTER if piece.owner in begun else Part.HEADER
        owner = (piece.owner, part, piece.kind, piece.name if piece.kind is Kind.VARIABLE else None)
        if not found or found[-1][0] != owner:
            found.append((owner, []))
        found[-1][1].append(piece.cut)
    return found


def _give_guests_their_text(layout: Layout, shape: _Shape, pieces: list[_Piece]) -> list[_Piece]:
    """Text of the template around a content that is printed in one go with another message's, before that content.

    What is printed there without the guest as well is the host's: the start of the text before the guest, and the end
    of the text behind it.
    """
    with_a_round = {piece.owner for piece in pieces if not piece.written and piece.name != "role"}
    k = 0
    while k < len(pieces):
        piece, ahead = pieces[k], _stretch(pieces, k, 1)
        following = k + len(ahead) + 1
        k += 1
        if not piece.written or piece.owner in with_a_round or following >= len(pieces):
            continue
        guest, host = piece.owner, pieces[following].owner
        before = [p for p in _stretch(pieces, k - 1, -1)[::-1] if p.name != "bos_token"]
        around = [*before, *ahead]
        owners = {p.owner for p in around}
        together = owners == {host} or (owners == {None} and pieces[following].outside)
        if guest is None or host is None or guest == host or not together:
            continue
        opening = layout.opening_without(shape, guest, host)
        if opening is None:
            continue
        for p in around:
            p.owner = host
        lead, trail = ("".join(p.text for p in some) for some in (before, ahead))
        kept = _shared(layout, lead, opening)
        rest = len(trail) - _shared(layout, trail, opening[kept:], from_end=True)
        first = k - 1 - len(before)
        given = [*_given(before, kept, len(lead), guest), piece, *_given(ahead, 0, rest, guest)]
        pieces[first:following] = given
        k = first + len(given)
    return pieces


def _shared(layout: Layout, text: str, other: str, *, from_end: bool = False) -> int:
    """Number of characters at the start (end) that two texts share, not ending inside a word or a structural token."""
    if from_end:
        length = next((n for n in range(min(len(text), len(other)), 0, -1) if text.endswith(other[-n:])), 0)
        return length if length == len(other) else 0
    length = 0
    while length < min(len(text), len(other)) and text[length] == other[length]:
        length += 1
    ends = {
        0,
        len(other),
        *(end for _, end in layout.markers(text)),
        *(i + 1 for i, c in enumerate(text) if c.isspace()),
    }
    inside = {i for start, end in layout.markers(text) for i in range(start + 1, end)}
    return max(end for end in ends - inside if end <= length)


def _given(pieces: list[_Piece], start: int, end: int, owner: int) -> list[_Piece]:
    """Pieces of which the characters from `start` to `end` belong to `owner`."""
    out: list[_Piece] = []
    at = 0
    for piece in pieces:
        a, b = max(0, start - at), min(len(piece.text), end - at)
        at += len(piece.text)
        if a >= b:
            out.append(piece)
            continue
        left, rest = piece.parted(a, owner)
        middle, right = rest.parted(b - a, piece.owner)
        out += [p for p in (left, middle, right) if p.text]
    return out


def _stretch(pieces: list[_Piece], k: int, step: int) -> list[_Piece]:
    """Pieces from `k` to the next content."""
    out, k = [], k + step
    while 0 <= k < len(pieces) and not pieces[k].written:
        out.append(pieces[k])
        k += step
    return out


def _give_the_rest(conversation: Sequence[Message], pieces: list[_Piece], written: list[int]) -> None:
    """Text of the template outside of all rounds."""
    first = pieces[written[0]].owner
    if pieces[0].name == "bos_token":
        pieces[0].owner = first
    ahead: list[_Piece | None] = [None] * len(pieces)  # the next piece with an owner
    for k in range(len(pieces) - 2, -1, -1):
        ahead[k] = pieces[k + 1] if pieces[k + 1].owner is not None else ahead[k + 1]
    before: int | None = None
    for piece, following in zip(pieces, ahead, strict=True):
        if piece.written:
            before = piece.owner
        elif piece.owner is None:
            if before is None:
                piece.owner = first if following is None else following.owner
            elif following is None or not following.outside or not following.written or following.owner == before:
                piece.owner = before
            else:  # between two contents that are both printed outside of all rounds
                assert following.owner is not None
                piece.owner = max(before, following.owner, key=lambda i: conversation[i].role_id)


def _opener(layout: Layout, header: Sequence[_Piece]) -> str | None:
    """The structural token that opens a turn: the first one before the first content that is not the sequence's own."""
    text = "".join(piece.text for piece in header if piece.kind is Kind.TEMPLATE and piece.name != "bos_token")
    spans = layout.markers(text)
    return text[slice(*spans[0])] if spans else None


def _open_turns_early(layout: Layout, pieces: list[_Piece], opener: str | None) -> list[_Piece]:
    """Give a turn that is opened in the round of the message before to the message that fills it."""
    if opener is None:
        return pieces
    last = {piece.owner: k for k, piece in enumerate(pieces) if piece.written}
    out: list[_Piece] = []
    for k, piece in enumerate(pieces):
        out.append(piece)
        if piece.kind is not Kind.TEMPLATE or opener not in piece.text or last.get(piece.owner, k) >= k:
            continue  # no opener, or the header of a message whose content is yet to come
        ahead = _stretch(pieces, k, 1)
        filled = pieces[k + len(ahead) + 1].owner if k + len(ahead) + 1 < len(pieces) else None
        if filled in (None, piece.owner) or any(p.owner == filled for p in ahead):
            continue
        out[-1:] = piece.parted(piece.text.index(opener), filled)
        for p in ahead:
            p.owner = filled
    return out


def _cut_generation_prompt(layout: Layout, shape: _Shape, pieces: list[_Piece], opener: str | None) -> list[_Piece]:
    """Give the generation prompt to the message after the last one."""
    end = max((k + 1 for k, piece in enumerate(pieces) if piece.written), default=0)
    tail = pieces[end:]
    start: int | None = None
    if opener is not None:
        for k, piece in enumerate(tail):
            if piece.kind is Kind.TEMPLATE and opener in piece.text:
                tail[k : k + 1] = piece.parted(piece.text.index(opener), piece.owner)
                start = k + 1
                break
    if start is None and layout.generation:
        asked = layout.generation_literals(shape)
        found = [k for k, piece in enumerate(tail) if piece.name in asked]
        outside = [k for k in found if tail[k].outside]
        start = next(iter(outside or found), None)
    for piece in tail[start:] if start is not None else ():
        piece.owner = len(shape.names)
    return [*pieces[:end], *tail]


def _close_turns(layout: Layout, pieces: list[_Piece], count: int) -> list[_Piece]:
    """Give what closes a turn to its message where the template prints it in the round of the message that follows.

    What closes a turn is what the template prints after the last message, if there is a structural token in it.
    """
    written = [k for k, piece in enumerate(pieces) if piece.written]
    if not written:
        return pieces
    tail = pieces[written[-1] + 1 :]
    closing = "".join(piece.text for piece in tail if piece.owner != count)
    if not layout.markers(closing) or not any(piece.outside for piece in tail if piece.owner != count):
        return pieces
    for k, piece in enumerate(pieces):
        behind = _stretch(pieces, k, 1) if piece.written else []
        end = k + 1 + len(behind)
        if piece.owner is None or not behind or end == len(pieces) or pieces[end].owner == piece.owner:
            continue
        if all(p.owner != piece.owner for p in behind) and "".join(p.text for p in behind).startswith(closing):
            pieces[k + 1 : end] = _given(behind, 0, len(closing), piece.owner)
    return pieces
