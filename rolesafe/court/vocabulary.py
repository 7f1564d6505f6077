"""Exact bytes that each token adds to the text of a reply.

Sources: byte-level BPE's table of printable characters (GPT-2's ``bytes_to_unicode``), and the decoders of Hugging
Face's ``tokenizers``. The table is compared with the tokenizer's own ``decode`` when it is built.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_BYTE_PIECE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_CHUNK = 4096  # tokens per call of `decode` in the comparison


@dataclass(frozen=True, eq=False)
class Vocabulary:
    """Bytes of every token of a tokenizer.

    Attributes:
        pieces: Bytes that each token id adds to the text; None for a token that a reply may not hold (special tokens,
            unused ids, the unknown token).
        special: Texts of special tokens by id. ``decode(skip_special_tokens=True)`` hides them.
        strips_first: True where the decoder drops one space in front of the first token.
        digest: SHA-256 of all of the above.
    """

    pieces: tuple[bytes | None, ...]
    special: dict[int, str]
    strips_first: bool = False
    digest: str = field(init=False)

    def __post_init__(self) -> None:
        state = hashlib.sha256()
        for piece in self.pieces:
            data = b"-" if piece is None else b"+" + piece
            state.update(len(data).to_bytes(4, "big") + data)
        state.update(json.dumps([sorted(self.special.items()), self.strips_first]).encode())
        object.__setattr__(self, "digest", state.hexdigest())

    def __len__(self) -> int:
        return len(self.pieces)

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase) -> Vocabulary:
        """Return the vocabulary of a tokenizer; cached until tokens are added to it.

        Args:
            tokenizer: A transformers tokenizer: byte-level BPE, SentencePiece with or without byte fallback, WordPiece,
                or one without a decoder, whose tokens are joined by spaces.

        Raises:
            ValueError: The decoder is of another kind, cleans up spaces, or decodes to other text than the table.
        """
        state = (tuple(tokenizer.get_added_vocab().items()), tuple(tokenizer.all_special_tokens), len(tokenizer))
        known = _KNOWN.get(tokenizer)
        if known is None or known[0] != state:
            known = _KNOWN[tokenizer] = (state, _build(tokenizer))
        return known[1]

    def text(self, ids: list[int]) -> str:
        """Return the text of token ids, without special tokens; an invalid byte sequence becomes U+FFFD."""
        data = b"".join(self.pieces[i] or b"" for i in ids)
        if self.strips_first and data.startswith(b" "):
            data = data[1:]
        return data.decode("utf-8", "replace")


_KNOWN: WeakKeyDictionary[Any, tuple[Any, Vocabulary]] = WeakKeyDictionary()


def _build(tokenizer: PreTrainedTokenizerBase) -> Vocabulary:
    decoder = _Decoder()
    backend: Any = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        _refuse(f"the slow tokenizer {type(tokenizer).__name__}")
    if backend.decoder is None:
        decoder.joins = True
    else:
        decoder.read(json.loads(backend.decoder.__getstate__()))
    if getattr(tokenizer, "clean_up_tokenization_spaces", False) or decoder.cleans:
        raise ValueError(
            "`tokenizer`: expected a decoder that keeps spaces, got one that cleans up spaces around punctuation: the "
            "released text would differ from the text the court reads. Set "
            "tokenizer.clean_up_tokenization_spaces = False, and for WordPiece backend_tokenizer.decoder = "
            "tokenizers.decoders.WordPiece(cleanup=False)."
        )
    added = tokenizer.added_tokens_decoder
    special = {int(i): str(t.content) for i, t in added.items() if t.special}
    special |= {int(i): t for i, t in zip(tokenizer.all_special_ids, tokenizer.all_special_tokens, strict=False)}
    names = {i: name for name, i in backend.get_vocab(with_added_tokens=True).items()}
    unknown = getattr(backend.model, "unk_token", None) or tokenizer.unk_token
    pieces: list[bytes | None] = []
    for i in range(max(names, default=-1) + 1):
        name = names.get(i)
        hidden = name is None or i in special or name == unknown
        pieces.append(None if hidden else decoder.bytes_of(str(name)))
    vocabulary = Vocabulary(tuple(pieces), special, decoder.strips_first)
    _compare(backend, vocabulary, decoder.fallback)
    return vocabulary


class _Decoder:
    """Decoder of a fast tokenizer, as a function of single tokens."""

    def __init__(self) -> None:
        self.replaced: list[tuple[str, str]] = []
        self.byte_level = self.fallback = self.joins = self.strips_first = self.cleans = False
        self.prefix: str | None = None
        self.suffix: str | None = None

    def read(self, state: dict[str, Any]) -> None:
        """Read the JSON state of a decoder, or of a sequence of them."""
        kind = state["type"]
        if kind == "Sequence":
            for part in state["decoders"]:
                self.read(part)
        elif kind == "ByteLevel":
            self.byte_level = True
        elif kind == "ByteFallback":
            self.fallback = True
        elif kind == "Replace" and "String" in state["pattern"]:
            self.replaced.append((state["pattern"]["String"], state["content"]))
        elif kind == "Metaspace":
            self.replaced.append((state["replacement"], " "))
            self.strips_first |= state.get("prepend_scheme", "always") != "never"
        elif kind == "Strip" and state["content"] == " " and state["stop"] == 0 and state["start"] <= 1:
            self.strips_first |= state["start"] == 1
        elif kind == "WordPiece":
            self.prefix, self.joins, self.cleans = state["prefix"], True, bool(state["cleanup"])
        elif kind == "BPEDecoder":
            self.suffix = state["suffix"]
        elif kind != "Fuse":
            _refuse(f"a decoder of type {kind}")

    def bytes_of(self, name: str) -> bytes:
        """Return the bytes of a token after other text."""
        if self.byte_level:
            try:
                return name.translate(byte_table()).encode("latin-1")
            except UnicodeEncodeError:  # as the decoder: a token with any character outside of the table is text
                return name.encode()
        if self.fallback and (match := _BYTE_PIECE.fullmatch(name)):
            return bytes([int(match[1], 16)])
        for old, new in self.replaced:
            name = name.replace(old, new)
        if self.suffix is not None:
            name = name.replace(self.suffix, " ")
        if self.joins:
            continues = self.prefix is not None and name.startswith(self.prefix)
            name = name[len(self.prefix or "") :] if continues else f" {name}"
        return name.encode("utf-8", "replace")


@cache
def byte_table() -> dict[int, str]:
    """Return the table from the characters of byte-level BPE to Latin-1; others map to no Latin-1 character."""
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAC + 1), *range(0xAE, 0xFF + 1)]
    others = [b for b in range(256) if b not in set(printable)]
    table = dict.fromkeys(others, "\uffff") | {b: chr(b) for b in printable}
    return table | {256 + n: chr(b) for n, b in enumerate(others)}


def _compare(backend: Any, vocabulary: Vocabulary, fallback: bool) -> None:
    """Raise unless the tokenizer decodes long runs of its tokens to the text of the table."""
    ids = [i for i, piece in enumerate(vocabulary.pieces) if piece is not None]
    if fallback:  # runs of byte tokens are valid together or not at all
        ids = [i for i in ids if len(vocabulary.pieces[i] or b"") != 1 or (vocabulary.pieces[i] or b"")[0] < 0x80]
    if not ids:
        raise ValueError("`tokenizer`: expected a vocabulary with ordinary tokens, got none")
    anchor = next((i for i in ids if (vocabulary.pieces[i] or b"").strip().isalnum()), ids[0])
    lead = backend.decode([anchor], skip_special_tokens=False)
    skipped = (vocabulary.pieces[anchor] or b"").decode("utf-8", "replace")
    for start in range(0, len(ids), _CHUNK):
        part = ids[start : start + _CHUNK]
        got = backend.decode([anchor, *part], skip_special_tokens=False)[len(lead) :]
        expected = b"".join(vocabulary.pieces[i] or b"" for i in [anchor, *part]).decode("utf-8", "replace")
        expected = expected[len(skipped) :]
        if got != expected:
            at = next((k for k, (a, b) in enumerate(zip(got, expected, strict=False)) if a != b), 0)
            _refuse(f"one that decodes to {got[at : at + 20]!r} instead of {expected[at : at + 20]!r}")


def _refuse(got: str) -> None:
    raise ValueError(
        f"`tokenizer`: expected byte-level BPE, SentencePiece, WordPiece or tokens joined by spaces, got {got}. The "
        "court cannot tell which bytes its tokens add."
    )
