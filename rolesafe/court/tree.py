"""Tree of the replies that a court has read, and the tokens that each may go on with.

A node of the tree is a reply so far. Nodes are found by token ids, so a beam that was reordered, a candidate that was
rejected and a reply that is read again share their states, and none of them can carry a wrong one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from rolesafe.court.automaton import Ids
from rolesafe.court.language import EngineError
from rolesafe.court.rules import Flags, PhraseRule, Rule
from rolesafe.court.vocabulary import Vocabulary

ENGINE = "engine error"
NOTHING = "nothing allowed"
_AHEAD = 256  # replies to read for a dead end
_FEW = 32  # largest number of allowed tokens that are looked at


@dataclass(frozen=True)
class Veto:
    """Intervention of the court, for the record.

    Attributes:
        position: Index of the token in the reply.
        article: Name of the article, or ``"vocabulary"`` for a token that is no text.
        kind: ``"veto"``: the model's first choice was forbidden; ``"ended"``: the court ended the reply.
        token: Id of the forbidden first choice; None where the court ended the reply.
        reason: Further words, such as ``"nothing allowed"``.
    """

    position: int
    article: str
    kind: str
    token: int | None = None
    reason: str = ""


@dataclass(eq=False, slots=True)
class Reply:
    """Reply so far, a node of the tree.

    Attributes:
        count: Number of its tokens.
        states: State of every rule; None after the end or a violation.
        children: Replies one token longer, by token.
        broken: Article that the last token breaks; None for a good reply.
        ended: True after an end token.
        tail: Tokens of the court's text that are left to write, where the court ends the reply; else None.
        veto: Intervention at this node.
    """

    count: int = 0
    states: tuple[Any, ...] | None = None
    children: dict[int, Reply] = field(default_factory=dict)
    broken: str | None = None
    ended: bool = False
    tail: tuple[int, ...] | None = None
    veto: Veto | None = None
    mask: Mask | None = None


@dataclass(frozen=True, slots=True)
class Mask:
    """Tokens that a reply may go on with.

    Attributes:
        forbidden: Arrays of forbidden ids, in no order.
        allowed: (V,) bool, the only allowed tokens; None: all that are not forbidden.
        ends: True if the reply may end.
        forced: The only allowed token; None where the other fields decide.
    """

    forbidden: tuple[Ids, ...] = ()
    allowed: Flags | None = None
    ends: bool = True
    forced: int | None = None


class _Ended(Exception):
    """Nothing is allowed after a reply, or the engine of an article failed."""

    def __init__(self, article: str, reason: str) -> None:
        super().__init__(reason)
        self.article, self.reason = article, reason


class Tree:
    """Replies under the rules of a court.

    Args:
        rules: The rules.
        vocabulary: Bytes of the tokenizer's tokens.
        end_ids: Ids that end a reply.
        refusal_ids: Tokens of the text that ends a reply where nothing else is allowed.

    Attributes:
        hidden: (V,) bool, tokens that no reply may hold: special and unknown ones.
    """

    def __init__(
        self, rules: Sequence[Rule], vocabulary: Vocabulary, end_ids: Sequence[int], refusal_ids: Sequence[int]
    ) -> None:
        self.rules, self.vocabulary = tuple(rules), vocabulary
        self.end_ids, self.refusal_ids = tuple(end_ids), tuple(refusal_ids)
        self.hidden = np.array([piece is None for piece in vocabulary.pieces])
        self._ends = frozenset(self.end_ids)
        self._text = int((~self.hidden).sum())

    def start(self) -> Reply:
        """Return the empty reply, the root of a new tree."""
        return Reply(0, tuple(rule.start for rule in self.rules))

    def read(self, ids: Sequence[int], reply: Reply | None = None) -> Reply:
        """Return the reply after token ids, from the empty reply or from `reply`."""
        reply = self.start() if reply is None else reply
        for token in ids:
            reply = self.step(reply, int(token))
        return reply

    def step(self, reply: Reply, token: int) -> Reply:
        """Return the reply after one more token. It is broken if the token was forbidden."""
        found = reply.children.get(token)
        if found is None:
            found = reply.children[token] = self._step(reply, token)
        return found

    def _step(self, reply: Reply, token: int) -> Reply:
        count = reply.count + 1
        if reply.broken is not None:
            return Reply(count, broken=reply.broken)
        if reply.ended:
            return Reply(count, ended=True)
        mask = self.mask(reply)
        if token in self._ends:
            good = mask.ends or mask.forced == token
            return Reply(count, ended=True, broken=None if good else self._blame_end(reply))
        if mask.forced is not None and mask.forced != token:
            return Reply(count, broken=self._blame_forced(reply))
        if self._is_hidden(token):
            return Reply(count, broken="vocabulary")
        if reply.tail is not None:
            return Reply(count, reply.states, tail=reply.tail[1:], veto=reply.veto)
        assert reply.states is not None
        states = []
        for rule, state in zip(self.rules, reply.states, strict=True):
            try:
                after = rule.step(state, token)
            except EngineError as error:
                veto = Veto(count, rule.article, "ended", reason=f"{ENGINE}: {error}")
                return Reply(count, tail=(), veto=veto)
            if after is None:
                return Reply(count, broken=rule.blame(state, token))
            states.append(after)
        return Reply(count, tuple(states))

    def _is_hidden(self, token: int) -> bool:
        return not 0 <= token < len(self.hidden) or bool(self.hidden[token])

    def mask(self, reply: Reply) -> Mask:
        """Return the tokens that a reply may go on with; where there are none, the court's text."""
        if reply.mask is None:
            reply.mask = self._mask(reply)
        return reply.mask

    def _mask(self, reply: Reply) -> Mask:
        if reply.broken is not None or reply.ended:
            return Mask(forced=self.end_ids[0])
        if reply.tail is not None:
            return Mask(forced=reply.tail[0] if reply.tail else self.end_ids[0])
        try:
            found = self._basic(reply)
            if found.forced is None and found.allowed is not None and not found.ends and len(self.rules) > 1:
                found = self._without_dead_ends(reply, found)
        except _Ended as error:
            return self.end(reply, error.article, error.reason)
        return found

    def _basic(self, reply: Reply) -> Mask:
        """Return the tokens that break no article themselves. Raises :class:`_Ended` where there are none."""
        assert reply.states is not None
        forbidden: list[Ids] = []
        allowed: Flags | None = None
        ends, forced = True, None
        culprit = ""
        for rule, state in zip(self.rules, reply.states, strict=True):
            try:
                ids = rule.forbidden(state)
                if rule.only_forbids:
                    if len(ids):
                        forbidden.append(ids)
                    continue
                only = rule.allowed(state)
                may_end = rule.may_end(state)
            except EngineError as error:
                raise _Ended(rule.article, f"{ENGINE}: {error}") from error
            if len(ids):
                forbidden.append(ids)
            if only is not None:
                allowed = only if allowed is None else allowed & only
                culprit = rule.article
            if not may_end:
                ends = False
            if forced is None:
                forced = rule.forced(state)
        if forced is not None and (
            any(forced in ids for ids in forbidden) or (allowed is not None and not allowed[forced])
        ):
            raise _Ended(culprit or self._blame_end(reply), NOTHING)
        found = Mask(tuple(forbidden), allowed, ends, forced)
        if forced is None and not ends:
            sparse = allowed is None and sum(map(len, forbidden)) < self._text
            if not sparse and not self._left(found).any():
                raise _Ended(culprit or self._blame_end(reply), NOTHING)
        return found

    def _left(self, mask: Mask) -> Flags:
        """Return (V,) bool, the ordinary tokens of a mask."""
        left: Flags = ~self.hidden if mask.allowed is None else mask.allowed & ~self.hidden
        for ids in mask.forbidden:
            left[ids] = False
        return left

    def _without_dead_ends(self, reply: Reply, mask: Mask) -> Mask:
        """Return a mask without the tokens after which no reply can end.

        A language may allow a word whose end another article forbids. Only where few tokens are left.
        """
        left = np.nonzero(self._left(mask))[0]
        if len(left) > _FEW:
            return mask
        dead = [token for token in left.tolist() if not self._goes_on(reply, token, _AHEAD)]
        if len(dead) == len(left):
            raise _Ended(self._blame_end(reply), NOTHING)
        return Mask((*mask.forbidden, np.array(dead, dtype=np.int64)), mask.allowed, mask.ends) if dead else mask

    def _goes_on(self, reply: Reply, token: int, most: int) -> bool:
        """Return False if no reply that goes on with a token can end.

        All ways to go on are searched, those with the same text once, until one may end or has more than `_FEW`
        tokens to choose from. True also where `most` replies were read without an answer.
        """
        by_text = all(rule.reads_text for rule in self.rules)
        first = self._after(reply, token)
        open_, seen = [(first, self._key(b"" if by_text else (), token))], set()
        while open_:
            node, key = open_.pop()
            if node is None or key in seen:
                continue
            seen.add(key)
            if len(seen) > most:
                return True
            try:
                mask = self._basic(node)
            except _Ended:
                continue
            if mask.ends or mask.allowed is None or mask.forced is not None:
                return True
            left = np.nonzero(self._left(mask))[0]
            if len(left) > _FEW:
                return True
            sizes = [len(self.vocabulary.pieces[one] or b"") for one in left.tolist()]
            for k in np.argsort(sizes, kind="stable").tolist():  # the longest is read first
                one = int(left[k])
                if (follow := self._key(key, one)) not in seen:
                    open_.append((self._after(node, one), follow))
        return False

    def _key(self, key: Any, token: int) -> Any:
        """Return the text (bytes) or the tokens (tuple) of a reply after one more token."""
        return key + (self.vocabulary.pieces[token] or b"") if isinstance(key, bytes) else (*key, token)

    def _after(self, reply: Reply, token: int) -> Reply | None:
        """Return the reply after a token, without keeping it; None if an article or an engine refuses the token."""
        states = []
        for rule, state in zip(self.rules, reply.states or (), strict=True):
            try:
                after = rule.step(state, token)
            except EngineError:
                return None
            if after is None:
                return None
            states.append(after)
        return Reply(reply.count + 1, tuple(states))

    def can_end(self, most: int) -> bool:
        """Return False if no reply can end: articles contradict each other.

        True also where `most` beginnings of replies were read without an answer.
        """
        start = self.start()
        try:
            mask = self._basic(start)
        except _Ended:
            return False
        if mask.ends or mask.allowed is None or mask.forced is not None:
            return True
        left = np.nonzero(self._left(mask))[0]
        return len(left) > _FEW or any(self._goes_on(start, one, most) for one in left.tolist())

    def end(self, reply: Reply, article: str, reason: str) -> Mask:
        """End a reply with the court's text, or at once where that would break an article of forbidden texts."""
        tail = self.refusal_ids
        for rule, state in zip(self.rules, reply.states or (), strict=False):
            if isinstance(rule, PhraseRule):
                for token in tail:
                    state = rule.step(state, token)
                    if state is None:
                        tail = ()
                        break
        if reply.states is None:
            tail = ()
        reply.tail = tail
        reply.veto = Veto(reply.count, article, "ended", reason=reason)
        reply.mask = Mask(forced=tail[0] if tail else self.end_ids[0])
        return reply.mask

    def blame(self, reply: Reply, token: int) -> str:
        """Return the article that forbids `token` after a reply."""
        if token in self._ends:
            return self._blame_end(reply)
        if self._is_hidden(token):
            return "vocabulary"
        for rule, state in zip(self.rules, reply.states or (), strict=False):
            if token in rule.forbidden(state):
                return rule.blame(state, token)
            only = rule.allowed(state)
            if only is not None and not only[token]:
                return rule.article
        return self._blame_forced(reply)

    def _blame_end(self, reply: Reply) -> str:
        pairs = zip(self.rules, reply.states or (), strict=False)
        return next((rule.article for rule, state in pairs if not rule.may_end(state)), "?")

    def _blame_forced(self, reply: Reply) -> str:
        if reply.veto is not None:
            return reply.veto.article
        pairs = zip(self.rules, reply.states or (), strict=False)
        return next((rule.article for rule, state in pairs if rule.forced(state) is not None), "?")
