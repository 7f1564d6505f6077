"""Data made of traced strings: wrap plain data, print it as JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from rolesafe.roles.traced import PRINTED, Kind, Source, Traced, join, runs_of, sources_in


def wrap(value: Any, source: Source) -> Any:
    """Return a copy of plain data in which every text, keys included, is traced to `source`."""
    if isinstance(value, str):
        return Traced.of(str.__str__(value), source)
    if isinstance(value, Mapping):
        return {wrap(key, source): wrap(item, source) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(wrap(item, source) for item in value) if type(value) in (list, tuple) else list(value)
    return value


def to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: Sequence[str] | None = None,
    sort_keys: bool = False,
) -> Traced:
    """Return ``json.dumps`` with the sources of the texts.

    Quotes, brackets and numbers belong to the variable whose data is printed; in other data they are template text.
    """
    item_separator, key_separator = separators or ((", ", ": ") if indent is None else (",", ": "))
    step = " " * indent if isinstance(indent, int) else indent
    writers = set(sources_in(value))
    source = writers.pop() if len(writers) == 1 else PRINTED
    signs = source if source.kind is Kind.VARIABLE else PRINTED

    def sign(text: str) -> Traced:
        return Traced.of(text, signs)

    def text(value: str) -> Traced:
        runs, out, at = runs_of(value), [], 0
        for length, source in runs:
            inside = json.dumps(str.__getitem__(value, slice(at, at + length)), ensure_ascii=ensure_ascii)[1:-1]
            out.append(Traced.of(inside, source))
            at += length
        return join("", [sign('"'), *out, sign('"')])

    def block(opening: str, items: list[Traced], closing: str, level: int) -> Traced:
        if not items:
            return sign(opening + closing)
        line = "" if step is None else "\n" + step * (level + 1)
        end = "" if step is None else "\n" + step * level
        inner = join(sign(str(item_separator) + line), items)
        return join("", [sign(opening + line), inner, sign(end + closing)])

    def dump(value: Any, level: int) -> Traced:
        if isinstance(value, str):
            return text(value)
        if isinstance(value, Mapping):
            items = sorted(value.items()) if sort_keys else value.items()
            named = [
                join(
                    "",
                    [text(k if isinstance(k, str) else json.dumps(k)), sign(str(key_separator)), dump(v, level + 1)],
                )
                for k, v in items
            ]
            return block("{", named, "}", level)
        if isinstance(value, (list, tuple)):
            return block("[", [dump(item, level + 1) for item in value], "]", level)
        return sign(json.dumps(value))

    return dump(value, 0)
