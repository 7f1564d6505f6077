"""Articles on forbidden texts: phrases, and secrets in several forms."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from rolesafe.arguments import is_integer
from rolesafe.court.articles import Context, PhraseSet, SpelledArticle, expect, expect_texts, writable
from rolesafe.court.normalise import INVALID, Normalisation, Spaces

_REFUSED = ("\0", INVALID, "\U0010fffe", "\U0010ffff")


@dataclass(frozen=True, kw_only=True)
class ForbiddenPhrases(SpelledArticle):
    """Forbid texts, however they are split into tokens.

    Args:
        phrases: The texts. White space around them does not count with ``spaces="collapse"``.

    >>> ForbiddenPhrases(name="names", phrases=("Ada  Lovelace",)).normalisation().phrase("Ada  Lovelace")
    'ada lovelace'
    """

    kind: ClassVar[str] = "forbidden_phrases"
    about: ClassVar[str] = "texts that a reply never holds"

    phrases: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        expect_texts(self.phrases, "phrases")

    def compile(self, context: Context) -> Iterator[PhraseSet]:
        """Yield the phrases in normal form.

        Raises:
            ValueError: A phrase is empty in normal form, or no token of the tokenizer gives one of its characters.
        """
        yield spelled(self.name, "phrases", self.phrases, self.normalisation(), context)


@dataclass(frozen=True, kw_only=True)
class Secrets(SpelledArticle):
    """Forbid secrets given by value, and parts of them.

    Args:
        values: The secrets. Errors and records name them by index.
        part: Number of consecutive characters of a secret that are forbidden too; None: the whole secret only.
        reversed: Forbid the same texts read from the end.
        base64: Forbid their Base64 form, standard and URL-safe, wherever it begins in a longer encoded text. Case and
            look-alikes count there, white space does not. Of a part of n characters about 4n/3 - 3 Base64 characters
            are left to match.
        spaces: As in :class:`SpelledArticle`; here white space is ignored by default. With ``"collapse"`` a part
            counts without a space at its ends.
    """

    kind: ClassVar[str] = "secrets"
    about: ClassVar[str] = "values that a reply never holds, in parts, reversed or in Base64"

    spaces: Spaces = "ignore"
    values: tuple[str, ...] = ()
    part: int | None = None
    reversed: bool = False
    base64: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        expect_texts(self.values, "values", hidden=True)
        expect(self.part is None or is_integer(self.part, 2), "part", "a number of characters >= 2 or None", self.part)
        for key in ("reversed", "base64"):
            expect(isinstance(getattr(self, key), bool), key, "True or False", getattr(self, key))
        for i, value in enumerate(self.values):
            length = len(self.normalisation().phrase(value))
            if self.part is not None and length < self.part:
                raise ValueError(
                    f"`values[{i}]`: expected at least `part` = {self.part} characters in normal form, got {length}. "
                    "Lower `part`, or pass the secret in an article without it."
                )

    def compile(self, context: Context) -> Iterator[PhraseSet]:
        """Yield the secrets and their parts in normal form, and in Base64.

        Raises:
            ValueError: A secret is empty in normal form, cannot be written, or is too short for Base64.
        """
        normal = self.normalisation()
        texts = [normal.phrase(value) for value in self.values]
        parts = [piece for text in texts for piece in self._parts(text)]
        if self.reversed:
            parts += [piece[::-1] for piece in parts]
        spelled(self.name, "values", self.values, normal, context, hidden=True)
        found = dict.fromkeys(normal.phrase(piece) for piece in parts)
        yield PhraseSet(self.name, normal, tuple(piece for piece in found if piece))
        if self.base64:
            exact = Normalisation(
                case=False, spaces="ignore", zero_width=self.zero_width, ignored=self.ignored
            )  # encoders break lines
            raw = [piece for value in self.values for piece in self._parts(value)]
            raw += [piece[::-1] for piece in raw] if self.reversed else []
            encoded = dict.fromkeys(code for piece in raw for code in base64_forms(piece, "values"))
            yield spelled(self.name, "values", tuple(encoded), exact, context, hidden=True)

    def _parts(self, text: str) -> list[str]:
        if self.part is None:
            return [text]
        return [text[k : k + self.part] for k in range(len(text) - self.part + 1)]


def base64_forms(text: str, argument: str) -> list[str]:
    """Return the Base64 characters that depend on `text` alone, for each of its three alignments and both alphabets.

    Raises:
        ValueError: Fewer than three characters depend on it alone.
    """
    data = text.encode("utf-8", "replace")
    out: list[str] = []
    for shift in range(3):
        code = base64.b64encode(b"\0" * shift + data).decode("ascii").rstrip("=")
        first = -(-8 * shift // 6)  # characters that hold bits in front of the text
        last = 8 * (shift + len(data)) // 6
        piece = code[first:last]
        if len(piece) < 3:
            raise ValueError(
                f"`{argument}`: expected secrets and parts of at least 3 bytes with base64=True, got {len(data)}. "
                "Raise `part`, or set base64=False."
            )
        out += [piece, piece.replace("+", "-").replace("/", "_")]
    return list(dict.fromkeys(out))


def spelled(
    article: str,
    argument: str,
    texts: tuple[str, ...],
    normalisation: Normalisation,
    context: Context,
    *,
    hidden: bool = False,
    within: tuple[str, str] | None = None,
) -> PhraseSet:
    """Return the normal forms of phrases.

    Raises:
        ValueError: One is empty in normal form, holds a character that no text has, or cannot be written.
    """
    forms = [normalisation.phrase(text) for text in texts]
    missing = writable(forms, context.vocabulary, normalisation)
    for i, (text, form, c) in enumerate(zip(texts, forms, missing, strict=True)):
        shown = f"{argument}[{i}]", "one" if hidden else f"{text!r:.80}"
        if not form:
            raise ValueError(
                f"`{shown[0]}`: expected a text with a character that counts under the article's options, got "
                f"{shown[1]}, which is empty in normal form. Change the options, or remove it."
            )
        if any(x in form for x in _REFUSED):
            raise ValueError(
                f"`{shown[0]}`: expected characters of text, got {shown[1]} with U+0000, U+FFFD or a noncharacter. "
                "Remove it."
            )
        if c is not None:
            raise ValueError(
                f"`{shown[0]}`: expected a text that the tokenizer can write, got {shown[1]}: no token gives "
                f"{'one of its characters' if hidden else repr(c)}. Remove it, or use the tokenizer of the model."
            )
    return PhraseSet(article, normalisation, tuple(dict.fromkeys(forms)), within)
