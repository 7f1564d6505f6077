"""Templates of the study's examples, and the distance between test and training sentences.

Examples of one template are not independent: intervals take them as one cluster.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import cache
from typing import Any

from rolesafe.tasks import Difficulty, Example, Message, generate, probes, trigger_examples
from rolesafe.tasks.words import PLACES, SECRETS

_SLOTS = frozenset((*PLACES, *SECRETS))


def template(example: Example) -> str:
    """Return the system text and the attacker's message of `example` with blanks for places and secrets."""
    said = (m["content"] for m in example.messages if m["role"] in ("system", example.target))
    return " | ".join(map(opened, said))


def opened(text: str) -> str:
    """Return `text` with every place and secret replaced by a blank."""
    return re.sub(r"\w+", lambda word: "_" if word[0] in _SLOTS else word[0], text)


def clusters(settings: Mapping[str, Any], seeds: Iterable[int]) -> dict[str, str]:
    """Return the template of every example of a record with these settings and seeds, by id."""
    count, families = settings["examples"], tuple(settings["families"])
    place = Difficulty(place=settings.get("place", "first"))
    found: dict[str, str] = {}
    for seed in seeds:
        asked = [
            *generate("test", count, 1000 + seed, families, difficulty=place),
            *trigger_examples("test", count // 2, 2000 + seed, families),
            *probes("test", count, 3000 + seed),
        ]
        found.update((example.id, template(example)) for example in asked)
    return found


def ids_of(kind: str, settings: Mapping[str, Any], seed: int) -> list[str]:
    """Return the ids of the harmless texts with trigger words ("triggers"), or of the probes in data ("probes")."""
    return list(_ids(kind, settings["examples"], tuple(settings["families"]), seed))


@cache
def _ids(kind: str, count: int, families: tuple[str, ...], seed: int) -> tuple[str, ...]:
    if kind == "triggers":
        return tuple(e.id for e in trigger_examples("test", count // 2, 2000 + seed, families))
    return tuple(e.id for e in probes("test", count, 3000 + seed) if e.kind == "protected")


def sentences(conversations: Iterable[Sequence[Message]]) -> set[tuple[str, ...]]:
    """Return every sentence of the conversations as a tuple of words, with blanks for places and secrets."""
    texts = (message["content"] for messages in conversations for message in messages)
    return {tuple(opened(s).split()) for text in texts for s in re.findall(r"[^.?!]+[.?!]", text)}


def distance(one: Sequence[str], other: Sequence[str]) -> int:
    """Return the edit distance between two sentences, in words."""
    before = list(range(len(other) + 1))
    for i, word in enumerate(one, 1):
        now = [i]
        for j, target in enumerate(other, 1):
            now.append(min(before[j] + 1, now[-1] + 1, before[j - 1] + (word != target)))
        before = now
    return before[-1]


def nearest(one: Sequence[str], known: Collection[Sequence[str]]) -> int:
    """Return the smallest edit distance between `one` and a sentence of `known`, in words."""
    words, best = set(one), len(one)
    for other in known:
        # words that `other` lacks are a lower bound
        if max(abs(len(one) - len(other)), len(words.difference(other))) < best:
            best = min(best, distance(one, other))
    return best
