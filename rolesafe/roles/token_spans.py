"""Tokens and their spans in a text.

Shapes: T tokens.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]
Span = tuple[int, int]

BYTE_PIECE = re.compile(r"<0x[0-9A-F]{2}>")
"""Piece of a vocabulary for one byte."""


@dataclass(frozen=True)
class Tokens:
    """Tokens and their spans of characters.

    Attributes:
        ids: (T,) int64 token ids.
        starts, ends: (T,) int64 start and (exclusive) end of each token.
    """

    ids: Ints
    starts: Ints
    ends: Ints

    @classmethod
    def of(cls, ids: Sequence[int], spans: Sequence[Span]) -> Tokens:
        table = np.array(spans, dtype=np.int64).reshape(-1, 2)
        return cls(np.array(ids, dtype=np.int64), table[:, 0], table[:, 1])

    @classmethod
    def joined(cls, parts: Sequence[Tokens]) -> Tokens:
        if not parts:
            return cls.of([], [])
        return cls(*(np.concatenate([getattr(p, name) for p in parts]) for name in ("ids", "starts", "ends")))

    def moved(self, by: int) -> Tokens:
        return Tokens(self.ids, self.starts + by, self.ends + by)

    def replaced(self, pieces: dict[int, list[int]]) -> Tokens:
        """Return the tokens with some of them split; one pass, because hostile text may need 100,000 splits."""
        if not pieces:
            return self
        counts = np.ones(len(self.ids), dtype=np.int64)
        for k, ids in pieces.items():
            counts[k] = len(ids)
        ids = [i for k, own in enumerate(self.ids.tolist()) for i in pieces.get(k, [own])]
        return Tokens(np.array(ids, dtype=np.int64), np.repeat(self.starts, counts), np.repeat(self.ends, counts))


def trimmed(text: str, start: int, end: int) -> Span:
    """Return the span without white space at its ends, which tokens may include (`lstrip`, `rstrip`)."""
    inside = text[start:end]
    return start + len(inside) - len(inside.lstrip()), start + len(inside.rstrip()) if inside.strip() else start


def aligned(tokens: Sequence[str], text: str) -> list[Span] | None:
    """Return the spans of SentencePiece-like tokens; None where they do not spell `text` up to white space and NFKC."""
    written = [(c, i) for i, old in enumerate(text) for c in unicodedata.normalize("NFKC", old) if not c.isspace()]
    spans: list[Span] = []
    at = edge = 0  # the next character, and the end of the token before
    held = b""
    for token in tokens:
        start = written[at][1] if at < len(written) else len(text)
        if BYTE_PIECE.fullmatch(token):
            held += bytes([int(token[3:5], 16)])
            try:
                piece, held = held.decode(), b""
            except UnicodeDecodeError:  # the first bytes of a character
                spans.append((start, min(start + 1, len(text))))
                continue
        else:
            piece = token.replace("\u2581", " ")
        letters = [c for c in piece if not c.isspace()]
        if held or [c for c, _ in written[at : at + len(letters)]] != letters:
            return None
        at += len(letters)
        if letters:
            spans.append((start, written[at - 1][1] + 1))
        else:
            spans.append((edge, edge + 1) if edge < start else (start, start))
        edge = spans[-1][1]
    return spans if at == len(written) and not held else None
