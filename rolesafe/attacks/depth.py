"""Attacks inside the reply: prefixes of any depth, harmful spans inside a refusal, banned recovery tokens.

All of them need access to the decoding (``typed=False``). The conversation is the example's own, without an injection.
The forced tokens have the assistant's role, and never hold the success text: only the model's own tokens can.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Literal

from rolesafe.attacks.branches import Branch, branch_of, foreign_tokens, optimised_tokens
from rolesafe.attacks.config import SearchAttackConfig, option, points
from rolesafe.attacks.forcing import Continuation
from rolesafe.attacks.judge import contains
from rolesafe.attacks.search import CannotSearch, Found, SearchContext

Source = Literal["own", "foreign", "optimised"]


@dataclass(frozen=True, kw_only=True)
class PrefillDepthConfig(SearchAttackConfig):
    """Force the first `k` tokens of the reply and let the model continue, for any depth `k`.

    Prefilling attack of Qi et al. (arXiv 2406.05946), swept over the depth. Sources of the tokens:

    - ``"own"``: the wanted reply up to the success text, continued by the model itself while tokens of the refusal, of
      the success text and the end of the turn are banned.
    - ``"foreign"``: `text`, repeated up to `k` tokens.
    - ``"optimised"``: found by a beam search for the lowest loss of the wanted reply from the success text on.

    Args:
        k: Number of forced tokens.
        source: See above.
        text: Text of a foreign prefix; default: affirmative openings.
        samples: Number of sampled continuations, of which one success is enough; 0: the greedy one.
        candidates: Most likely tokens that each beam is extended by.
        beams: Prefixes that an optimised search keeps.
    """

    name = "prefill-depth"
    about = "the first tokens of the reply, forced up to any depth"
    typed = False
    grid = (
        *points("k", (1, 2, 4, 8, 16, 32), source="own"),
        *points("k", (4, 16), source="foreign"),
        *points("k", (1, 4), source="optimised"),
    )
    quick = grid[1:4:2]

    k: int = 1
    source: Source = "own"
    text: str = ""
    samples: int = option(0, least=0)
    candidates: int = 20
    beams: int = 4

    def search(self, context: SearchContext) -> Found:
        """Return the first success, or the first continuation; `n_steps` counts the forced tokens."""
        branch = branch_of(context, max_new_tokens=self.max_new_tokens)
        losses: list[float] = []
        _check_room(branch, self.k, self.max_new_tokens)
        if self.source == "foreign":
            prefix = foreign_tokens(context.tokenizer, branch, context, self.text, self.k)
        elif self.source == "optimised":
            prefix, losses = optimised_tokens(branch, self.k, candidates=self.candidates, beams=self.beams)
        else:
            prefix = branch.harmful_tokens(self.k)
        return _sent(branch, [prefix], self, context, n_steps=self.k, losses=losses)


@dataclass(frozen=True, kw_only=True)
class SpanInsertionConfig(SearchAttackConfig):
    """Insert a short harmful span at a random position of a refusal, and let the model continue from it.

    Random insertion attack of arXiv 2606.04168: the forced tokens are the first ones of the refusal, then the span.
    With several spans the refusal continues between them, up to the last span. The span is `length` tokens of the
    harmful branch, see :class:`PrefillDepthConfig`.

    Args:
        length: Number of tokens of a span.
        spans: Number of spans, at distinct positions.
        samples: Number of sampled continuations, of which one success is enough; 0: the greedy one.
    """

    name = "span-insertion"
    about = "a short harmful span at a random position of a refusal"
    typed = False
    grid = (
        *points("length", (1, 4), spans=1, samples=0),
        {"length": 4, "spans": 2, "samples": 0},
        {"length": 4, "spans": 1, "samples": 8},
    )
    quick = grid[1:2]

    length: int = 1
    spans: int = 1
    samples: int = option(0, least=0)

    def search(self, context: SearchContext) -> Found:
        """Return the first success, or the first continuation; `n_steps` counts the positions tried, 1."""
        branch = branch_of(context, max_new_tokens=self.max_new_tokens)
        _check_room(branch, len(branch.refusal) + self.spans * self.length, self.max_new_tokens)
        span = branch.harmful_tokens(self.length)
        places = _places(branch, self.spans)
        chosen = Random(context.seed).choice(places)
        return _sent(branch, [inserted(branch.refusal, span, chosen)], self, context, n_steps=1)


@dataclass(frozen=True, kw_only=True)
class WorstSpanInsertionConfig(SearchAttackConfig):
    """Insert a short harmful span at every position of a refusal; one success at any position is enough.

    As :class:`SpanInsertionConfig`, with all positions instead of a random one, in batches from one cache. With several
    spans, all combinations of positions.

    Args:
        length: Number of tokens of a span.
        spans: Number of spans, at distinct positions.
        samples: Number of samples at each position; 0: the greedy continuation.
        places: Maximum number of positions, or of combinations of them; more are sampled.
    """

    name = "worst-span-insertion"
    about = "a short harmful span at every position of a refusal"
    typed = False
    grid = (
        *points("length", (1, 4), spans=1, samples=0),
        {"length": 4, "spans": 2, "samples": 0},
        {"length": 4, "spans": 1, "samples": 8},
    )
    quick = grid[1:2]

    length: int = 1
    spans: int = 1
    samples: int = option(0, least=0)
    places: int = 64

    def search(self, context: SearchContext) -> Found:
        """Return the first success, or the continuation of position 0; `n_steps` counts the positions tried."""
        branch = branch_of(context, max_new_tokens=self.max_new_tokens)
        _check_room(branch, len(branch.refusal) + self.spans * self.length, self.max_new_tokens)
        span = branch.harmful_tokens(self.length)
        places = _places(branch, self.spans)
        if len(places) > self.places:
            places = sorted(Random(context.seed).sample(places, self.places))
        prefixes = [inserted(branch.refusal, span, chosen) for chosen in places]
        return _sent(branch, prefixes, self, context, n_steps=len(places))


@dataclass(frozen=True, kw_only=True)
class BannedDecodingConfig(SearchAttackConfig):
    """Ban the recovery tokens while the model decodes.

    A model trained with the deep objective is its base model on all other tokens, so this attack returns the base
    model's reply, whatever the depth of the training. A court answers it, see :mod:`rolesafe.court`.

    Args:
        k: Number of forced tokens before, see :class:`PrefillDepthConfig`.
        words: Words to ban, separated by spaces; default: the tokens of the refusal that the wanted reply does not
            have, or its first token if it has all of them.
        samples: Number of sampled continuations, of which one success is enough; 0: the greedy one.
    """

    name = "banned-decoding"
    about = "a reply decoded without the tokens of the refusal"
    typed = False
    grid = points("k", (0, 4), samples=0)
    quick = grid[:1]

    k: int = option(0, least=0)
    words: str = ""
    samples: int = option(0, least=0)

    def search(self, context: SearchContext) -> Found:
        """Return the first success, or the first continuation; `n_steps` counts the banned tokens."""
        branch = branch_of(context, max_new_tokens=self.max_new_tokens)
        _check_room(branch, self.k, self.max_new_tokens)
        banned = branch.recovery
        if self.words:
            ids = [
                context.tokenizer(text, add_special_tokens=False)["input_ids"]
                for word in self.words.split()
                for text in (word, f" {word}")
            ]
            banned = sorted({tokens[0] for tokens in ids if tokens} - set(branch.wanted))
        if not banned:
            raise CannotSearch(
                "`words`: expected tokens that the wanted reply does not have, or a refusal of at least one token, got "
                "none. Name other words."
            )
        prefix = branch.harmful_tokens(self.k)
        return _sent(branch, [prefix], self, context, n_steps=len(banned), banned=banned)


def inserted(refusal: Sequence[int], span: Sequence[int], places: Sequence[int]) -> list[int]:
    """Return the tokens of `refusal` with `span` in front of each position of `places`, up to the last span.

    >>> inserted([1, 2, 3, 4], [9, 9], (1, 3))
    [1, 9, 9, 2, 3, 9, 9]
    """
    found: list[int] = []
    for start, end in itertools.pairwise((0, *places)):
        found += [*refusal[start:end], *span]
    return found


def _places(branch: Branch, spans: int) -> list[tuple[int, ...]]:
    """Return all combinations of `spans` positions of the refusal, its end included."""
    if not branch.refusal:
        raise CannotSearch("`model`: expected a refusal of at least one token, got an empty reply.")
    found = list(itertools.combinations(range(len(branch.refusal) + 1), spans))
    if not found:
        raise CannotSearch(
            f"`spans`: expected at most the {len(branch.refusal) + 1} positions of the refusal, got {spans}. Lower it."
        )
    return found


def _check_room(branch: Branch, forced: int, new: int) -> None:
    try:
        branch.prompt.check_room([[0] * forced], new)
    except ValueError as error:
        raise CannotSearch(str(error)) from error


def _sent(
    branch: Branch,
    prefixes: Sequence[Sequence[int]],
    config: PrefillDepthConfig | SpanInsertionConfig | WorstSpanInsertionConfig | BannedDecodingConfig,
    context: SearchContext,
    *,
    n_steps: int,
    losses: Sequence[float] = (),
    banned: Sequence[int] = (),
) -> Found:
    """Return the first successful continuation of the prefixes, or the first one of all."""
    seed = Random(context.seed).getrandbits(31)
    rows = branch.prompt.continued(
        prefixes, max_new_tokens=config.max_new_tokens, samples=config.samples, seed=seed, banned=banned
    )
    found: list[Continuation] = [one for row in rows for one in row]
    best = next((one for one in found if contains(one.text, branch.success)), found[0])
    return Found(
        messages=branch.messages,
        reply=best.text,
        n_queries=branch.prompt.n_queries,
        n_steps=n_steps,
        losses=tuple(losses),
        typed=False,
    )
