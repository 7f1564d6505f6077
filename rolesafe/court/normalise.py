"""Normalisation of text, one character at a time.

Each option maps a character to a string, independently of its neighbours; ``spaces="collapse"`` afterwards replaces a
run of white space by one space. So the normal form of a text is the normal form of its pieces, joined: a token is
normalised once, however the text is split into tokens.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from typing import Literal, get_args

from rolesafe.court.lookalikes import LOOKALIKES, unicode_confusables

Spaces = Literal["exact", "collapse", "ignore"]
INVALID = "\ufffd"
"""Character of an invalid byte sequence."""

_MARKS = ("Mn", "Me")
_FORMAT = ("Cf", "Cc")
_FILLERS = "\u115f\u1160\u17b4\u17b5\u3164\uffa0\u180b\u180c\u180d\u180f\u034f\u2800"
_RUNS = re.compile(" +")


@dataclass(frozen=True, kw_only=True)
class Normalisation:
    """Differences of spelling that do not count.

    Args:
        case: Fold case, with ``str.casefold`` of each character.
        spaces: White space: ``"exact"``; ``"collapse"``: a run equals one space; ``"ignore"``: it is removed.
        zero_width: Remove characters without width: formats and controls other than white space, variation selectors,
            fillers, soft hyphens, and bytes that are no UTF-8.
        lookalikes: Decompose compatibly (NFKD), remove combining marks, and replace the letters of
            :data:`rolesafe.court.lookalikes.LOOKALIKES` by those they look like.
        confusables: The same with all Latin letters of Unicode's table of confusables. Needs the extra ``court``.
        ignored: Further characters to remove, such as ``"-._*"``.

    >>> Normalisation(lookalikes=True, spaces="ignore").apply("К\u200bi l\u0301L")
    'kill'
    """

    case: bool = True
    spaces: Spaces = "collapse"
    zero_width: bool = True
    lookalikes: bool = False
    confusables: bool = False
    ignored: str = ""

    def __post_init__(self) -> None:
        if self.spaces not in get_args(Spaces):
            raise ValueError(f"`spaces`: expected one of {get_args(Spaces)}, got {self.spaces!r}. Choose one.")
        if self.confusables:
            unicode_confusables()

    def character(self, c: str) -> str:
        """Return the normal form of one character, which may be empty or several characters."""
        if c in self.ignored:
            return ""
        if c.isspace():
            return {"exact": c, "collapse": " ", "ignore": ""}[self.spaces]
        if self.zero_width and is_zero_width(c):
            return ""
        plain = self.lookalikes or self.confusables
        if plain:
            c = "".join(map(self._plain, unicodedata.normalize("NFKD", c)))
        if self.case:
            c = c.casefold()
            if plain:  # case folding may compose or spell out
                c = "".join(map(self._plain, unicodedata.normalize("NFKD", c)))
        if not c.isascii():  # a decomposition may hold a space or a mark without width
            c = "".join(
                {"exact": x, "collapse": " ", "ignore": ""}[self.spaces] if x.isspace() else x
                for x in c
                if not (self.zero_width and not x.isspace() and is_zero_width(x))
            )
        return c

    def _plain(self, c: str) -> str:
        if unicodedata.category(c) in _MARKS:
            return ""
        return (unicode_confusables() if self.confusables else LOOKALIKES).get(c, c)

    def join(self, text: str) -> str:
        """Return a text of normalised characters with its runs of spaces collapsed, where spaces are."""
        return _RUNS.sub(" ", text) if self.spaces == "collapse" else text

    def apply(self, text: str) -> str:
        """Return the normal form of a text."""
        return self.join("".join(map(self.character, text)))

    def phrase(self, text: str) -> str:
        """Return the normal form of a phrase to search for: without white space around it where runs are collapsed."""
        found = self.apply(text)
        return found.strip(" ") if self.spaces == "collapse" else found


class Table(dict[int, str]):
    """Table of normal forms for ``str.translate``, filled as characters are asked for."""

    def __init__(self, normalisation: Normalisation) -> None:
        super().__init__()
        self.normalisation = normalisation

    def __missing__(self, code: int) -> str:
        self[code] = form = self.normalisation.character(chr(code))
        return form


def is_zero_width(c: str) -> bool:
    """Return True for a character without width, and for U+FFFD, the sign of invalid bytes."""
    if c.isascii():
        return not c.isprintable() and not c.isspace()
    variation = "\ufe00" <= c <= "\ufe0f" or "\U000e0100" <= c <= "\U000e01ef"
    return variation or c == INVALID or c in _FILLERS or (unicodedata.category(c) in _FORMAT and not c.isspace())
