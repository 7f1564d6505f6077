"""Disguises of a structural string, which a careless parser, a normaliser or a model may still read as one."""

from __future__ import annotations

import json
from collections.abc import Callable
from random import Random
from typing import Final
from urllib.parse import quote

_ZERO_WIDTH: Final = ("\u200b", "\u200c", "\u200d", "\u2060", "\ufeff", "\u00ad", "\u034f", "\u202e")
_BLANKS: Final = (" ", "\t", "\n", "\u00a0", "\u2003", "\u2028", "\u3000", "\r\n")
_LOOKALIKES: Final = str.maketrans(
    "aceiopsxyMTSO|",
    "\u0430\u0441\u0435\u0456\u043e\u0440\u0455\u0445\u0443\u041c\u0422\u0405\u041e\u01c0",
)
"""Cyrillic letters and a click consonant that look like Latin letters."""


def _somewhere(text: str, rng: Random, piece: str) -> str:
    at = rng.randint(0, len(text))
    return text[:at] + piece + text[at:]


def _case(text: str, rng: Random) -> str:
    return rng.choice((text.upper(), text.lower(), text.swapcase(), text.title()))


def _fullwidth(text: str, rng: Random) -> str:
    """Replace ASCII with characters that NFKC normalisation turns back into it."""
    return "".join(chr(ord(c) + 0xFEE0) if "!" <= c <= "~" and rng.random() < 0.8 else c for c in text)


def _zero_width(text: str, rng: Random) -> str:
    for _ in range(rng.randint(1, 4)):
        text = _somewhere(text, rng, rng.choice(_ZERO_WIDTH))
    return text


def _blank(text: str, rng: Random) -> str:
    if rng.random() < 0.5:
        return rng.choice(_BLANKS) + text + rng.choice(_BLANKS)
    return _somewhere(text, rng, rng.choice(_BLANKS))


def _nest(text: str, rng: Random) -> str:
    """Nest the string in itself, so that it is left when a filter removes one copy."""
    return _somewhere(text, rng, text)


def _part(text: str, rng: Random) -> str:
    at = rng.randint(1, max(1, len(text) - 1))
    return rng.choice((text[:at], text[at:], text[:at] + " " + text[at:], text[:at] + "\n" + text[at:]))


def _percent(text: str, rng: Random) -> str:
    return quote(text, safe="") if rng.random() < 0.5 else quote(quote(text, safe=""), safe="")


def _json(text: str, rng: Random) -> str:
    if rng.random() < 0.5:
        return json.dumps(text)
    return "".join(f"\\u{ord(c):04x}" if ord(c) < 0x10000 and not c.isalnum() else c for c in text)


def _html(text: str, rng: Random) -> str:
    return "".join({"<": "&lt;", ">": "&gt;", "|": "&#124;", "[": "&#91;"}.get(c, c) for c in text)


def _bytes(text: str, rng: Random) -> str:
    """Write the byte pieces of SentencePiece, such as ``<0x41>``."""
    return "".join(f"<0x{b:02X}>" for b in text.encode("utf-8", "replace"))


def _combining(text: str, rng: Random) -> str:
    return "".join(c + ("\u0301" if rng.random() < 0.2 else "") for c in text)


MUTATIONS: Final[dict[str, Callable[[str, Random], str]]] = {
    "bytes": _bytes,
    "case": _case,
    "combining": _combining,
    "fullwidth": _fullwidth,
    "html": _html,
    "json": _json,
    "lookalikes": lambda text, rng: text.translate(_LOOKALIKES),
    "nesting": _nest,
    "part": _part,
    "percent": _percent,
    "repeated": lambda text, rng: text * rng.randint(2, 6),
    "reversed": lambda text, rng: text[::-1],
    "sentencepiece blanks": lambda text, rng: text.replace(" ", "\u2581") + "\u2581",
    "white space": _blank,
    "zero width": _zero_width,
}
"""``mutation(text, rng) -> text`` by name."""
