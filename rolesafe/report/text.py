"""Shortening of long text, and the text functions that every page and terminal uses."""

from __future__ import annotations

from rolesafe.terminal import MOST_MARKS, visible

__all__ = ["MOST_MARKS", "shorten", "visible"]


def shorten(text: str, limit: int) -> str:
    """`text` of at most `limit` characters: the middle is left out, and how much of it is said."""
    if len(text) <= limit:
        return text
    head = limit * 2 // 3
    return f"{text[:head]}\n[... {len(text) - limit} characters left out ...]\n{text[len(text) - (limit - head) :]}"
