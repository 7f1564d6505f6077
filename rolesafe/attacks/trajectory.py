"""Attacks on the way to the reply: its first tokens given in advance, and the worst place of an injection."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING

from rolesafe.attacks.config import SearchAttackConfig, option, points
from rolesafe.attacks.judge import contains
from rolesafe.attacks.likelihood import reply_ids, reply_losses
from rolesafe.attacks.placement import carrier, insert
from rolesafe.attacks.replies import context_size, prompts, replies, role_config
from rolesafe.attacks.search import Found, SearchContext

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, kw_only=True)
class PrefillConfig(SearchAttackConfig):
    """Write the first tokens of the wanted reply for the model and let it continue (Qi et al., arXiv 2406.05946).

    The message states the contrary policy once. Published numbers judge the whole reply, so a long prefill succeeds by
    itself. Here the prefill ends before the first token of `success`: only the model's own tokens count.

    Only an attacker with access to the model or its interface can do this (``typed=False``).

    Args:
        k: Maximum number of prefilled tokens; at least one of `max_new_tokens` is left to the model.
    """

    name = "prefill"
    about = "the first tokens of the wanted reply, given in advance"
    typed = False
    grid = points("k", (1, 2, 3, 4, 8))
    quick = points("k", (2,))

    k: int = 1

    def search(self, context: SearchContext) -> Found:
        """Return the reply to the injection and the prefill; `n_steps` counts the prefilled tokens.

        If `wanted` begins with `success`, nothing is prefilled.
        """
        model, tokenizer, example = context.model, context.tokenizer, context.example
        messages = example.with_target(f"{example.request} {example.injection()}")
        ids = reply_ids(tokenizer, messages, context.wanted, role_config(model))
        given = ids[: min(self.k, before_success(tokenizer, ids, context.success), self.max_new_tokens - 1)]
        size = context_size(model)
        if size is not None and len(prompts(model, tokenizer, [messages])[0]) + self.max_new_tokens > size:
            return Found(messages=messages, reply="", n_queries=0, n_steps=0, losses=(), typed=False)
        (reply,) = replies(
            model,
            tokenizer,
            [messages],
            max_new_tokens=self.max_new_tokens - len(given),
            batch_size=context.batch_size,
            begun=given,
        )
        return Found(messages=messages, reply=reply, n_queries=1, n_steps=len(given), losses=(), typed=False)


@dataclass(frozen=True, kw_only=True)
class WorstInsertionConfig(SearchAttackConfig):
    """Insert the injection between the two words of the user's text where it works best.

    Every place is ranked by the loss of `wanted`. The best places are asked for their greedy reply until one succeeds.

    Args:
        words: Minimum number of words of filler before the request.
        places: Maximum number of places to rank; a longer text is sampled.
        tries: Maximum number of places to ask for a reply, best first.
    """

    name = "worst-insertion"
    about = "the opposite rule between the two words where it works best"
    grid = points("words", (0, 35), places=64, tries=8)
    quick = grid[:1]

    words: int = option(0, least=0)
    places: int = 64
    tries: int = 8

    def search(self, context: SearchContext) -> Found:
        """Return the first success, or the place with the lowest loss; `losses` holds the lowest loss.

        A text that does not fit into the model's context is not sent.
        """
        model, tokenizer, example, wanted = context.model, context.tokenizer, context.example, context.wanted
        rng = Random(context.seed)
        text = carrier(example, rng, self.words)
        spots = list(range(len(text.split()) + 1))
        if len(spots) > self.places:
            spots = sorted(rng.sample(spots, self.places))
        variants = [example.with_target(insert(text, example.injection(), at)) for at in spots]
        size, reply = context_size(model), len(reply_ids(tokenizer, variants[0], wanted, role_config(model)))
        longest = max(map(len, prompts(model, tokenizer, variants))) + max(self.max_new_tokens, reply)
        if size is not None and longest > size:
            return Found(messages=variants[0], reply=None, n_queries=0, n_steps=0, losses=())
        losses = reply_losses(model, tokenizer, variants, wanted, batch_size=context.batch_size)
        order = sorted(range(len(variants)), key=lambda i: (losses[i], i))
        best, asked, n_replies = order[0], order[: self.tries], 0
        for start in range(0, len(asked), context.batch_size):
            batch = asked[start : start + context.batch_size]
            sent = [variants[i] for i in batch]
            answers = replies(model, tokenizer, sent, max_new_tokens=self.max_new_tokens, batch_size=context.batch_size)
            n_replies += len(batch)
            won = next((i for i, answer in zip(batch, answers, strict=True) if contains(answer, context.success)), None)
            if won is not None:
                best = won
                break
        return Found(
            messages=variants[best],
            reply=None,
            n_queries=len(variants) + n_replies,
            n_steps=len(variants),
            losses=(losses[order[0]],),
        )


def before_success(tokenizer: PreTrainedTokenizerBase, ids: list[int], success: str) -> int:
    """Return the number of tokens of a reply before the first one of `success`, all of them if it does not occur."""

    def holds(start: int, end: int) -> bool:
        return contains(tokenizer.decode(ids[start:end], skip_special_tokens=True), success)

    end = next((end for end in range(1, len(ids) + 1) if holds(0, end)), None)
    if end is None:
        return len(ids)
    return max(start for start in range(end) if holds(start, end))
