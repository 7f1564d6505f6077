"""Text that a user, a model or an attacker wrote, made visible before it reaches a terminal or a page."""

from __future__ import annotations

import unicodedata

_KEPT = "\n"
_HIDDEN = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}
"""Unicode categories that are drawn as nothing, or that change how the text around them is drawn."""


def visible(text: str) -> str:
    r"""`text` with every control and invisible character spelled out, as in ``\u202e`` or ``\x1b``.

    A terminal then gets no escape sequence, a page no change of direction, and a reader sees zero-width characters that
    an attacker hid between letters. Line feeds stay. This does not escape HTML or rich's markup: the writers do.
    """
    return "".join(_spell(character) for character in text)


def shorten(text: str, limit: int) -> str:
    """`text` of at most `limit` characters: the middle is left out, and how much of it is said."""
    if len(text) <= limit:
        return text
    head = limit * 2 // 3
    return f"{text[:head]}\n[... {len(text) - limit} characters left out ...]\n{text[len(text) - (limit - head) :]}"


def _spell(character: str) -> str:
    if character in _KEPT or unicodedata.category(character) not in _HIDDEN:
        return character
    code = ord(character)
    if code < 0x100:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
