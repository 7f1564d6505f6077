"""Normal forms of all tokens of a vocabulary, sorted to find those that begin with a text."""

from __future__ import annotations

from bisect import bisect_left
from codecs import utf_8_decode
from weakref import WeakKeyDictionary

import numpy as np
import numpy.typing as npt

from rolesafe.court.normalise import Normalisation, Table
from rolesafe.court.vocabulary import Vocabulary

Ids = npt.NDArray[np.int64]
_BETWEEN = "\U0010fffe"  # a noncharacter
_NONE: Ids = np.empty(0, dtype=np.int64)
_KEPT = 4  # normalisations remembered for each vocabulary


class Forms:
    """Normal form of every token, as it reads after whole characters.

    Attributes:
        forms: Normal form by id; None for a token that a reply may not hold.
        longest: Length of the longest one.
        tails: Bytes of an unfinished character at the end of a token, by id.
        inner: Ids of the tokens that begin inside of a character, which may finish one.
        is_inner: (V,) bool, the same as flags.
    """

    def __init__(self, vocabulary: Vocabulary, normalisation: Normalisation) -> None:
        self._collapses = normalisation.spaces == "collapse"
        self.tails: dict[int, bytes] = {}
        inner: list[int] = []
        texts: list[str] = []
        for i, piece in enumerate(vocabulary.pieces):
            if piece is None:
                texts.append("")
                continue
            if piece.isascii():
                texts.append(piece.decode("ascii"))
                continue
            if 0x80 <= piece[0] < 0xC0:
                inner.append(i)
            text, used = utf_8_decode(piece, "replace", False)
            if used < len(piece):
                self.tails[i] = piece[used:]
            texts.append(text)
        table = Table(normalisation)
        table[ord(_BETWEEN)] = _BETWEEN  # one call for all texts
        found = _BETWEEN.join(texts).translate(table).split(_BETWEEN)
        if len(found) != len(texts):  # a token holds the separator itself
            found = [text.translate(table) for text in texts]
        if self._collapses:
            found = [normalisation.join(form) if "  " in form else form for form in found]
        self.forms = [None if p is None else form for p, form in zip(vocabulary.pieces, found, strict=True)]
        self.longest = max(map(len, found), default=0)
        self.inner: Ids = np.array(inner, dtype=np.int64)
        self.is_inner = np.zeros(len(texts), dtype=bool)
        self.is_inner[self.inner] = True
        ids = [i for i, form in enumerate(found) if form]
        self._plain = _ordered(found, ids)
        self._spaced = self._plain
        if self._collapses:
            self._spaced = _ordered([form[1:] if form[:1] == " " else form for form in found], ids)

    @classmethod
    def of(cls, vocabulary: Vocabulary, normalisation: Normalisation) -> Forms:
        """Return the forms of a vocabulary, cached."""
        known = _KNOWN.setdefault(vocabulary, {})
        if normalisation not in known:
            if len(known) >= _KEPT:
                known.clear()
            known[normalisation] = cls(vocabulary, normalisation)
        return known[normalisation]

    @staticmethod
    def forget() -> None:
        """Clear the cache of :meth:`of`."""
        _KNOWN.clear()

    def beginning(self, start: str, after_space: bool = False) -> Ids:
        """Return the ids of the tokens whose form begins with a text.

        Args:
            start: Text in normal form, not empty, that does not end with U+10FFFF.
            after_space: The token follows a space, so that one in front of it does not count.
        """
        forms, ids = self._spaced if after_space else self._plain
        low = bisect_left(forms, start)
        if low == len(forms) or not forms[low].startswith(start):
            return _NONE
        after = start[:-1] + chr(ord(start[-1]) + 1)  # the first text behind all that begin with `start`
        return ids[low : bisect_left(forms, after, low)]


_KNOWN: WeakKeyDictionary[Vocabulary, dict[Normalisation, Forms]] = WeakKeyDictionary()


def _ordered(forms: list[str], ids: list[int]) -> tuple[list[str], Ids]:
    ids = sorted(ids, key=forms.__getitem__)
    return [forms[i] for i in ids], np.array(ids, dtype=np.int64)
