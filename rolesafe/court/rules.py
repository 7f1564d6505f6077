"""Rules of single articles as machines over token ids: opening, closing, length, repetition, regions.

A rule has a start state; a step gives the state after a token, without changing the one before. States are never
mutated, so copies of a sequence (beams) and shorter ones (rejected candidates) need no bookkeeping.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from bisect import bisect_left
from typing import Any

import numpy as np
import numpy.typing as npt

from rolesafe.court.automaton import Ids, PhraseAutomaton
from rolesafe.court.vocabulary import Vocabulary

Flags = npt.NDArray[np.bool_]
_NONE: Ids = np.empty(0, dtype=np.int64)


class Rule(ABC):
    """One article, or several of one kind, as a machine over token ids.

    Attributes:
        article: Name of the article.
        start: State before the first token.
        only_forbids: True if :meth:`forbidden` and :meth:`step` are the whole rule.
        reads_text: True if the state depends on the text alone, however it is split into tokens.
    """

    article: str
    start: Any
    only_forbids = False
    reads_text = False

    @abstractmethod
    def step(self, state: Any, token: int) -> Any | None:
        """Return the state after a token; None if the token breaks the article."""

    def forbidden(self, state: Any) -> Ids:
        """Return the ids (N,) int64 of tokens that break the article in this state."""
        return _NONE

    def allowed(self, state: Any) -> Flags | None:
        """Return (V,) bool, the tokens that keep the article in this state; None for all."""
        return None

    def may_end(self, state: Any) -> bool:
        """Return True if the reply may end in this state."""
        return True

    def forced(self, state: Any) -> int | None:
        """Return the only token that keeps the article in this state, where it is known; else None."""
        return None

    def blame(self, state: Any, token: int) -> str:
        """Return the name of the article that forbids `token` in this state."""
        return self.article


class PhraseRule(Rule):
    """Forbidden phrases of several articles with the same options.

    Args:
        vocabulary: Bytes of the tokens.
        phrases: Normalised phrase to name of its article.
        normalisation: Their normal form.
    """

    only_forbids = True
    reads_text = True

    def __init__(self, vocabulary: Vocabulary, phrases: dict[str, str], normalisation: Any) -> None:
        self.automaton = PhraseAutomaton(vocabulary, list(phrases), normalisation)
        self.articles = phrases
        self.article = next(iter(phrases.values()), "")
        self.start = self.automaton.start
        self.step = self.automaton.step  # type: ignore[method-assign]
        self.forbidden = self.automaton.forbidden  # type: ignore[method-assign]

    def step(self, state: Any, token: int) -> Any | None:  # replaced by the automaton's own
        """Return the state after a token; None if it completes a phrase."""
        return self.automaton.step(state, token)

    def blame(self, state: Any, token: int) -> str:
        """Return the article of the phrase that `token` completes."""
        phrase = self.automaton.blame(state, token)
        return self.article if phrase is None else self.articles[phrase]

    def broken_by(self, text: str) -> str | None:
        """Return the article that a whole text breaks, or None."""
        phrase = self.automaton.holds(text)
        return None if phrase is None else self.articles[phrase]


class RegionRule(PhraseRule):
    """Forbidden phrases that count only between two markers, such as the arguments of a tool call.

    The region is open from the end of the opening marker to the end of the closing one. Text in front of the opening
    marker does not count.

    Args:
        within: Texts of the two markers.
    """

    def __init__(
        self, vocabulary: Vocabulary, phrases: dict[str, str], normalisation: Any, within: tuple[str, str]
    ) -> None:
        super().__init__(vocabulary, phrases, normalisation)
        del self.step, self.forbidden
        self.vocabulary = vocabulary
        self.markers = tuple(marker.encode() for marker in within)
        self._kept = max(map(len, self.markers)) - 1
        self.start = (False, b"", self.automaton.start)

    def step(self, state: Any, token: int) -> Any | None:
        """Return the state after a token; None if it completes a phrase in the region."""
        opened, tail, inner = state
        piece = self.vocabulary.pieces[token] or b""
        opening, closing = self.markers
        if opened:
            inner = self.automaton.step(inner, token)
            if inner is None:
                return None
        data, at = tail + piece, 0
        while True:
            found = data.find(closing if opened else opening, at)
            if found < 0:
                break
            at = found + len(closing if opened else opening)
            opened = not opened
            if opened:  # the rest of the token is inside
                inner = self.automaton.after_bytes(self.automaton.start, data[at:])
                if inner is None:
                    return None
        return opened, data[max(at, len(data) - self._kept) :], inner if opened else self.automaton.start

    def forbidden(self, state: Any) -> Ids:
        """Return the tokens that complete a phrase while the region is open."""
        opened, tail, inner = state
        return self.automaton.forbidden(inner) if opened else self._opening(tail)

    def _opening(self, tail: bytes) -> Ids:
        """Return the tokens that open the region and hold a phrase after the marker."""
        inside = self.automaton.inside
        if not len(inside):
            return _NONE
        start = (False, tail, self.automaton.start)
        return np.array([i for i in inside.tolist() if self.step(start, i) is None], dtype=np.int64)

    def blame(self, state: Any, token: int) -> str:
        """Return the article of the phrase that `token` completes in the region."""
        opened, _, inner = state
        return super().blame(inner, token) if opened else self.article

    def broken_by(self, text: str) -> str | None:
        """Return the article that the regions of a whole text break, or None."""
        opening, closing = (marker.decode() for marker in self.markers)
        at = text.find(opening)
        while at >= 0:
            start = at + len(opening)
            end = text.find(closing, start)
            end = len(text) if end < 0 else end + len(closing)
            found = super().broken_by(text[start:end])
            if found is not None:
                return found
            at = text.find(opening, end)
        return None


class OpeningRule(Rule):
    """Begin with one of several texts, byte for byte.

    State: the bytes still to write, for each text that is still possible; empty when one is complete.
    """

    reads_text = True

    def __init__(self, article: str, vocabulary: Vocabulary, texts: tuple[str, ...]) -> None:
        self.article, self.vocabulary = article, vocabulary
        starts = [text.encode() for text in texts]
        if vocabulary.strips_first:  # the first token may carry a space that is not shown
            starts += [b" " + start for start in starts]
        self.start = tuple(starts)
        pairs = sorted((piece, i) for i, piece in enumerate(vocabulary.pieces) if piece)
        self._pieces = [piece for piece, _ in pairs]
        self._ids = np.array([i for _, i in pairs], dtype=np.int64)
        self._cache: dict[Any, Flags] = {}

    def step(self, state: Any, token: int) -> Any | None:
        """Return the texts still possible after a token; None if there is none."""
        piece = self.vocabulary.pieces[token] or b""
        if not state or not piece:
            return state
        if any(piece.startswith(rest) for rest in state):
            return ()
        return tuple(rest[len(piece) :] for rest in state if rest.startswith(piece)) or None

    def allowed(self, state: Any) -> Flags | None:
        """Return the tokens that go on with a possible text."""
        if not state:
            return None
        found = self._cache.get(state)
        if found is None:
            found = self._cache[state] = np.zeros(len(self.vocabulary), dtype=bool)
            for rest in state:
                for k in range(1, len(rest)):  # tokens that are a part of the rest
                    low, high = self._range(rest[:k], exactly=True)
                    found[self._ids[low:high]] = True
                low, high = self._range(rest)
                found[self._ids[low:high]] = True
        return found

    def _range(self, start: bytes, exactly: bool = False) -> tuple[int, int]:
        low = bisect_left(self._pieces, start)
        end = start + b"\0" if exactly else _after(start)
        return low, len(self._pieces) if end is None else bisect_left(self._pieces, end, low)

    def may_end(self, state: Any) -> bool:
        """Return True once one of the texts is complete."""
        return not state


def _after(start: bytes) -> bytes | None:
    """Return the first byte string after all that begin with `start`; None if there is none."""
    trimmed = start.rstrip(b"\xff")
    return trimmed[:-1] + bytes([trimmed[-1] + 1]) if trimmed else None


class ClosingRule(Rule):
    """End with one of several texts, byte for byte. With a limit of tokens the first text is written in time.

    State: last bytes of the reply, number of its tokens.
    """

    def __init__(
        self, article: str, vocabulary: Vocabulary, texts: tuple[str, ...], tail: list[int], limit: int | None
    ) -> None:
        self.article, self.vocabulary = article, vocabulary
        self._ends = tuple(text.encode() for text in texts)
        self._longest = max(map(len, self._ends))
        self._tail, self._limit = tail, limit
        self.start = (b"", 0)

    def step(self, state: Any, token: int) -> Any:
        """Return the last bytes and the length after a token."""
        text, count = state
        return (text + (self.vocabulary.pieces[token] or b""))[-self._longest :], count + 1

    def may_end(self, state: Any) -> bool:
        """Return True if the reply ends with one of the texts."""
        return bool(state[0].endswith(self._ends))

    def forced(self, state: Any) -> int | None:
        """Return the token that writes the closing text where the limit leaves room for nothing else."""
        if self._limit is None:
            return None
        k = state[1] - (self._limit - len(self._tail))
        return self._tail[k] if 0 <= k < len(self._tail) else None


class LengthRule(Rule):
    """Limits of the number of tokens and of UTF-8 bytes. State: tokens, bytes."""

    def __init__(
        self, article: str, vocabulary: Vocabulary, least: int, most: int | None, most_bytes: int | None
    ) -> None:
        self.article = article
        self._least, self._most, self._most_bytes = least, most, most_bytes
        self._sizes = np.array([len(piece or b"") for piece in vocabulary.pieces])
        self._largest = int(self._sizes.max())
        self._nothing = np.zeros(len(vocabulary), dtype=bool)
        self.start = (0, 0)

    def step(self, state: Any, token: int) -> Any | None:
        """Return the length after a token; None if it is too long."""
        count, size = state[0] + 1, state[1] + int(self._sizes[token])
        over = (self._most is not None and count > self._most) or (
            self._most_bytes is not None and size > self._most_bytes
        )
        return None if over else (count, size)

    def forbidden(self, state: Any) -> Ids:
        """Return the tokens that are longer than the bytes left."""
        if self._most_bytes is None or (left := self._most_bytes - state[1]) >= self._largest:
            return _NONE
        found: Ids = np.nonzero(self._sizes > left)[0]
        return found

    def allowed(self, state: Any) -> Flags | None:
        """Return no token at the largest number of tokens."""
        return self._nothing if self._most is not None and state[0] >= self._most else None

    def may_end(self, state: Any) -> bool:
        """Return True from the smallest number of tokens on."""
        return bool(state[0] >= self._least)


class RepetitionRule(Rule):
    """No run of n tokens more than `times` times. State: last n - 1 tokens, counts of next tokens by run of n - 1."""

    def __init__(self, article: str, n: int, times: int) -> None:
        self.article, self._n, self._times = article, n, times
        self.start: Any = ((), {})

    def step(self, state: Any, token: int) -> Any | None:
        """Return the counts after a token; None if its run is one too many."""
        tail, table = state
        if len(tail) == self._n - 1:
            counts = dict(table.get(tail, {}))
            counts[token] = counts.get(token, 0) + 1
            if counts[token] > self._times:
                return None
            table = {**table, tail: counts}
        return (*tail, token)[-(self._n - 1) :] if self._n > 1 else (), table

    def forbidden(self, state: Any) -> Ids:
        """Return the tokens that end a run seen `times` times already."""
        tail, table = state
        if len(tail) < self._n - 1:
            return _NONE
        return np.array([i for i, count in table.get(tail, {}).items() if count >= self._times], dtype=np.int64)
