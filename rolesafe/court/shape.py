"""Articles on the form of a reply: opening, closing, length, repetition."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from rolesafe.arguments import is_integer
from rolesafe.court.articles import Article, Context, expect, expect_texts, writable
from rolesafe.court.normalise import Normalisation
from rolesafe.court.rules import ClosingRule, LengthRule, OpeningRule, RepetitionRule, Rule


@dataclass(frozen=True, kw_only=True)
class _Border(Article):
    """Base class of articles about the texts at one end of a reply."""

    texts: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        expect_texts(self.texts, "texts")


@dataclass(frozen=True, kw_only=True)
class Opening(_Border):
    """Require that a reply begins with one of several texts, byte for byte.

    Args:
        texts: The texts.
    """

    kind: ClassVar[str] = "opening"
    about: ClassVar[str] = "texts, one of which begins a reply"

    def compile(self, context: Context) -> Iterator[Rule]:
        """Yield the rule.

        Raises:
            ValueError: The tokenizer cannot write a text.
        """
        check_writable(self.texts, context)
        yield OpeningRule(self.name, context.vocabulary, self.texts)


@dataclass(frozen=True, kw_only=True)
class Closing(_Border):
    """Require that a reply ends with one of several texts, byte for byte.

    The end token is vetoed until then. Where a :class:`Length` article limits the tokens, the first text is written in
    time. Without one, ``max_new_tokens`` may cut the reply first.

    Args:
        texts: The texts.
    """

    kind: ClassVar[str] = "closing"
    about: ClassVar[str] = "texts, one of which ends a reply"

    def compile(self, context: Context) -> Iterator[Rule]:
        """Yield the rule.

        Raises:
            ValueError: The tokenizer cannot write a text, or the length article leaves no room for it.
        """
        check_writable(self.texts, context)
        tail = list(context.encode(self.texts[0]))
        if context.max_tokens is not None and context.max_tokens < len(tail):
            raise ValueError(
                f"`texts[0]`: expected a closing of at most `max_tokens` = {context.max_tokens} tokens, the smallest "
                f"limit of the length articles, got {len(tail)}. Raise the limit."
            )
        yield ClosingRule(self.name, context.vocabulary, self.texts, tail, context.max_tokens)


@dataclass(frozen=True, kw_only=True)
class Length(Article):
    """Limit the length of a reply.

    Args:
        min_tokens: The end token is vetoed before.
        max_tokens: Only the end token is allowed after.
        max_bytes: Largest number of UTF-8 bytes, which bounds the characters.
    """

    kind: ClassVar[str] = "length"
    about: ClassVar[str] = "limits of tokens and bytes"

    min_tokens: int = 0
    max_tokens: int | None = None
    max_bytes: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        expect(is_integer(self.min_tokens, 0), "min_tokens", "a number >= 0", self.min_tokens)
        for key in ("max_tokens", "max_bytes"):
            value = getattr(self, key)
            expect(value is None or is_integer(value, 1), key, "a number >= 1 or None", value)
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise ValueError(
                f"`min_tokens`: expected at most `max_tokens` = {self.max_tokens}, got {self.min_tokens}. Lower it."
            )

    def compile(self, context: Context) -> Iterator[Rule]:
        """Yield the rule."""
        yield LengthRule(self.name, context.vocabulary, self.min_tokens, self.max_tokens, self.max_bytes)


@dataclass(frozen=True, kw_only=True)
class Repetition(Article):
    """Limit how often a run of tokens may occur in a reply.

    Args:
        run: Number of tokens of a run.
        times: Largest number of occurrences.
    """

    kind: ClassVar[str] = "repetition"
    about: ClassVar[str] = "limit of the occurrences of a run of tokens"

    run: int = 8
    times: int = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        expect(is_integer(self.run, 1), "run", "a number of tokens >= 1", self.run)
        expect(is_integer(self.times, 1), "times", "a number >= 1", self.times)

    def compile(self, context: Context) -> Iterator[Rule]:
        """Yield the rule."""
        yield RepetitionRule(self.name, self.run, self.times)


def check_writable(texts: tuple[str, ...], context: Context) -> None:
    """Raise a ValueError if no token of the tokenizer gives a character of a text."""
    exact = Normalisation(case=False, spaces="exact", zero_width=False)
    for i, c in enumerate(writable(texts, context.vocabulary, exact)):
        if c is not None:
            raise ValueError(
                f"`texts[{i}]`: expected a text that the tokenizer can write, got {texts[i]!r:.80}: no token gives "
                f"{c!r}. Change it, or use the tokenizer of the model."
            )
