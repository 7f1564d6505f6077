"""Aho-Corasick automaton of many phrases over the bytes of a vocabulary, with the tokens each state forbids.

A token is forbidden if the text it gives holds a phrase. With s the longest end of the text so far that begins a
phrase, that is the case if a phrase lies inside of the token (the same tokens in every state), or if the token begins
with the rest of a phrase that an end of s begins. The rests of a phrase are its ends, so one look-up of the beginnings
of each token among the ends of all phrases gives the forbidden tokens of every state; nothing walks the vocabulary for
a new state.

Characters may be split between tokens, so a state is a pair: node of the automaton, bytes of an unfinished character.
"""

from __future__ import annotations

from codecs import utf_8_decode
from collections import deque
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from rolesafe.court.forms import Forms
from rolesafe.court.normalise import INVALID, Normalisation
from rolesafe.court.vocabulary import Vocabulary

Ids = npt.NDArray[np.int64]
State = tuple[int, bytes]
"""Node of the automaton, and the bytes of an unfinished character."""

LARGEST = 4_000_000
"""Largest number of characters in the phrases of one automaton."""

_NONE: Ids = np.empty(0, dtype=np.int64)


class PhraseAutomaton:
    """Match phrases in text that comes as tokens, and forbid the tokens that complete one.

    Args:
        vocabulary: Bytes of the tokens.
        phrases: Normalised phrases, none of them empty (:meth:`Normalisation.phrase`).
        normalisation: Normal form of the text.

    Attributes:
        start: State before the first token.
        inside: Ids of the tokens that hold a whole phrase, forbidden in every state.
    """

    start: State = (0, b"")

    def __init__(self, vocabulary: Vocabulary, phrases: Sequence[str], normalisation: Normalisation) -> None:
        self.vocabulary, self.normalisation = vocabulary, normalisation
        self.phrases = list(dict.fromkeys(phrases))
        self._collapses = normalisation.spaces == "collapse"
        self._forms = Forms.of(vocabulary, normalisation)
        self._alphabet = frozenset("".join(self.phrases))
        self._build()
        self._find_tokens()
        self._cache: dict[State, Ids] = {}

    def __len__(self) -> int:
        return len(self._fail)

    # ----------------------------------------------------------------------------------------------------- automaton

    def _build(self) -> None:
        self._next: list[dict[str, int]] = [{}]
        self._phrase = [-1]  # index of a phrase that ends at the node
        self._paths: list[list[int]] = []
        for k, phrase in enumerate(self.phrases):
            node, path = 0, [0]
            for c in phrase:
                found = self._next[node].get(c)
                if found is None:
                    found = self._next[node][c] = len(self._next)
                    self._next.append({})
                    self._phrase.append(-1)
                node = found
                path.append(node)
            self._paths.append(path)
            self._phrase[node] = k
        self._fail = [0] * len(self._next)
        self._spaced = [False] * len(self._next)  # the text of the node ends with a space
        queue = deque([0])
        while queue:
            node = queue.popleft()
            for c, child in self._next[node].items():
                queue.append(child)
                self._spaced[child] = c == " "
                if node:
                    back = self._fail[node]
                    while back and c not in self._next[back]:
                        back = self._fail[back]
                    self._fail[child] = self._next[back].get(c, 0)
                    if self._phrase[child] < 0:
                        self._phrase[child] = self._phrase[self._fail[child]]
        self._moves: dict[int, dict[str, int]] = {}  # moves by a failure link that were asked for

    def _move(self, node: int, c: str) -> int:
        if c not in self._alphabet:
            return 0
        at = node
        while at and c not in self._next[at]:
            at = self._fail[at]
        found = self._next[at].get(c, 0)
        self._moves.setdefault(node, {})[c] = found
        return found

    def _walk(self, node: int, form: str) -> tuple[int, int]:
        """Return the node after normalised text, and the index of the first phrase completed on the way, or -1."""
        if self._collapses and form[:1] == " " and self._spaced[node]:
            form = form[1:]
        following, moves, phrase = self._next, self._moves, self._phrase
        for c in form:
            found = following[node].get(c)
            if found is None:
                known = moves.get(node)
                found = None if known is None else known.get(c)
                if found is None:
                    found = self._move(node, c)
            node = found
            if phrase[node] >= 0:
                return node, phrase[node]
        return node, -1

    def _find_tokens(self) -> None:
        """Find the tokens that begin with the rest of a phrase, and those that hold a whole one."""
        forms = self._forms
        shortest = min(map(len, self.phrases), default=0)
        inside = [
            i
            for i, form in enumerate(forms.forms)
            if form is not None and len(form) >= shortest and self._walk(0, form)[1] >= 0
        ]
        self.inside = np.array(inside, dtype=np.int64)
        parts: dict[int, list[Ids]] = {}
        known: dict[tuple[str, bool], Ids] = {}
        for phrase, path in zip(self.phrases, self._paths, strict=True):
            for k in range(max(1, len(phrase) - forms.longest), len(phrase)):
                # after a space, a space in front of a token does not count
                rest = phrase[k:], self._collapses and phrase[k - 1] == " "
                found = known.get(rest)
                if found is None:
                    found = known[rest] = forms.beginning(*rest)
                if len(found):
                    parts.setdefault(path[k], []).append(found)
        self._own = {node: own[0] if len(own) == 1 else np.concatenate(own) for node, own in parts.items()}

    # ---------------------------------------------------------------------------------------------------------- steps

    def step(self, state: State, token: int) -> State | None:
        """Return the state after a token; None if the token completes a phrase, or is no token of a text."""
        found, phrase = self._after(state, token)
        return found if phrase < 0 else None

    def blame(self, state: State, token: int) -> str | None:
        """Return the phrase that a token would complete, or None."""
        _, phrase = self._after(state, token)
        return None if phrase < 0 else self.phrases[phrase]

    def after_bytes(self, state: State, data: bytes) -> State | None:
        """Return the state after bytes of text; None if they complete a phrase."""
        node, pending = state
        data = pending + data
        text, used = utf_8_decode(data, "replace", False)
        node, phrase = self._walk(node, self.normalisation.apply(text))
        return (node, data[used:]) if phrase < 0 else None

    def _after(self, state: State, token: int) -> tuple[State, int]:
        node, pending = state
        if not pending:
            form = self._forms.forms[token]
            if form is None:
                raise ValueError(f"`token`: expected an ordinary token, got the id {token}. Check `vocabulary.pieces`.")
            node, phrase = self._walk(node, form)
            return (node, self._forms.tails.get(token, b"")), phrase
        data = pending + (self.vocabulary.pieces[token] or b"")
        text, used = utf_8_decode(data, "replace", False)
        node, phrase = self._walk(node, self.normalisation.apply(text))
        return (node, data[used:]), phrase

    def forbidden(self, state: State) -> Ids:
        """Return the ids (N,) int64 of the tokens that complete a phrase in this state, in no order, some repeated."""
        found = self._cache.get(state)
        if found is None:
            if len(self._cache) >= 1 << 16:  # a text of many states; they are cheap to compute again
                self._cache.clear()
            found = self._cache[state] = self._cut(state) if state[1] else self._chain(state[0])
        return found

    def _chain(self, node: int) -> Ids:
        found = [self.inside] if len(self.inside) else []
        while node:
            own = self._own.get(node)
            if own is not None:
                found.append(own)
            node = self._fail[node]
        return found[0] if len(found) == 1 else np.concatenate(found) if found else _NONE

    def _cut(self, state: State) -> Ids:
        """Return the forbidden tokens where a character is unfinished."""
        broken, _ = self._walk(state[0], self.normalisation.apply(INVALID))  # any token that does not go on with it
        others = self.forbidden((broken, b""))
        inner = [i for i in self._forms.inner.tolist() if self._after(state, i)[1] >= 0]
        return np.concatenate([others[~self._forms.is_inner[others]], np.array(inner, dtype=np.int64)])

    def holds(self, text: str) -> str | None:
        """Return the first phrase that the normal form of a whole text holds, or None."""
        form = self.normalisation.apply(text)
        return next((phrase for phrase in self.phrases if phrase in form), None)
