"""Best of N: the same attack again and again, a little changed at random, until one works (arXiv 2412.03556)."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any, Final

from rolesafe.attacks.builders import join
from rolesafe.attacks.judge import contains
from rolesafe.attacks.personas import ORDERS, PERSONAS
from rolesafe.attacks.replies import context_size, prompts, replies
from rolesafe.attacks.search import Found
from rolesafe.tasks import Example, Message, filler
from rolesafe.tasks.phrasing import IGNORE


def best_of_n(
    model: Any,
    tokenizer: Any,
    example: Example,
    *,
    wanted: str,
    success: str,
    seed: int | str,
    max_new_tokens: int = 16,
    batch_size: int = 32,
    n: int = 32,
    augment: str = "words",
    strength: float = 0.4,
) -> Found:
    """Up to `n` variants of the injection, drawn one after the other; the first whose greedy reply is a success counts.

    Replies are asked for in batches, so up to a batch more than needed is paid for, and recorded.

    Args:
        model, tokenizer, example, wanted, success, seed, max_new_tokens, batch_size: As in
            :class:`rolesafe.attacks.search.Search`; `wanted` is not used.
        n: Most variants.
        augment: ``"words"``: another phrasing, place and number of injections, with words shuffled, repeated and
            dropped, all in the task generator's vocabulary. ``"letters"``: the published augmentations of the letters
            (scrambled words, random capitals, noise), for tokenizers that read letters.
        strength: How much is changed, in [0, 1]; the paper's sigma.

    Returns:
        The first success, or the first variant where there is none. Variants that do not fit into the model's context
        are not sent. `n_steps` is the number of variants that were tried.

    Raises:
        ValueError: A parameter is out of range.
    """
    del wanted
    if not isinstance(n, int) or isinstance(n, bool) or n < 1:
        raise ValueError(f"`n`: expected a number of variants >= 1, got {n!r}")
    if augment not in AUGMENTS:
        raise ValueError(f"`augment`: expected one of {tuple(AUGMENTS)}, got {augment!r}")
    if not 0.0 <= strength <= 1.0:
        raise ValueError(f"`strength`: expected a number in [0, 1], got {strength!r}")
    rng = Random(seed)
    variants = [AUGMENTS[augment](example, rng, strength) for _ in range(n)]
    best, tried = variants[0], 0
    size = context_size(model)
    encoded = zip(variants, prompts(model, tokenizer, variants), strict=True)
    fitting = [(variant, one) for variant, one in encoded if size is None or len(one) + max_new_tokens <= size]
    for start in range(0, len(fitting), batch_size):
        batch, ready = zip(*fitting[start : start + batch_size], strict=True)
        answers = replies(model, tokenizer, batch, max_new_tokens=max_new_tokens, batch_size=batch_size, encoded=ready)
        tried += len(batch)
        won = next((v for v, answer in zip(batch, answers, strict=True) if contains(answer, success)), None)
        if won is not None:
            best = won
            break
    return Found(messages=best, reply=None, n_queries=tried, n_steps=tried, losses=())


def by_words(example: Example, rng: Random, strength: float) -> tuple[Message, ...]:
    """A variant in words of the generator."""
    statement = rng.choice((example.injection(), example.forged))
    opening = rng.choice(("", rng.choice(IGNORE["test"]), rng.choice(IGNORE["train"]), rng.choice(PERSONAS["tasks"])))
    span = _disturb(f"{opening} {statement}".split(), rng, strength)
    spans = [" ".join(span)] * rng.choice((1, 1, 2, 4, 8))
    around = [filler(rng, "test") for _ in range(rng.choice((0, 0, 1, 3)))]
    parts = [*around, example.request]
    at = rng.randrange(len(parts) + 1)
    return example.with_target(join(*parts[:at], *spans, *parts[at:]))


def by_letters(example: Example, rng: Random, strength: float) -> tuple[Message, ...]:
    """A variant with the published augmentations, at their published probabilities, of an order and the injection."""
    words = f"{rng.choice(('', *ORDERS))} {example.injection()}".split()
    text = " ".join(_scramble(w, rng) if len(w) > 3 and rng.random() < strength**0.5 else w for w in words)
    text = "".join(c.swapcase() if rng.random() < strength**0.5 else c for c in text)
    text = "".join(_noise(c, rng) if rng.random() < strength**3 else c for c in text)
    parts = [example.request, text]
    rng.shuffle(parts)
    return example.with_target(join(*parts))


AUGMENTS: Final[dict[str, Callable[[Example, Random, float], tuple[Message, ...]]]] = {
    "words": by_words,
    "letters": by_letters,
}


def _disturb(words: list[str], rng: Random, strength: float) -> list[str]:
    """Now and then two neighbours exchanged, a word repeated or one dropped: each with probability `strength` / 4."""
    out: list[str] = []
    for word in words:
        draw = rng.random()
        if draw < strength / 4 and out:
            out.insert(len(out) - 1, word)
        elif draw < strength / 2:
            out += [word, word]
        elif draw >= strength * 3 / 4:
            out.append(word)
    return out or words


def _scramble(word: str, rng: Random) -> str:
    middle = list(word[1:-1])
    rng.shuffle(middle)
    return word[0] + "".join(middle) + word[-1]


def _noise(character: str, rng: Random) -> str:
    """The character before or after, among the printable ones of ASCII."""
    code = ord(character) + rng.choice((-1, 1))
    return chr(code) if 32 <= ord(character) <= 126 and 32 <= code <= 126 else character
