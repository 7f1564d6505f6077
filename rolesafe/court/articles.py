"""Articles of the court: rules about a reply that a program can decide, as frozen data."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Self

from rolesafe.court.normalise import Normalisation, Spaces
from rolesafe.typed_json import from_values

if TYPE_CHECKING:
    from rolesafe.court.rules import Rule
    from rolesafe.court.vocabulary import Vocabulary
    from rolesafe.roles.messages import Message

_KINDS: dict[str, type[Article]] = {}
"""Classes by kind, filled as their modules are imported; the package imports all."""


@dataclass(frozen=True)
class PhraseSet:
    """Phrases that one article forbids.

    Attributes:
        article: Name of the article.
        normalisation: Normal form of text and phrases.
        phrases: Normalised phrases, none of them empty.
        within: Markers around the text that counts, such as ``("<tool_call>", "</tool_call>")``; None: the whole reply.
    """

    article: str
    normalisation: Normalisation
    phrases: tuple[str, ...]
    within: tuple[str, str] | None = None


@dataclass(frozen=True)
class Context:
    """Circumstances of a compilation.

    Attributes:
        vocabulary: Bytes of the tokenizer's tokens.
        encode: Function from a text to token ids, without special tokens.
        messages: Messages of the conversation, for articles about their texts.
        roles: Declared roles, most privileged first.
        max_tokens: Smallest limit of the length articles, or None.
        end_ids: Ids that end a reply.
    """

    vocabulary: Vocabulary
    encode: Any
    messages: tuple[Message, ...] = ()
    roles: tuple[str, ...] = ()
    max_tokens: int | None = None
    end_ids: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Article(ABC):
    """Base class of all articles. :data:`rolesafe.court.ARTICLES` maps the kind of each to its class.

    Args:
        name: Name in records; unique in a court.
        issued_by: Role that issues the article; must be privileged.

    Raises:
        ValueError: A field has a value of the wrong type or out of range.

    >>> from rolesafe.court import ForbiddenPhrases
    >>> article = ForbiddenPhrases(name="no-codename", phrases=("Blue Heron",), lookalikes=True)
    >>> Article.from_dict(article.to_dict()) == article
    True
    """

    kind: ClassVar[str] = ""
    about: ClassVar[str] = ""

    name: str
    issued_by: str = "system"

    def __init_subclass__(cls, **values: Any) -> None:
        super().__init_subclass__(**values)
        if cls.kind:
            _KINDS[cls.kind] = cls

    def __post_init__(self) -> None:
        for key in ("name", "issued_by"):
            value = getattr(self, key)
            expect(isinstance(value, str) and bool(value.strip()), key, "a text", value)

    @abstractmethod
    def compile(self, context: Context) -> Iterator[PhraseSet | Rule]:
        """Yield the phrases and rules of the article for one tokenizer and conversation.

        Raises:
            ValueError: The article cannot be kept or cannot be broken with this tokenizer.
        """

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values with the article's kind, which :meth:`from_dict` reads back."""
        values = {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}
        return {"kind": self.kind, **values}

    @staticmethod
    def from_dict(values: Mapping[str, Any], where: str = "article") -> Article:
        """Return the article in JSON values.

        Args:
            values: Fields of the article and its ``"kind"``.
            where: Name of `values` in errors.

        Raises:
            ValueError: The kind is unknown, or a field does not fit; the message names it.
        """
        if not isinstance(values, Mapping):
            raise ValueError(f"`{where}`: expected an object with a 'kind', got {type(values).__name__}.")
        given = dict(values)
        kind = given.pop("kind", None)
        if not isinstance(kind, str) or kind not in _KINDS:
            raise ValueError(f"`{where}.kind`: expected one of {sorted(_KINDS)}, got {kind!r:.80}. Choose one.")
        return from_values(_KINDS[kind], given, where)


@dataclass(frozen=True, kw_only=True)
class SpelledArticle(Article):
    """Base class of articles about texts, with the differences of spelling that do not count.

    Args:
        case, spaces, zero_width, lookalikes, confusables, ignored: See :class:`rolesafe.court.Normalisation`.
    """

    case: bool = True
    spaces: Spaces = "collapse"
    zero_width: bool = True
    lookalikes: bool = False
    confusables: bool = False
    ignored: str = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        for key in ("case", "zero_width", "lookalikes", "confusables"):
            expect(isinstance(getattr(self, key), bool), key, "True or False", getattr(self, key))
        expect(isinstance(self.ignored, str), "ignored", "a text of characters to ignore", self.ignored)
        self.normalisation()

    def normalisation(self) -> Normalisation:
        """Return the normal form of texts under the article's options."""
        return Normalisation(
            case=self.case,
            spaces=self.spaces,
            zero_width=self.zero_width,
            lookalikes=self.lookalikes,
            confusables=self.confusables,
            ignored=self.ignored,
        )


@dataclass(frozen=True)
class Articles:
    """Articles of a court, as they are stored in a file.

    Args:
        articles: The articles; names are unique.
        refusal: Text that ends a reply where nothing else is allowed.
        tokenizer: Digest of the vocabulary the articles are for (:attr:`Vocabulary.digest`); None: any.
    """

    articles: tuple[Article, ...] = ()
    refusal: str = "I can't say that."
    tokenizer: str | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        expect(isinstance(self.refusal, str), "refusal", "a text", self.refusal)
        names: set[str] = set()
        for one in self.articles:
            if not isinstance(one, Article):
                raise ValueError(f"`articles`: expected articles, got {type(one).__name__}. Use the classes.")
            if one.name in names:
                raise ValueError(f"`articles`: expected unique names, got {one.name!r} twice. Rename one.")
            names.add(one.name)

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values, which :meth:`from_dict` reads back."""
        out: dict[str, Any] = {"refusal": self.refusal, "articles": [one.to_dict() for one in self.articles]}
        return out if self.tokenizer is None else {**out, "tokenizer": self.tokenizer}

    @classmethod
    def from_dict(cls, values: Any, where: str = "court", issued_by: str | None = None) -> Self:
        """Return the articles in JSON values.

        Args:
            values: ``{"articles": [...]}``, with ``"refusal"`` and ``"tokenizer"`` where they differ from the default.
            where: Name of `values` in errors.
            issued_by: Role of the articles that name none.

        Raises:
            ValueError: A field does not fit; the message has the path to it.
        """
        if not isinstance(values, Mapping):
            raise ValueError(f"`{where}`: expected an object with 'articles', got {type(values).__name__}.")
        unknown = sorted(map(str, set(values) - {"articles", "refusal", "tokenizer"}))
        if unknown:
            raise ValueError(f"`{where}`: unknown fields {unknown}. Expected 'articles', 'refusal' and 'tokenizer'.")
        rows = values.get("articles")
        if not isinstance(rows, Sequence) or isinstance(rows, str):
            raise ValueError(f"`{where}.articles`: expected a list of articles, got {rows!r:.80}.")
        default = {} if issued_by is None else {"issued_by": issued_by}
        found = tuple(
            Article.from_dict({**default, **row} if isinstance(row, Mapping) else row, f"{where}.articles[{i}]")
            for i, row in enumerate(rows)
        )
        given = {key: values[key] for key in ("refusal", "tokenizer") if key in values}
        for key, value in given.items():
            if not isinstance(value, str):
                raise ValueError(f"`{where}.{key}`: expected a text, got {value!r:.80}.")
        return cls(found, **given)


def expect(holds: bool, argument: str, what: str, value: Any) -> None:
    """Raise a ValueError that names `argument` unless `holds`."""
    if not holds:
        raise ValueError(f"`{argument}`: expected {what}, got {value!r:.80}.")


def expect_texts(values: Any, argument: str, hidden: bool = False) -> None:
    """Raise a ValueError unless `values` is a tuple of at least one text; `hidden` keeps texts out of the message."""
    if not isinstance(values, tuple) or not values:
        shown = type(values).__name__ if hidden else f"{values!r:.80}"
        raise ValueError(f"`{argument}`: expected a tuple of at least one text, got {shown}.")
    for i, value in enumerate(values):
        if not isinstance(value, str) or not value:
            shown = type(value).__name__ if hidden else f"{value!r:.80}"
            raise ValueError(f"`{argument}[{i}]`: expected a text of at least one character, got {shown}.")


def writable(texts: Iterable[str], vocabulary: Vocabulary, normalisation: Normalisation) -> list[str | None]:
    """Return, for each normalised text, a character that no token of the vocabulary gives; None where all are given."""
    known: set[str] = set()
    single: set[int] = set()
    for piece in vocabulary.pieces:
        if piece is None:
            continue
        if len(piece) == 1:
            single.add(piece[0])
        text = piece.decode("utf-8", "replace")
        known.update(text)
    normal = {x for c in known for x in normalisation.character(c)}
    if single >= set(range(0x80, 0xC0)):  # bytes spell every character
        return [None for _ in texts]
    return [
        next((c for c in text if c not in normal and not set(c.encode("utf-8", "replace")) <= single), None)
        for text in texts
    ]
