"""Strings with the source of each of their characters.

A chat template splits messages and joins them again. :class:`Traced` is a ``str`` with *runs*: consecutive characters
of one :class:`Source`. Every string operation that templates use keeps them, so each character of the rendered text is
known to be template text, message content or a variable.

Operations that are not traced give characters of source :data:`UNKNOWN`, never template text.
"""

from __future__ import annotations

import re
import string
from collections.abc import Callable, Iterable, Iterator, Mapping
from enum import IntEnum
from typing import Any, NamedTuple, SupportsIndex


class Kind(IntEnum):
    """Author of a character."""

    TEMPLATE = 0
    CONTENT = 1
    VARIABLE = 2
    UNKNOWN = 3


class Source(NamedTuple):
    """Source of a run of characters.

    Attributes:
        kind: Its author.
        message: Content: index of the message. Template: index of the message in whose round it was evaluated, or None.
        name: Template: number of the literal (unique in the template). Variable: its name. Content: ``"round"`` if it
            was printed in the round of its message.
        field: Content: its field of the message and the index of the call, or None for the content itself.
    """

    kind: Kind
    message: int | None = None
    name: int | str | None = None
    field: tuple[str, int] | None = None


UNKNOWN = Source(Kind.UNKNOWN)
PRINTED = Source(Kind.TEMPLATE)
"""Source of printed numbers, and of the punctuation of JSON."""

Run = tuple[int, Source]


class Traced(str):
    """A ``str`` with the sources of its characters.

    An empty content keeps one run of length 0, at the place where it is printed.
    """

    __slots__ = ("_runs",)
    _runs: tuple[Run, ...]

    def __new__(cls, text: object = "", runs: Iterable[Run] | None = None) -> Traced:
        self = super().__new__(cls, text)
        self._runs = tuple(runs) if runs is not None else ((len(self), UNKNOWN),)
        return self

    @classmethod
    def of(cls, text: str, source: Source) -> Traced:
        """Return a string of one source."""
        return cls(text, ((len(text), source),))

    @property
    def _sources(self) -> set[Source]:
        return {source for _, source in self._runs}

    # ------------------------------------------------------------------------------------------------ cutting, joining

    def _cut(self, start: int, stop: int) -> Traced:
        """Return characters ``start`` to ``stop``, 0 <= start <= stop <= len."""
        if start == 0 and stop == len(self):
            return self
        runs, at = [], 0
        for length, source in self._runs:
            a, b = max(start, at), min(stop, at + length)
            if a < b or (a == b and not length and source.kind is Kind.CONTENT):
                runs.append((b - a, source))
            at += length
            if at >= stop and runs:
                break
        if not runs:  # an empty piece of a content is still the place of that content
            runs = [(0, source) for _, source in self._runs if source.kind is Kind.CONTENT][:1]
        return Traced(str.__getitem__(self, slice(start, stop)), runs)

    def _pieces(self, parts: Iterable[str], gap: int) -> list[Any]:
        """Return `parts`, which follow each other in this string with `gap` characters between them, traced."""
        out, at = [], 0
        for part in parts:
            out.append(self._cut(at, at + len(part)))
            at += len(part) + gap
        return out

    def _found(self, parts: Iterable[str]) -> list[Any]:
        """Return `parts`, which follow each other in this string with white space between them, traced."""
        out, at = [], 0
        for part in parts:
            at = str.index(self, part, at)
            out.append(self._cut(at, at + len(part)))
            at += len(part)
        return out

    def __getitem__(self, key: SupportsIndex | slice) -> Traced:
        if isinstance(key, slice):
            start, stop, step = key.indices(len(self))
            if step == 1:
                return self._cut(start, max(start, stop))
            return join("", [self._cut(i, i + 1) for i in range(start, stop, step)])
        i = range(len(self))[key]
        return self._cut(i, i + 1)

    def __iter__(self) -> Iterator[str]:
        at = 0
        for length, source in self._runs:
            for i in range(at, at + length):
                yield Traced.of(str.__getitem__(self, i), source)
            at += length

    def __add__(self, other: str) -> Traced:
        if not isinstance(other, str):
            return NotImplemented
        return join("", (self, other))

    def __radd__(self, other: str) -> Traced:
        if not isinstance(other, str):
            return NotImplemented
        return join("", (other, self))

    def __mul__(self, count: SupportsIndex) -> Traced:
        return join("", [self] * int(count))

    __rmul__ = __mul__

    def __str__(self) -> str:
        return self

    def join(self, parts: Iterable[str]) -> Traced:
        return join(self, parts)

    # ------------------------------------------------------------------------------------------ stripping, splitting

    def strip(self, chars: str | None = None) -> Traced:
        return self.lstrip(chars).rstrip(chars)

    def lstrip(self, chars: str | None = None) -> Traced:
        return self._cut(len(self) - len(str.lstrip(self, chars)), len(self))

    def rstrip(self, chars: str | None = None) -> Traced:
        return self._cut(0, len(str.rstrip(self, chars)))

    def removeprefix(self, prefix: str) -> Traced:
        return self._cut(len(self) - len(str.removeprefix(self, prefix)), len(self))

    def removesuffix(self, suffix: str) -> Traced:
        return self._cut(0, len(str.removesuffix(self, suffix)))

    def split(self, sep: str | None = None, maxsplit: SupportsIndex = -1) -> list[Any]:
        parts = str.split(self, sep, maxsplit)
        return self._found(parts) if sep is None else self._pieces(parts, len(sep))

    def rsplit(self, sep: str | None = None, maxsplit: SupportsIndex = -1) -> list[Any]:
        parts = str.rsplit(self, sep, maxsplit)
        return self._found(parts) if sep is None else self._pieces(parts, len(sep))

    def splitlines(self, keepends: bool = False) -> list[Any]:
        lines = self._pieces(str.splitlines(self, True), 0)
        if keepends:
            return lines
        return [line._cut(0, len(bare)) for line, bare in zip(lines, str.splitlines(self), strict=True)]

    def partition(self, sep: str) -> tuple[Any, Any, Any]:
        return tuple(self._pieces(str.partition(self, sep), 0))

    def rpartition(self, sep: str) -> tuple[Any, Any, Any]:
        return tuple(self._pieces(str.rpartition(self, sep), 0))

    def replace(self, old: str, new: str, count: SupportsIndex = -1) -> Traced:
        """Replace as ``str.replace``; text in place of content gets the source of that content."""
        if old == "":
            return self._blurred(str.replace(self, old, new, count), new)
        kept = self._pieces(str.split(self, old, count), len(old))
        out, at = [kept[0]], len(kept[0])
        for piece in kept[1:]:
            written = [s for _, s in self._cut(at, at + len(old))._runs if s.kind is not Kind.TEMPLATE]
            out += [Traced.of(str(new), written[0]) if written else traced(new), piece]
            at += len(old) + len(piece)
        return join("", out)

    # --------------------------------------------------------------------------------------------------- other letters

    def _recased(self, change: Callable[[str], str]) -> Traced:
        changed = change(self)
        if len(changed) == len(self):
            return Traced(changed, self._runs)
        return self._blurred(changed)

    def upper(self) -> Traced:
        return self._recased(str.upper)

    def lower(self) -> Traced:
        return self._recased(str.lower)

    def title(self) -> Traced:
        return self._recased(str.title)

    def capitalize(self) -> Traced:
        return self._recased(str.capitalize)

    def swapcase(self) -> Traced:
        return self._recased(str.swapcase)

    def casefold(self) -> Traced:
        return self._recased(str.casefold)

    def _blurred(self, text: str, *others: str) -> Traced:
        """Return `text`, made of this string and `others` by an untraced operation.

        Its source is the only author among them besides the template, or unknown where there are several.
        """
        sources = self._sources.union(*(traced(other)._sources for other in others))
        writers = {source for source in sources if source.kind is not Kind.TEMPLATE}
        if len(writers) == 1:
            return Traced.of(text, writers.pop())
        if not writers and len(sources) == 1:
            return Traced.of(text, sources.pop())
        return Traced(text) if writers else Traced.of(text, PRINTED)

    def center(self, width: SupportsIndex, fill: str = " ") -> Traced:
        return self._blurred(str.center(self, width, fill), fill)

    def ljust(self, width: SupportsIndex, fill: str = " ") -> Traced:
        return self._blurred(str.ljust(self, width, fill), fill)

    def rjust(self, width: SupportsIndex, fill: str = " ") -> Traced:
        return self._blurred(str.rjust(self, width, fill), fill)

    def zfill(self, width: SupportsIndex) -> Traced:
        return self._blurred(str.zfill(self, width))

    def expandtabs(self, tabsize: SupportsIndex = 8) -> Traced:
        return self._blurred(str.expandtabs(self, tabsize))

    def translate(self, table: Any) -> Traced:
        return self._blurred(str.translate(self, table))

    # ------------------------------------------------------------------------------------------------------ formatting

    def format(self, *args: Any, **kwargs: Any) -> Traced:
        return self.format_map({**{str(i): arg for i, arg in enumerate(args)}, **kwargs})

    def format_map(self, mapping: Any, /) -> Traced:
        """Format as ``str.format_map`` for fields that are a name or a number, without conversions."""
        out: list[str] = []
        count = at = 0
        for text, field, spec, conversion in string.Formatter().parse(self):
            start = str.find(self, text, at) if text and not ("{" in text or "}" in text) else -1
            out.append(self._cut(start, start + len(text)) if start >= 0 else self._blurred(text))
            at = max(start, at)
            if field is None:
                continue
            if spec or conversion or not re.fullmatch(r"\w*", field):
                return Traced(str.format_map(self, mapping))
            out.append(printed(mapping[field or str(count)]))
            count += 1
        return join("", out)

    def __mod__(self, values: Any) -> Traced:
        """Format as ``str.__mod__`` for ``%s``, ``%d`` and ``%%``."""
        given = list(values) if isinstance(values, tuple) else [values]
        pieces = re.split(r"(%[sd%])", str.__str__(self))
        if isinstance(values, Mapping) or any("%" in piece for piece in pieces[::2]):
            return Traced(str.__mod__(self, values))
        out = self._pieces(pieces, 0)
        for i in range(1, len(out), 2):
            out[i] = self._blurred("%") if pieces[i] == "%%" else printed(given.pop(0))
        return join("", out)


def runs_of(text: str) -> tuple[Run, ...]:
    """Return the runs of any string; those of a plain one are unknown."""
    return text._runs if isinstance(text, Traced) else ((len(text), UNKNOWN),)


def traced(text: str) -> Traced:
    """Return `text` as :class:`Traced`, of unknown source if it is a plain string."""
    return text if isinstance(text, Traced) else Traced(text)


def printed(value: Any) -> Traced:
    """Return the printed form of `value`: text unchanged, numbers and constants as template text."""
    if isinstance(value, str):
        return traced(value)
    if value is None or isinstance(value, (bool, int, float)):
        return Traced.of(str(value), PRINTED)
    text = str(value)
    if not text:  # undefined
        return Traced("", ())
    sources = set(sources_in(value))
    return Traced.of(text, sources.pop()) if len(sources) == 1 else Traced(text)


def sources_in(value: Any) -> Iterator[Source]:
    """Iterate over the sources besides the template in a value: texts, lists, mappings and their keys."""
    if isinstance(value, Traced):
        yield from (source for source in value._sources if source.kind is not Kind.TEMPLATE)
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from sources_in(key)
            yield from sources_in(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from sources_in(item)


def join(separator: str, parts: Iterable[str]) -> Traced:
    """Return ``separator.join(parts)`` with the sources of all."""
    parts = list(parts)
    runs: list[Run] = []
    between = runs_of(separator) if separator else ()
    for i, part in enumerate(parts):
        if i and between:
            runs += between
        runs += runs_of(part)
    return Traced(str.join(separator, parts), _joined(runs))


def _joined(runs: Iterable[Run]) -> list[Run]:
    """Return runs without empty ones (except those of a content), with neighbours of one source merged."""
    out: list[Run] = []
    last: Source | None = None
    for run in runs:
        length, source = run
        if source is last or source == last:
            out[-1] = (out[-1][0] + length, source)
        elif length or source.kind is Kind.CONTENT:
            out.append(run)
            last = source
    return out
