"""Decode a reply token by token: whole characters, no special tokens, cut at stop texts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def hidden_ids(tokenizer: Any, kept: Sequence[str] = ()) -> frozenset[int]:
    """Return the ids of special tokens, which are no text; those of the tokens `kept` are."""
    added = tokenizer.added_tokens_decoder
    hidden = {i for i, token in added.items() if token.special} | set(tokenizer.all_special_ids)
    return frozenset(hidden - {i for i, token in added.items() if token.content in kept})


class ReplyText:
    """Text of a reply, from one token at a time.

    Args:
        tokenizer: The tokenizer.
        hidden: Ids that are no text (:func:`hidden_ids`).
        stop: Texts that end the reply.

    Attributes:
        stopped: True once a stop text was found.
    """

    def __init__(self, tokenizer: Any, hidden: frozenset[int], stop: Sequence[str] = ()) -> None:
        self.tokenizer, self.hidden, self.stop = tokenizer, hidden, tuple(stop)
        self.stopped = False
        self._ids: list[int] = []
        self._from = self._read = 0  # tokens before `_read` are decoded; those from `_from` on give the context
        self._held = ""

    def add(self, token: int) -> str:
        """Return the new text that no stop text can reach; a token may give none."""
        if token in self.hidden:
            return ""
        self._ids.append(token)
        self._held += self._decode(whole=False)
        return self._release()

    def end(self) -> str:
        """Return the rest of the text."""
        if self.stopped:
            return ""
        self._held += self._decode(whole=True)
        sure = self._release()
        rest, self._held = self._held, ""
        return sure + rest

    def _decode(self, whole: bool) -> str:
        """Return the text of the tokens after `_read`; nothing where a character is not complete, unless `whole`."""
        before = self.tokenizer.decode(self._ids[self._from : self._read], skip_special_tokens=False)
        text = self.tokenizer.decode(self._ids[self._from :], skip_special_tokens=False)
        if not whole and (len(text) <= len(before) or text.endswith("\ufffd")):
            return ""
        self._from, self._read = self._read, len(self._ids)
        return str(text[len(before) :])

    def _release(self) -> str:
        found = [at for at in (self._held.find(stop) for stop in self.stop) if at >= 0]
        if found:
            self.stopped = True
            sure, self._held = self._held[: min(found)], ""
            return sure
        keep = 0
        for stop in self.stop:
            keep = max(keep, next((k for k in range(len(stop) - 1, 0, -1) if self._held.endswith(stop[:k])), 0))
        at = len(self._held) - keep
        sure, self._held = self._held[:at], self._held[at:]
        return sure
