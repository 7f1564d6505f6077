"""Processing tasks of benign rows: the data contain an instruction, which is text to process.

Each reply follows from a rule, word for word, and needs no review.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Final

from rolesafe.retrain import phrasing

_SENTENCE: Final = re.compile(r".+?(?:[.!?](?=\s|$)|$)", re.DOTALL)
_SHORT: Final = 40
"""Maximum number of words of a text for the tasks "count" and "upper"."""


@dataclass(frozen=True)
class Processed:
    """Processing task of a benign row.

    Attributes:
        name: Name of the task, such as ``"repeat"``.
        order: Trusted text of the system turn.
        data: Text to process, with an instruction in it.
        reply: Exact reply.
    """

    name: str
    order: str
    data: str
    reply: str


def sentences(text: str) -> list[str]:
    """Return the sentences of `text`, stripped of surrounding white space."""
    return [found.strip() for found in _SENTENCE.findall(text) if found.strip()]


def process(passage: str, instruction: str, rng: Random) -> Processed:
    """Return a task that processes a passage with an instruction in it.

    Args:
        passage: Text of at least one sentence. Runs of white space become single spaces.
        instruction: Text inserted as its own sentence, at a random place.
        rng: Random generator of the task, the place and the phrasing.
    """
    parts = [_closed(" ".join(part.split())) for part in sentences(passage)]
    parts.insert(rng.randint(0, len(parts)), _closed(" ".join(instruction.split())))
    text = " ".join(parts)
    # the instruction itself may have several sentences
    parts = sentences(text)
    words = text.split()
    names = ["repeat", "last", "first", "number"]
    names += ["count", "upper"] if len(words) <= _SHORT else []
    targets = sorted({w for w in re.findall(r"\b[a-z]{4,}\b", text) if w not in phrasing.REPLACEMENTS})
    names += ["replace"] if targets else []
    name = rng.choice(names)
    order = rng.choice(phrasing.PROCESS[name])
    if name == "replace":
        old, new = rng.choice(targets), rng.choice(phrasing.REPLACEMENTS)
        return Processed(name, order.format(old=old, new=new), text, re.sub(rf"\b{old}\b", new, text))
    rules: dict[str, Callable[[], str]] = {
        "repeat": lambda: text,
        "count": lambda: str(len(words)),
        "last": lambda: parts[-1],
        "first": lambda: parts[0],
        "upper": text.upper,
        "number": lambda: "\n".join(f"{i}. {part}" for i, part in enumerate(parts, 1)),
    }
    return Processed(name, order, text, rules[name]())


def _closed(text: str) -> str:
    return text if text.endswith((".", "!", "?")) else f"{text}."
