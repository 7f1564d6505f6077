"""Best of N: random variants of the injection until one works (arXiv 2412.03556)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Final, Literal

from rolesafe.attacks.config import Messages, SearchAttackConfig, join, option, points
from rolesafe.attacks.judge import contains
from rolesafe.attacks.redirection import ORDERS, PERSONAS
from rolesafe.attacks.replies import context_size, prompts, replies
from rolesafe.attacks.search import Found, SearchContext
from rolesafe.tasks import Example, filler
from rolesafe.tasks.phrasing import IGNORE

Augment = Literal["words", "letters"]


@dataclass(frozen=True, kw_only=True)
class BestOfNConfig(SearchAttackConfig):
    """Draw up to `n` variants of the injection and stop at the first success of a greedy reply.

    Replies are asked for in batches, so up to a batch more than needed is run, and counted.

    Args:
        n: Maximum number of variants.
        augment: ``"words"``: another phrasing, place and number of injections, with words shuffled, repeated and
            dropped, all in the task generator's vocabulary. ``"letters"``: the published augmentations of letters
            (scrambled words, random capitals, noise), for tokenizers of word pieces.
        strength: Amount of change, in [0, 1]; sigma in the paper.
    """

    name = "best-of-n"
    about = "random variants of the injection until one works"
    grid = (
        *points("n", (16, 128), augment="words", strength=0.4),
        *points("n", (16, 128), augment="letters", strength=0.4),
    )
    quick = grid[:1]

    n: int = 16
    augment: Augment = "words"
    strength: float = option(0.4, least=0, most=1)

    def search(self, context: SearchContext) -> Found:
        """Return the first success, or the first variant if there is none; `n_steps` counts the variants sent.

        Variants that do not fit into the model's context are not sent.
        """
        model, tokenizer, size = context.model, context.tokenizer, context.batch_size
        rng = Random(context.seed)
        variants = [AUGMENTS[self.augment](context.example, rng, self.strength) for _ in range(self.n)]
        best, tried = variants[0], 0
        limit = context_size(model)
        encoded = zip(variants, prompts(model, tokenizer, variants), strict=True)
        fitting = [(v, one) for v, one in encoded if limit is None or len(one) + self.max_new_tokens <= limit]
        for start in range(0, len(fitting), size):
            batch, ready = zip(*fitting[start : start + size], strict=True)
            answers = replies(
                model, tokenizer, batch, max_new_tokens=self.max_new_tokens, batch_size=size, encoded=ready
            )
            tried += len(batch)
            won = next((v for v, answer in zip(batch, answers, strict=True) if contains(answer, context.success)), None)
            if won is not None:
                best = won
                break
        return Found(messages=best, reply=None, n_queries=tried, n_steps=tried, losses=())


def by_words(example: Example, rng: Random, strength: float) -> Messages:
    """Return a variant in words of the task generator."""
    statement = rng.choice((example.injection(), example.forged))
    opening = rng.choice(("", rng.choice(IGNORE["test"]), rng.choice(IGNORE["train"]), rng.choice(PERSONAS["tasks"])))
    span = _disturb(f"{opening} {statement}".split(), rng, strength)
    spans = [" ".join(span)] * rng.choice((1, 1, 2, 4, 8))
    around = [filler(rng, "test") for _ in range(rng.choice((0, 0, 1, 3)))]
    parts = [*around, example.request]
    at = rng.randrange(len(parts) + 1)
    return example.with_target(join(*parts[:at], *spans, *parts[at:]))


def by_letters(example: Example, rng: Random, strength: float) -> Messages:
    """Return an order and the injection with the published augmentations at their published probabilities."""
    words = f"{rng.choice(('', *ORDERS))} {example.injection()}".split()
    text = " ".join(_scramble(w, rng) if len(w) > 3 and rng.random() < strength**0.5 else w for w in words)
    text = "".join(c.swapcase() if rng.random() < strength**0.5 else c for c in text)
    text = "".join(_noise(c, rng) if rng.random() < strength**3 else c for c in text)
    parts = [example.request, text]
    rng.shuffle(parts)
    return example.with_target(join(*parts))


AUGMENTS: Final[dict[Augment, Callable[[Example, Random, float], Messages]]] = {
    "words": by_words,
    "letters": by_letters,
}


def _disturb(words: list[str], rng: Random, strength: float) -> list[str]:
    """Swap neighbours, repeat words and drop words, each with probability `strength` / 4."""
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
    """Return the printable ASCII character before or after `character`."""
    code = ord(character) + rng.choice((-1, 1))
    return chr(code) if 32 <= ord(character) <= 126 and 32 <= code <= 126 else character
