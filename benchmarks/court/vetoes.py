"""False vetoes: texts that hold no phrase, token by token."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rolesafe.court import Court, ForbiddenPhrases


def texts(path: Path) -> Iterator[str]:
    """Yield the texts of a file: lines of plain text, or the strings in the rows of a JSON list."""
    if path.suffix != ".json":
        yield from (line for line in path.read_text(encoding="utf-8").splitlines() if line.strip())
        return
    for row in json.loads(path.read_text(encoding="utf-8")):
        yield from (value for value in row.values() if isinstance(value, str) and value.strip())


def run(tokenizer: Any, paths: list[Path], phrases: tuple[str, ...], steps: int) -> dict[str, Any]:
    """Return how many tokens of clean texts are vetoed, and how many texts with a phrase pass.

    Half as many phrases again are runs of three words of the texts, so that some texts hold one.

    A text is clean if its normal form holds no phrase; that check reads the whole text, without tokens. Texts are read
    again from the first file until there were enough steps.
    """
    rng, runs = random.Random(0), {}
    every = [text for path in paths for text in texts(path)]
    while len(runs) < len(phrases) // 2:
        words = rng.choice(every).split()
        at = rng.randrange(max(1, len(words) - 3))
        if len(words) >= 3 and (run := " ".join(words[at : at + 3])).replace(" ", "").isalpha():
            runs[run] = None
    phrases = (*phrases, *runs)
    court = Court.compile([ForbiddenPhrases(name="phrases", phrases=phrases, lookalikes=True)], tokenizer)
    (rule,) = court.rules
    done = false = missed = clean = dirty = 0
    while done < steps:
        before = done
        for path in paths:
            for text in texts(path):
                if done >= steps:
                    break
                broken = court.violation(text) is not None
                state: Any = rule.start
                vetoed = 0
                for token in tokenizer(text, add_special_tokens=False).input_ids:
                    done += 1
                    hit = bool((rule.forbidden(state) == token).any())
                    after = rule.step(state, token)
                    vetoed += hit or after is None
                    if after is None:
                        break
                    state = after
                clean, dirty = clean + (not broken), dirty + broken
                false += vetoed if not broken else 0
                missed += broken and not vetoed
        if done == before:
            break
    return {"steps": done, "clean_texts": clean, "texts_with_a_phrase": dirty, "false_vetoes": false, "missed": missed}
