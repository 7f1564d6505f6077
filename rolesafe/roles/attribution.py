"""Attribute each piece of a rendered conversation to a message.

Template text is attributed by the first of these rules that applies:

- text printed in the round of a loop over the messages belongs to the message of that round;
- except where another message is printed inside that round, before its own content, or both outside of all rounds
  (Llama 2 prints the system message inside the first user turn): template text that is absent without that other
  message belongs to it (``<<SYS>>``, but not ``[INST]``);
- text outside of such loops belongs to the message around whose content it is printed, the beginning-of-sequence token
  to the first one, and text between two contents to the less privileged one;
- a turn that is opened inside the round of the previous message belongs to the message that fills it, and the end of a
  turn to the message that it closes, also where the round of the next message prints it;
- after the last content, text for ``add_generation_prompt`` alone, or that opens a turn, is the generation prompt;
- the default system prompt of a template belongs to the message it precedes. Send a system message to override it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from rolesafe.roles.messages import Message
from rolesafe.roles.segments import Part, Shape
from rolesafe.roles.traced import Kind, Traced

if TYPE_CHECKING:
    from rolesafe.roles.templates import Layout

_Owner = tuple[int, Part, Kind, "str | None"]
"""Message, part, kind and variable of a segment."""

_Cut = tuple[int, int, "int | None"]
"""A piece of a run: index of the run, start and end."""


@dataclass(slots=True)
class _Piece:
    """A run of the text, or a part of one.

    Attributes:
        cut: Index of the run, start and end in it.
        owner: Index of its message; None until it is known.
        outside: True if it was printed outside of the rounds of all messages.
        written: True for content.
    """

    text: str
    cut: _Cut
    kind: Kind
    owner: int | None
    name: Any
    outside: bool
    written: bool

    def parted(self, at: int, owner: int | None) -> list[_Piece]:
        """Split at `at`; the rest belongs to `owner`."""
        k, start, end = self.cut
        return [
            replace(self, text=self.text[:at], cut=(k, start, start + at)),
            replace(self, text=self.text[at:], cut=(k, start + at, end), owner=owner),
        ]


def attribute(
    layout: Layout, shape: Shape, conversation: Sequence[Message], text: Traced
) -> list[tuple[_Owner, list[_Cut]]]:
    """Return the owner of every piece of a rendered conversation; neighbours of one owner are merged."""
    pieces, at = [], 0
    plain = str.__str__(text)
    for k, (length, (kind, message, name, _)) in enumerate(text._runs):
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


def _give_guests_their_text(layout: Layout, shape: Shape, pieces: list[_Piece]) -> list[_Piece]:
    """Attribute template text around a message (guest) that is printed in the turn of another one (host).

    Text that is also printed without the guest belongs to the host: the start of the text before the guest, and the end
    of the text after it.
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
    """Return the length of the common prefix (suffix) of two texts, not ending inside a word or structural token."""
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
    """Return `pieces` with the characters from `start` to `end` attributed to `owner`."""
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
    """Return the pieces from `k` to the next content."""
    out, k = [], k + step
    while 0 <= k < len(pieces) and not pieces[k].written:
        out.append(pieces[k])
        k += step
    return out


def _give_the_rest(conversation: Sequence[Message], pieces: list[_Piece], written: list[int]) -> None:
    """Attribute template text outside of all rounds."""
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
    """Return the structural token that opens a turn: the first one before the first content, without BOS."""
    text = "".join(piece.text for piece in header if piece.kind is Kind.TEMPLATE and piece.name != "bos_token")
    spans = layout.markers(text)
    return text[slice(*spans[0])] if spans else None


def _open_turns_early(layout: Layout, pieces: list[_Piece], opener: str | None) -> list[_Piece]:
    """Attribute a turn that is opened in the round of the previous message to the message that fills it."""
    if opener is None:
        return pieces
    last = {piece.owner: k for k, piece in enumerate(pieces) if piece.written}
    out: list[_Piece] = []
    for k, piece in enumerate(pieces):
        out.append(piece)
        if piece.kind is not Kind.TEMPLATE or opener not in piece.text or last.get(piece.owner, k) >= k:
            continue  # no opener, or the header of a message before its content
        ahead = _stretch(pieces, k, 1)
        filled = pieces[k + len(ahead) + 1].owner if k + len(ahead) + 1 < len(pieces) else None
        if filled in (None, piece.owner) or any(p.owner == filled for p in ahead):
            continue
        out[-1:] = piece.parted(piece.text.index(opener), filled)
        for p in ahead:
            p.owner = filled
    return out


def _cut_generation_prompt(layout: Layout, shape: Shape, pieces: list[_Piece], opener: str | None) -> list[_Piece]:
    """Attribute the generation prompt to the message after the last one."""
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
    """Attribute the end of a turn to its message where the template prints it in the round of the next message.

    The end of a turn is the text after the last message, if there is a structural token in it.
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
