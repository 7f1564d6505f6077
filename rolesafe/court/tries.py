"""Adaptive tries to break the articles of a court, by an attacker that sets the logits: the bound of all attacks.

Whatever a message does to a model, the model answers with logits. So an attacker that chooses the logits of every step,
knows the court's states and goes on after each veto can do all that GCG, BEAST or any text can, and more.

Legend: R rows, V ids, L tokens so far.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from rolesafe.arguments import is_integer
from rolesafe.court.articles import Article
from rolesafe.court.court import Court
from rolesafe.court.goals import Goal, check_of, goal
from rolesafe.court.processor import CourtProcessor

Search = Literal["greedy", "sampling", "beam"]
SEARCHES: tuple[Search, ...] = get_args(Search)
ROWS, BEAMS = 32, 4
_LONGEST = 16  # bytes of a token that an attacker looks for


@dataclass(frozen=True, kw_only=True)
class ArticleTries:
    """Tries to break one article.

    Attributes:
        article: Name of the article.
        kind: Its kind.
        tries: Number of replies.
        violations: Replies that break it, by a check of the whole text.
        vetoes: Steps in which the attacker's first choice was vetoed.
    """

    article: str
    kind: str
    tries: int
    violations: int
    vetoes: int


class LogitAttacker:
    """Attacker that sets the logits of rows, and spells its goals in random tokens.

    Args:
        court: The court, all articles of which hold.
        wish: Draws a goal.
        seed: Of everything random.
    """

    def __init__(self, court: Court, wish: Callable[[random.Random], Goal], seed: int) -> None:
        self.court, self._wish = court, wish
        self._rng, self._generator = random.Random(seed), torch.Generator().manual_seed(seed)
        self._known: dict[bytes, list[int]] = {}
        for token, piece in enumerate(court.vocabulary.pieces):
            if piece:
                self._known.setdefault(piece, []).append(token)
        self.size = len(court.vocabulary)
        self._noise = torch.randn(4 * self.size, generator=self._generator)
        self.vetoes = 0

    def replies(self, rows: int, steps: int, search: Search) -> Iterator[list[int]]:
        """Yield the token ids of replies of at most `steps` tokens, up to their end token."""
        prompt = torch.zeros((rows if search != "beam" else rows // BEAMS, 1), dtype=torch.int64)
        processor = CourtProcessor(self.court, prompt, record=False)
        ids = torch.zeros((rows, 1), dtype=torch.int64)
        goals = [self._wish(self._rng) for _ in range(rows)]
        rest = [one.text for one in goals]
        scores = torch.zeros(rows)
        if search == "beam":
            scores[torch.arange(rows) % BEAMS > 0] = -torch.inf  # as in `generate`: the beams begin as one
        for _ in range(steps):
            logits, wanted = self._logits(goals, rest)
            out = processor(ids, logits)
            self.vetoes += int((out.gather(1, wanted[:, None]) == -torch.inf).sum())
            parents, picked, scores = self._pick(out, scores, search)
            goals, rest = [goals[p] for p in parents], [rest[p] for p in parents]
            for r, token in enumerate(picked.tolist()):
                self._follow(r, token, goals, rest)
            ids = torch.cat([ids[parents], picked[:, None]], 1)
        for r, row in enumerate(ids[:, 1:].tolist()):
            if scores[r] == -torch.inf:  # a beam of probability 0: `rolesafe.court.generate` replaces it
                continue
            end = next((k for k, token in enumerate(row) if token in self.court.end_ids), None)
            yield row if end is None else row[: end + 1]

    def _logits(self, goals: Sequence[Goal], rest: Sequence[bytes]) -> tuple[Tensor, Tensor]:
        """Return logits (R, V), and the first choice (R,) of each row."""
        starts = [self._rng.randrange(3 * self.size) for _ in goals]
        logits = torch.stack([self._noise[k : k + self.size] for k in starts])
        for r, (one, text) in enumerate(zip(goals, rest, strict=True)):
            if not text and one.ends:
                logits[r, self.court.end_ids[0]] = 20.0
                continue
            found = [token for k in range(1, _LONGEST + 1) if k <= len(text) for token in self._known.get(text[:k], ())]
            for token in self._rng.sample(found, min(3, len(found))):
                logits[r, token] = 8 + 8 * self._rng.random()
        return logits, logits.argmax(-1)

    def _pick(self, out: Tensor, scores: Tensor, search: Search) -> tuple[list[int], Tensor, Tensor]:
        """Return the parent of each row, its next token (R,) and its score (R,)."""
        rows = list(range(out.shape[0]))
        if search == "greedy":
            return rows, out.argmax(-1), scores
        if search == "sampling":
            return rows, torch.multinomial(out.softmax(-1), 1, generator=self._generator)[:, 0], scores
        total = (out.log_softmax(-1) + scores[:, None]).view(-1, BEAMS * out.shape[1])
        best, index = total.topk(BEAMS, dim=-1)
        group = torch.arange(len(total))[:, None] * BEAMS
        parents = (group + index // out.shape[1]).flatten().tolist()
        return parents, (index % out.shape[1]).flatten(), best.flatten()

    def _follow(self, r: int, token: int, goals: list[Goal], rest: list[bytes]) -> None:
        """Go on after a token: with the rest, from the beginning, or with another goal."""
        if token in self.court.end_ids:
            goals[r], rest[r] = Goal(b"", ends=True), b""
            return
        piece = self.court.vocabulary.pieces[token] if token < self.size else None
        if piece and rest[r].startswith(piece):
            rest[r] = rest[r][len(piece) :]
            if not rest[r] and not goals[r].ends:
                rest[r] = goals[r].text
        elif self._rng.random() < 0.3:
            goals[r] = self._wish(self._rng)
            rest[r] = goals[r].text


def try_to_break(
    court: Court,
    *,
    tries: int = 192,
    steps: int = 28,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[ArticleTries, ...]:
    """Try to break each article of a court, while all of them hold.

    >>> from rolesafe.court import Court, ForbiddenPhrases, try_to_break
    >>> from rolesafe.training.tiny import text_tokenizer
    >>> tokenizer = text_tokenizer(["the key is under the mat"], 300)
    >>> court = Court.compile([ForbiddenPhrases(name="key", phrases=("under the mat",))], tokenizer)
    >>> (found,) = try_to_break(court, tries=32, steps=12)
    >>> found.violations, found.vetoes > 0
    (0, True)

    Args:
        court: The court, compiled with the messages that its articles on provenance read.
        tries: Replies per article, rounded up to whole batches of three kinds of search: greedy, sampling and beams.
        steps: Longest reply, in tokens.
        seed: Of everything random.
        progress: Called with the number of finished articles and their total.

    Returns:
        One record per article, in their order.

    Raises:
        ValueError: A number is out of range.
    """
    for name, value in (("tries", tries), ("steps", steps)):
        if not is_integer(value, 1):
            raise ValueError(f"`{name}`: expected a number >= 1, got {value!r}")
    found = []
    for i, article in enumerate(court.articles.articles):
        found.append(_try(court, article, tries, steps, f"{seed}/{i}"))
        if progress is not None:
            progress(i + 1, len(court.articles.articles))
    return tuple(found)


def _try(court: Court, article: Article, tries: int, steps: int, seed: str) -> ArticleTries:
    number = random.Random(seed).randrange(2**31)
    attacker = LogitAttacker(court, lambda rng: goal(rng, article, court), number)
    broken = check_of(article, court)
    done = violations = 0
    while done < tries:
        for ids in attacker.replies(min(ROWS, BEAMS * -(-tries // BEAMS)), steps, SEARCHES[done % len(SEARCHES)]):
            violations += breaks(court, ids, broken)
            done += 1
    return ArticleTries(
        article=article.name, kind=article.kind, tries=done, violations=violations, vetoes=attacker.vetoes
    )


def breaks(court: Court, ids: Sequence[int], broken: Any) -> bool:
    """Return True if a reply, with its end token if it ended, breaks an article by the check `broken`.

    A reply that the court ended with its own text need not keep articles on form.
    """
    ended = bool(ids) and ids[-1] in court.end_ids
    own = list(ids[:-1] if ended else ids)
    text = court.vocabulary.text([i for i in own if i < len(court.hidden) and not court.hidden[i]])
    by_court = court.read(own).tail is not None
    return court.violation(text) is not None or (not by_court and broken(text, own, ended))
