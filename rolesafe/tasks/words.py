"""Word pools of the generator, and the split of word pairs into training and test.

The pools do not overlap, so a secret or witness word in a reply was copied.
"""

from __future__ import annotations

import re
from functools import cache
from random import Random
from typing import Final, Literal, get_args

Split = Literal["train", "test"]
SPLITS: Final[tuple[Split, ...]] = get_args(Split)

PLACES: Final = (
    *("vault", "gate", "safe", "box", "chest", "tower", "cave", "ship", "barn", "room", "shop"),
    *("tent", "lab", "farm", "mill", "port", "castle", "bridge", "cabin", "drawer", "cellar", "attic"),
)
"""Places that have a code word."""

SECRETS: Final = (
    *("apple", "lemon", "honey", "bread", "river", "ocean", "storm", "cloud", "stone", "gold"),
    *("paper", "candle", "button", "pillow", "rocket", "puppy", "tiger", "rabbit", "flower", "forest"),
    *("orange", "purple", "yellow", "pink", "green", "blue", "black", "white", "glass", "wood"),
    *("spoon", "hammer", "basket", "carrot", "pepper", "butter", "sugar", "cherry", "peach", "melon"),
    *("candy", "snow", "silver", "ribbon", "monkey", "turtle", "dragon", "garden", "red", "iron"),
)
"""Secrets, required words and witness words."""

_ADJECTIVES: Final = ("happy", "small", "old", "quiet", "young", "big")
_NOUNS: Final = ("dog", "cat", "bird", "boy", "girl", "man", "frog")
_VERBS: Final = ("ran", "sat", "played", "slept", "walked", "sang")
_WHERE: Final = ("in the sun", "by the tree", "near the hill", "on the road", "under the sky", "with a friend")

_WORD: Final = re.compile(r"\w+|[^\w\s]+")


def tokens(text: str) -> list[str]:
    """Return words and punctuation of `text`, split like a whitespace-and-punctuation pre-tokenizer."""
    return _WORD.findall(text)


def pairs(
    rng: Random, split: Split, left: tuple[str, ...], right: tuple[str, ...], count: int
) -> list[tuple[str, str]]:
    """Return `count` pairs of a word of `left` and one of `right` of the split, all words distinct.

    One pair in four is held out for the test split, so that every word has partners in both splits.
    """
    chosen: list[tuple[str, str]] = []
    for a in rng.sample(left, count):
        used = {a, *(word for pair in chosen for word in pair)}
        partners = [b for b in right if b not in used and split_of(a, b) == split]
        chosen.append((a, rng.choice(partners)))
    return chosen


@cache
def split_of(left: str, right: str) -> Split:
    """Return the split of a pair of words; the order of two secrets does not matter."""
    pool = PLACES if left in PLACES else SECRETS
    return "test" if (pool.index(left) + SECRETS.index(right)) % 4 == 0 else "train"


def filler(rng: Random, split: Split, words: int = 0) -> str:
    """Return harmless sentences: one, or enough for `words` words.

    Pairs of adjective and noun are disjoint between the splits.
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
    """Return every word of :func:`filler`, with punctuation."""
    return set(tokens(" ".join(("The .", *_ADJECTIVES, *_NOUNS, *_VERBS, *_WHERE))))


def _held_out(i: int, j: int) -> bool:
    return (i + j) % 3 == 0
