"""Attacks on the way to the reply: its first tokens given in advance, and the worst place for an injection."""

from __future__ import annotations

from random import Random
from typing import Any

from rolesafe.attacks.judge import contains
from rolesafe.attacks.likelihood import reply_ids, reply_losses
from rolesafe.attacks.places import carrier, insert
from rolesafe.attacks.replies import context_size, prompts, replies, role_config
from rolesafe.attacks.search import Found
from rolesafe.tasks import Example


def prefill(
    model: Any,
    tokenizer: Any,
    example: Example,
    *,
    wanted: str,
    success: str,
    seed: int | str,
    max_new_tokens: int = 16,
    batch_size: int = 32,
    k: int = 1,
) -> Found:
    """Write the first `k` tokens of the wanted reply for the model, and let it go on (Qi et al., arXiv 2406.05946).

    The message states the contrary policy once. Published numbers judge the whole reply, given tokens included, so
    that a long enough prefill wins by itself. Here what is given ends before the first token of `success`: all that
    counts is written by the model. Where `wanted` begins with it nothing can be given, and the reply is that to the
    injection alone; `n_steps` is the number of tokens that were given.

    Nobody who only types a message can do this (``typed=False``); whoever holds the model or its interface can.

    Args:
        model, tokenizer, example, wanted, success, seed, max_new_tokens, batch_size: As in
            :class:`rolesafe.attacks.search.Search`; nothing is random here.
        k: Most tokens that are given; at least one of `max_new_tokens` is left to the model.

    Raises:
        ValueError: `k` is not a number >= 1.
    """
    del seed
    if not isinstance(k, int) or isinstance(k, bool) or k < 1:
        raise ValueError(f"`k`: expected a number of tokens >= 1, got {k!r}")
    messages = example.with_target(f"{example.request} {example.injection()}")
    ids = reply_ids(tokenizer, messages, wanted, role_config(model))
    given = ids[: min(k, _before(tokenizer, ids, success), max_new_tokens - 1)]
    size = context_size(model)
    if size is not None and len(prompts(model, tokenizer, [messages])[0]) + max_new_tokens > size:
        return Found(messages=messages, reply="", n_queries=0, n_steps=0, losses=(), typed=False)
    (reply,) = replies(
        model,
        tokenizer,
        [messages],
        max_new_tokens=max_new_tokens - len(given),
        batch_size=batch_size,
        begun=given,
    )
    return Found(messages=messages, reply=reply, n_queries=1, n_steps=len(given), losses=(), typed=False)


def worst_insertion(
    model: Any,
    tokenizer: Any,
    example: Example,
    *,
    wanted: str,
    success: str,
    seed: int | str,
    max_new_tokens: int = 16,
    batch_size: int = 32,
    words: int = 0,
    places: int = 64,
    tries: int = 8,
) -> Found:
    """The injection between the two words of the user's text where it works best.

    Every place is ranked by the loss of `wanted`; the best ones are asked for their greedy reply until one is a
    success.

    Args:
        model, tokenizer, example, wanted, success, seed, max_new_tokens, batch_size: As in
            :class:`rolesafe.attacks.search.Search`.
        words: Least number of words of harmless text before what the user asks.
        places: Most places that are ranked; of more, so many are drawn.
        tries: Most places whose reply is asked for, best first.

    Returns:
        The first success, or the place with the lowest loss; a text that does not fit into the model's context is not
        asked for. `losses` holds the lowest loss alone.

    Raises:
        ValueError: A number is out of range.
    """
    for name, value in (("places", places), ("tries", tries)):
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ValueError(f"`{name}`: expected a number >= 1, got {value!r}")
    rng = Random(seed)
    text = carrier(example, rng, words)
    spots = list(range(len(text.split()) + 1))
    if len(spots) > places:
        spots = sorted(rng.sample(spots, places))
    variants = [example.with_target(insert(text, example.injection(), at)) for at in spots]
    size, reply = context_size(model), len(reply_ids(tokenizer, variants[0], wanted, role_config(model)))
    longest = max(map(len, prompts(model, tokenizer, variants))) + max(max_new_tokens, reply)
    if size is not None and longest > size:
        return Found(messages=variants[0], reply=None, n_queries=0, n_steps=0, losses=())
    losses = reply_losses(model, tokenizer, variants, wanted, batch_size=batch_size)
    order = sorted(range(len(variants)), key=lambda i: (losses[i], i))
    best = order[0]
    asked = order[:tries]
    n_replies = 0
    for start in range(0, len(asked), batch_size):
        batch = asked[start : start + batch_size]
        answers = replies(
            model, tokenizer, [variants[i] for i in batch], max_new_tokens=max_new_tokens, batch_size=batch_size
        )
        n_replies += len(batch)
        won = next((i for i, answer in zip(batch, answers, strict=True) if contains(answer, success)), None)
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


def _before(tokenizer: Any, ids: list[int], success: str) -> int:
    """Number of tokens of a reply before the first one of `success`; all of them where it does not occur."""

    def holds(start: int, end: int) -> bool:
        return contains(tokenizer.decode(ids[start:end], skip_special_tokens=True), success)

    end = next((end for end in range(1, len(ids) + 1) if holds(0, end)), None)
    if end is None:
        return len(ids)
    return max(start for start in range(end) if holds(start, end))
