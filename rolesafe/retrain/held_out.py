"""Rows of training data that occur in test sets, which a retraining leaves out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

from rolesafe.retrain.phrasing import normalised
from rolesafe.retrain.sources import Source, Sources
from rolesafe.tasks.sets.read import read

LEAST_WORDS: Final = 3
"""Number of words from which equal texts count: shorter ones ("Yes", a name) are equal by chance."""


def leave_out(sources: Sources, held_out: Sequence[str]) -> Sources:
    """Return `sources` without the rows whose text occurs in a test set.

    A row is left out where its instruction, its input, both together, or a message before the reply equals a text of a
    test row: any field of it, or its instruction and input together. Texts are compared by their words, without case
    and punctuation, from :data:`LEAST_WORDS` words on.

    Args:
        sources: Training data.
        held_out: Files, directories or hub ids of test sets.

    Raises:
        ValueError: A test set cannot be read, or no row of training data is left.
        ImportError: A test set is on the hub and `datasets` is not installed.
    """
    known = held_out_texts(held_out)
    kept: list[Source] = []
    dropped = list(sources.dropped)
    for source in sources.rows:
        shared = next((text for text in _texts(source) if normalised(text) in known), None)
        if shared is None:
            kept.append(source)
        else:
            dropped.append(f"{source.where}: its text {shared!r:.80} occurs in a test set")
    if not kept:
        raise ValueError(
            f"`held_out`: expected training rows that occur in no test set, got none of {len(sources.rows)}: "
            f"{dropped[-1]}. Give other data, or leave out the test set that contains them."
        )
    return replace(sources, rows=tuple(kept), dropped=tuple(dropped))


def held_out_texts(held_out: Sequence[str]) -> set[str]:
    """Return the normalised texts of all fields of test sets, from :data:`LEAST_WORDS` words on."""
    found: set[str] = set()
    for path in held_out:
        try:
            rows = read(path)
        except (OSError, ValueError) as error:
            raise ValueError(str(error).replace("`path_or_hub`", "`held_out`")) from error
        for row in rows:
            found.update(map(normalised, _leaves(row.fields)))
            if isinstance(row.fields, Mapping):
                found.add(normalised(_both(row.fields.get("instruction"), row.fields.get("input"))))
    return {text for text in found if len(text.split()) >= LEAST_WORDS}


def _texts(source: Source) -> Iterator[str]:
    yield from (source.instruction, source.data, _both(source.instruction, source.data))
    yield from (message["content"] for message in source.messages)


def _both(instruction: Any, data: Any) -> str:
    return " ".join(text for text in (instruction, data) if isinstance(text, str))


def _leaves(value: Any) -> Iterator[str]:
    """Yield all texts in a JSON value."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for inner in value.values():
            yield from _leaves(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _leaves(inner)
