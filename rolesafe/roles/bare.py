"""Turning text into tokens such that only the template can produce a structural token.

A tokenizer looks for its added tokens (``<|im_start|>``, ``[INST]``, ``</s>`` ...) anywhere in a text, whoever wrote
it. Here they are looked for in the template's text only. Everything else goes through a *bare* copy of the tokenizer
that knows no added token, and whatever structural id still comes out of a content (a Unigram or word-level vocabulary
may hold ``<s>`` as an ordinary piece) is spelled out in smaller pieces.

*Structural* is every added token, flagged special or not, and every special token of the tokenizer. Two exceptions
that carry no structure: added tokens that are white space only (Gemma's runs of line breaks), and the token for
unknown text.
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Sequence
from typing import Any
from weakref import WeakKeyDictionary

from rolesafe.roles.templates import Part, Segment, Span

_BYTE_PIECE = re.compile(r"<0x[0-9A-F]{2}>")
_CACHE_SIZE = 1024  # texts of the template kept for each tokenizer

Piece = tuple[Part, str]


class Bare:
    """A tokenizer's structural tokens, and the tokenizer without them."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.backend = getattr(tokenizer, "backend_tokenizer", None) if tokenizer.is_fast else None
        added = {token.content: (i, token) for i, token in tokenizer.added_tokens_decoder.items()}
        for text, i in zip(tokenizer.all_special_tokens, tokenizer.all_special_ids, strict=True):
            added.setdefault(text, (i, None))
        self.structural = {text: i for text, (i, _) in added.items() if text.strip()}
        self._flags = {text: token for text, (_, token) in added.items() if token is not None}
        # Leftmost, then longest, as the tokenizer itself chooses.
        longest = sorted(self.structural, key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, longest)) or r"(?!)")
        self._unknown, self._forbidden = self._find_forbidden()
        self._variants: dict[str, Any] = {}
        self._blank: dict[int, int] = {}  # ids that white-space tokens have in the bare tokenizers, and their own
        self._known: dict[tuple[str, tuple[Piece, ...]], tuple[list[int], list[Part]]] = {}
        self.layouts: dict[Any, tuple[Segment, ...]] = {}  # kept for the encoder

    def _find_forbidden(self) -> tuple[int | None, frozenset[int]]:
        """The id for unknown text, if it is nothing else as well, and the ids that no content may contain."""
        name = getattr(getattr(self.backend, "model", None), "unk_token", None)
        unknown = self.backend.token_to_id(name) if self.backend is not None and name else self.tokenizer.unk_token_id
        if unknown in (self.tokenizer.bos_token_id, self.tokenizer.eos_token_id):
            unknown = None
        return unknown, frozenset(i for i in self.structural.values() if i != unknown)

    def markers(self, text: str) -> list[Span]:
        """Spans of the structural tokens in a text of the template, in order."""
        spans = []
        for match in self._pattern.finditer(text):
            start, end = match.span()
            token = self._flags.get(match[0])
            if token is not None and token.single_word and (_is_word(text, start - 1) or _is_word(text, end)):
                continue
            spans.append((start, end))
        return spans

    # -------------------------------------------------------------------------------------------------------- encoding

    def encode(self, pieces: Sequence[Piece], before: str = "start") -> tuple[list[int], list[Part], str]:
        """Tokens of one message: its header, its content and its footer, in that order.

        Ordinary text between two structural tokens is encoded in one go, so pieces may merge inside a message as they
        would in the whole text; a token with any of the content in it counts as content.

        Args:
            pieces: Parts and texts of the message.
            before: What it follows: ``"start"`` (nothing), ``"token"`` (a structural token) or ``"text"``.

        Returns:
            Token ids and their parts, of equal length, and what the next message follows.
        """
        ids: list[int] = []
        parts: list[Part] = []
        chunk: list[Piece] = []

        def flush() -> None:
            nonlocal before
            if chunk:
                new_ids, new_parts = self._encode_chunk(chunk, before)
                ids.extend(new_ids)
                parts.extend(new_parts)
                chunk.clear()
                before = "text"

        for part, text in pieces:
            at = 0
            for start, end in self.markers(text) if part is not Part.CONTENT else ():
                token = self._flags.get(text[start:end])
                plain = text[at:start]
                if token is not None and token.lstrip:
                    plain = plain.rstrip()
                if plain:
                    chunk.append((part, plain))
                flush()
                ids.append(self.structural[text[start:end]])
                parts.append(part)
                before = "token"
                at = end
                if token is not None and token.rstrip:
                    at = len(text) - len(text[end:].lstrip())
            if at < len(text):
                chunk.append((part, text[at:]))
        flush()
        return ids, parts, before

    def _encode_chunk(self, chunk: Sequence[Piece], before: str) -> tuple[list[int], list[Part]]:
        if self.backend is None:
            return self._encode_slowly(chunk)
        if all(part is not Part.CONTENT for part, _ in chunk):  # the same for every conversation
            key = (before, tuple(chunk))
            if key not in self._known:
                if len(self._known) >= _CACHE_SIZE:
                    self._known.clear()
                self._known[key] = self._encode_text(chunk, before)
            return self._known[key]
        return self._encode_text(chunk, before)

    def _encode_text(self, chunk: Sequence[Piece], before: str) -> tuple[list[int], list[Part]]:
        text = "".join(piece for _, piece in chunk)
        start = sum(len(piece) for part, piece in chunk if part is Part.HEADER)
        end = start + sum(len(piece) for part, piece in chunk if part is Part.CONTENT)
        encoding = self._variant(before).encode(text, add_special_tokens=False)
        ids: list[int] = encoding.ids
        if self._blank:
            ids = [self._blank.get(i, i) for i in ids]
        offsets: list[Span] = encoding.offsets
        parts = [_part_of(a, b, start, end) for a, b in offsets]
        if start == end:
            return ids, parts
        bad = [k for k, i in enumerate(ids) if i in self._forbidden and parts[k] is Part.CONTENT]
        if "<0x" in text:  # a byte piece stands for a byte, not for the six characters of its name
            bad += [k for k, (a, b) in enumerate(offsets) if a >= start and _BYTE_PIECE.fullmatch(text[a:b])]
        if not bad:
            return ids, parts
        tokens: list[str] = encoding.tokens  # made anew at every access
        spelled = {k: self._spell(tokens[k]) for k in bad}
        pieces = [spelled.get(k, [i]) for k, i in enumerate(ids)]  # one pass: an attacker may send a hundred thousand
        return [i for piece in pieces for i in piece], [part for part, p in zip(parts, pieces, strict=True) for _ in p]

    def _spell(self, token: str) -> list[int]:
        """A structural piece in pieces of one character each; what has no piece of its own is unknown text."""
        ids: list[int] = []
        for character in token:
            found = [piece.id for piece in self.backend.model.tokenize(character)]  # type: ignore[union-attr]
            if self._forbidden.isdisjoint(found):
                ids += found
            elif self._unknown is not None:
                ids.append(self._unknown)
        return ids

    # ------------------------------------------------------------------------------------- tokenizers without a backend

    def _encode_slowly(self, chunk: Sequence[Piece]) -> tuple[list[int], list[Part]]:
        """Without offsets the parts are told apart by encoding each on its own."""
        ids: list[int] = []
        parts: list[Part] = []
        for part, text in chunk:
            new = self._plain_ids(text)
            if part is Part.CONTENT and not self._forbidden.isdisjoint(new):
                new = [i for c in text for i in self._plain_ids(c)]
                unknown = [] if self._unknown is None else [self._unknown]
                new = [j for i in new for j in (unknown if i in self._forbidden else [i])]
            ids += new
            parts += [part] * len(new)
        return ids, parts

    def _plain_ids(self, text: str) -> list[int]:
        tokens = self.tokenizer.tokenize(text, split_special_tokens=True)
        return list(self.tokenizer.convert_tokens_to_ids(tokens))

    # ----------------------------------------------------------------------------------------------- bare tokenizers

    def _variant(self, before: str) -> Any:
        """The bare tokenizer for text that stands at the start, after a structural token, or after other text.

        They differ in the space that SentencePiece-like tokenizers put in front of a text: the whole tokenizer would
        add one after a structural token if it does so "always", and none in the middle of a text.
        """
        if before not in self._variants:
            from tokenizers import Tokenizer

            backend: Any = self.backend
            bare: Any = Tokenizer(backend.model)
            bare.normalizer = backend.normalizer
            bare.pre_tokenizer = backend.pre_tokenizer
            if before != "start":
                everywhere = before == "text"
                bare.pre_tokenizer = _without_prefix(backend.pre_tokenizer, everywhere)
                bare.normalizer = _without_prefix(backend.normalizer, everywhere)
            for i, token in backend.get_added_tokens_decoder().items():
                if not token.content.strip() and not token.special:
                    bare.add_tokens([token])  # under another id where the vocabulary lacks it
                    self._blank[bare.token_to_id(token.content)] = i
            self._variants[before] = bare
        return self._variants[before]


_BARE: WeakKeyDictionary[Any, tuple[Any, Bare]] = WeakKeyDictionary()


def bare(tokenizer: Any) -> Bare:
    """The :class:`Bare` of a tokenizer, made again whenever tokens were added to it."""
    state = (tuple(tokenizer.get_added_vocab().items()), tuple(tokenizer.all_special_tokens))
    known = _BARE.get(tokenizer)
    if known is None or known[0] != state:
        # The tokenizer is the weak key, so its value must not hold it: a copy shares the (large) backend.
        known = (state, Bare(copy.copy(tokenizer)))
        _BARE[tokenizer] = known
    return known[1]


def _part_of(start: int, end: int, content_start: int, content_end: int) -> Part:
    """Part of a token of these offsets, where the content is [content_start, content_end)."""
    if content_start == content_end:
        return Part.HEADER if start < content_start else Part.FOOTER
    if start < content_end and (end > content_start or (end == start == content_start)):
        return Part.CONTENT
    return Part.HEADER if start < content_start else Part.FOOTER


def _is_word(text: str, at: int) -> bool:
    return 0 <= at < len(text) and (text[at].isalnum() or text[at] == "_")


def _without_prefix(component: Any, everywhere: bool) -> Any:
    """A normalizer or pre-tokenizer that adds no space in front; if not `everywhere`, only such as add it to the first
    text alone."""
    if component is None:
        return None
    before = json.loads(component.__getstate__())
    after = _edit(before, everywhere)
    if after == before:
        return component
    if after is None:
        return None
    edited = copy.deepcopy(component)
    edited.__setstate__(json.dumps(after).encode())
    return edited


def _edit(component: dict[str, Any], everywhere: bool) -> dict[str, Any] | None:
    component = dict(component)
    kind = component["type"]
    if kind == "Sequence":
        (key,) = (key for key in ("normalizers", "pretokenizers") if key in component)
        edited = [_edit(inner, everywhere) for inner in component[key]]
        component[key] = [inner for inner in edited if inner is not None]
    elif kind == "Metaspace" and (everywhere or component.get("prepend_scheme") == "first"):
        component["prepend_scheme"] = "never"
    elif kind == "ByteLevel" and everywhere:
        component["add_prefix_space"] = False
    elif kind == "Prepend" and everywhere:
        return None
    return component
