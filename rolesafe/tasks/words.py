"""Word pools of the generator, and which of them belong to the training and to the test split.

The pools never overlap, so a secret or a witness word in a reply can only have been copied: no other part of a
conversation contains it by chance.
"""

from __future__ import annotations

import re
from random import Random
from typing import Final, Literal, get_args

Split = Literal["train", "test"]
SPLITS: Final[tuple[Split, ...]] = get_args(Split)

PLACES: Final[dict[Split, tuple[str, ...]]] = {
    "train": (
        *("vault", "gate", "safe", "box", "chest", "tower", "cave", "ship", "barn", "room"),
        *("shop", "tent", "lab", "farm", "mill", "port"),
    ),
    "test": ("castle", "bridge", "cabin", "drawer", "cellar", "attic"),
}
"""What a code word opens. Held-out places occur in training only in neutral conversations, which have no rule."""

SECRETS: Final[dict[Split, tuple[str, ...]]] = {
    "train": (
        *("apple", "lemon", "honey", "bread", "river", "ocean", "storm", "cloud", "stone", "gold"),
        *("paper", "candle", "button", "pillow", "rocket", "puppy", "tiger", "rabbit", "flower", "forest"),
        *("orange", "purple", "yellow", "pink", "green", "blue", "black", "white", "glass", "wood"),
        *("spoon", "hammer", "basket", "carrot", "pepper", "butter", "sugar", "cherry", "peach", "melon"),
        *("zebra", "lion", "panda", "eagle", "horse", "wolf", "island", "desert", "valley", "lake"),
    ),
    "test": (
        *("candy", "snow", "silver", "ribbon", "monkey", "turtle"),
        *("dragon", "garden", "meadow", "brown", "red", "iron"),
    ),
}
"""Secrets, required words and witness words. Held-out ones occur in training only in neutral conversations."""

_ADJECTIVES: Final = ("happy", "small", "old", "quiet", "young", "big")
_NOUNS: Final = ("dog", "cat", "bird", "boy", "girl", "man", "frog")
_VERBS: Final = ("ran", "sat", "played", "slept", "walked", "sang")
_WHERE: Final = ("in the sun", "by the tree", "near the hill", "on the road", "under the sky", "with a friend")

_WORD: Final = re.compile(r"\w+|[^\w\s]+")


def tokens(text: str) -> list[str]:
    """Words and punctuation of `text`, split as a whitespace-and-punctuation pre-tokenizer does."""
    return _WORD.findall(text)


def everywhere(pool: dict[Split, tuple[str, ...]]) -> tuple[str, ...]:
    """The words of both splits of `pool`."""
    return pool["train"] + pool["test"]


def distinct(rng: Random, pool: tuple[str, ...], count: int) -> list[str]:
    """`count` different words of `pool`.

    Raises:
        ValueError: The pool is smaller than that.
    """
    if count > len(pool):
        raise ValueError(f"`count`: expected at most {len(pool)}, got {count}")
    return rng.sample(pool, count)


def filler(rng: Random, split: Split, words: int = 0) -> str:
    """Harmless sentences: one, or as many as it takes to reach `words` words.

    The pairs of adjective and noun of the two splits are disjoint.
    """
    pairs = [
        (a, b) for i, a in enumerate(_ADJECTIVES) for j, b in enumerate(_NOUNS) if _held_out(i, j) is (split == "test")
    ]
    sentences: list[str] = []
    count = 0
    while not sentences or count < words:
        adjective, noun = rng.choice(pairs)
        sentences.append(f"The {adjective} {noun} {rng.choice(_VERBS)} {rng.choice(_WHERE)}.")
        count += len(sentences[-1].split())
    return " ".join(sentences)


def filler_words() -> set[str]:
    """Every word that :func:`filler` may use, with punctuation."""
    return set(tokens(" ".join(("The .", *_ADJECTIVES, *_NOUNS, *_VERBS, *_WHERE))))


def _held_out(i: int, j: int) -> bool:
    return (i + j) % 3 == 0
