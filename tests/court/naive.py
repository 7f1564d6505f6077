"""Forbidden texts by brute force, written apart from the library: whole texts, no automaton, no tokens."""

from __future__ import annotations

import re
import unicodedata

from rolesafe.court.lookalikes import LOOKALIKES
from rolesafe.court.vocabulary import Vocabulary

INVISIBLE = {"\u200b", "\u200c", "\u200d", "\u2060", "\ufeff", "\u00ad", "\ufffd", "\x00", "\x01", "\x7f", "\ufe0f"}


def naive(text, *, case=True, spaces="collapse", zero_width=True, lookalikes=False, ignored=""):
    """Return the normal form of a text of the characters that the tests use."""
    out = []
    for c in text:
        if c in ignored:
            continue
        if c.isspace():
            out.append(c)
            continue
        if zero_width and c in INVISIBLE:
            continue
        if lookalikes:
            c = "".join(LOOKALIKES.get(x, x) for x in unicodedata.normalize("NFKD", c) if not unicodedata.combining(x))
        out.append(c.casefold() if case else c)
    joined = "".join(out)
    if spaces == "collapse":
        return re.sub(r"\s+", " ", joined)
    return joined if spaces == "exact" else re.sub(r"\s+", "", joined)


def breaks(text, phrases, **options):
    """Return True if a text holds a phrase."""
    form = naive(text, **options)
    strip = options.get("spaces", "collapse") == "collapse"
    forms = [naive(p, **options) for p in phrases]
    return any((p.strip(" ") if strip else p) in form for p in forms)


def vocabulary(*pieces, special=("</s>",)):
    """Return a vocabulary of pieces (str or bytes), then special tokens."""
    data = [p.encode() if isinstance(p, str) else p for p in pieces]
    return Vocabulary((*data, *(None for _ in special)), {len(data) + i: t for i, t in enumerate(special)})
