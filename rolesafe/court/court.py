"""Court: articles compiled for a tokenizer and a conversation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rolesafe.config import RoleConfig
from rolesafe.court.articles import Article, Articles, Context, PhraseSet
from rolesafe.court.automaton import LARGEST
from rolesafe.court.normalise import Normalisation
from rolesafe.court.rules import PhraseRule, RegionRule, Rule
from rolesafe.court.shape import Length, Opening
from rolesafe.court.tree import Tree
from rolesafe.court.vocabulary import Vocabulary
from rolesafe.roles.messages import read_conversation

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Court(Tree):
    """Articles compiled for one tokenizer. Make it with :meth:`compile`.

    Attributes:
        articles: The articles.
        vocabulary: Bytes of the tokenizer's tokens.
        end_ids: Ids that end a reply.
        refusal_ids: Tokens of the text that ends a reply where nothing else is allowed.
    """

    def __init__(self, articles: Articles, rules: Sequence[Rule], context: Context, refusal_ids: Sequence[int]) -> None:
        super().__init__(rules, context.vocabulary, context.end_ids, refusal_ids)
        self.articles, self.context = articles, context

    @classmethod
    def compile(
        cls,
        articles: Articles | Sequence[Article],
        tokenizer: PreTrainedTokenizerBase,
        *,
        messages: Sequence[Mapping[str, Any]] = (),
        config: RoleConfig | None = None,
        end_ids: Sequence[int] | None = None,
    ) -> Court:
        """Compile articles for a tokenizer, and for a conversation where they are about its messages.

        >>> from rolesafe.court import Court, ForbiddenPhrases
        >>> from rolesafe.training.tiny import text_tokenizer
        >>> tokenizer = text_tokenizer(["the key is under the mat"], 300)
        >>> court = Court.compile([ForbiddenPhrases(name="key", phrases=("under the mat",))], tokenizer)
        >>> court.violation("It is UNDER  the mat.")
        'key'

        Args:
            articles: The articles.
            tokenizer: Tokenizer of the model.
            messages: The conversation; only articles on provenance read it.
            config: Role configuration, for the declared and the privileged roles; default: ``RoleConfig()``.
            end_ids: Ids that end a reply; default: the tokenizer's end-of-sequence token and the token with which the
                chat template closes an answer.

        Raises:
            ValueError: An article cannot be compiled; the message names it and the field. Articles contradict each
                other, belong to another tokenizer, or are issued by a role without privilege.
        """
        config = RoleConfig() if config is None else config
        given = articles if isinstance(articles, Articles) else Articles(tuple(articles))
        vocabulary = Vocabulary.of(tokenizer)
        if given.tokenizer is not None and given.tokenizer != vocabulary.digest:
            raise ValueError(
                f"`tokenizer`: expected the tokenizer of the articles, digest {given.tokenizer[:12]}, got one "
                f"with digest {vocabulary.digest[:12]}. Load that tokenizer, or remove `tokenizer` from the articles."
            )
        for article in given.articles:
            if article.issued_by.lower() not in config.privileged:
                raise ValueError(
                    f"`{article.name}.issued_by`: expected a privileged role, one of {config.privileged}, got "
                    f"{article.issued_by!r}. Only privileged roles issue articles."
                )
        limits = [a.max_tokens for a in given.articles if isinstance(a, Length) and a.max_tokens is not None]
        context = Context(
            vocabulary,
            lambda text: tokenizer(text, add_special_tokens=False, split_special_tokens=True).input_ids,
            tuple(read_conversation(messages, config.roles, "messages", config.generated)) if messages else (),
            tuple(config.roles),
            min(limits, default=None),
            _end_ids(tokenizer, config, end_ids),
        )
        rules = _compile(given.articles, context)
        court = cls(given, rules, context, context.encode(given.refusal) if given.refusal else ())
        court._check()
        return court

    # ----------------------------------------------------------------------------------------------------------- checks

    def violation(self, text: str) -> str | None:
        """Return the article on forbidden texts that a whole text breaks, or None. It reads characters, not tokens."""
        for rule in self.rules:
            if isinstance(rule, PhraseRule) and (found := rule.broken_by(text)) is not None:
                return found
        return None

    def check(self, ids: Sequence[int]) -> str | None:
        """Return the article that the tokens of a whole reply break, or None.

        The reply is read token by token, then its text as a whole.
        """
        reply = self.read(ids)
        text = self.vocabulary.text([i for i in ids if not self._is_hidden(i)])
        return reply.broken or self.violation(text)

    def _check(self) -> None:
        """Raise a ValueError where articles contradict each other or leave nothing to say."""
        found = self.violation(self.articles.refusal)
        if found is not None:
            raise ValueError(
                f"`refusal`: expected a text that keeps all articles, got one that breaks {found!r}. Change it."
            )
        for article in self.articles.articles:
            texts = getattr(article, "texts", ())
            for i, text in enumerate(texts):
                if (found := self.violation(text)) is not None:
                    raise ValueError(
                        f"`{article.name}.texts[{i}]`: expected a text that no article forbids, got one that "
                        f"{found!r} forbids. Change one of the two."
                    )
        openings = [a for a in self.articles.articles if isinstance(a, Opening)]
        for one in openings[1:]:
            pairs = ((a, b) for a in openings[0].texts for b in one.texts)
            if not any(a.startswith(b) or b.startswith(a) for a, b in pairs):
                raise ValueError(
                    f"`{one.name}.texts`: expected an opening that {openings[0].name!r} allows too, got none. The two "
                    "articles contradict each other: remove one."
                )
        lengths = [a for a in self.articles.articles if isinstance(a, Length)]
        least = max(lengths, key=lambda a: a.min_tokens, default=None)
        if least is not None and self.context.max_tokens is not None and least.min_tokens > self.context.max_tokens:
            raise ValueError(
                f"`{least.name}.min_tokens`: expected at most {self.context.max_tokens}, the smallest limit of the "
                f"length articles, got {least.min_tokens}. The articles contradict each other: change one."
            )
        start = self.start()
        self.mask(start)
        if start.tail is not None:
            culprit = start.veto.article if start.veto else "?"
            raise ValueError(
                f"`articles`: expected articles that allow some reply, got none: {culprit!r} leaves no first token. "
                "The articles contradict each other: remove one."
            )


def _compile(articles: Sequence[Article], context: Context) -> list[Rule]:
    """Return the rules of articles: those on phrases first, one for all phrases with the same options."""
    sets: dict[tuple[Normalisation, tuple[str, str] | None], dict[str, str]] = {}
    rules: list[Rule] = []
    for article in articles:
        try:
            for found in article.compile(context):
                if isinstance(found, PhraseSet):
                    group = sets.setdefault((found.normalisation, found.within), {})
                    for phrase in found.phrases:
                        group.setdefault(phrase, found.article)
                else:
                    rules.append(found)
        except ValueError as error:  # noqa: PERF203
            raise ValueError(f"article {article.name!r}: {error}") from error
    phrases: list[Rule] = []
    for (normalisation, within), group in sets.items():
        size = sum(map(len, group))
        if size > LARGEST:
            raise ValueError(
                f"`articles`: expected at most LARGEST = {LARGEST} characters of phrases with the same options, got "
                f"{size}. Shorten them, or raise `longest` of the articles on copying."
            )
        if not group:
            continue
        if within is None:
            phrases.append(PhraseRule(context.vocabulary, group, normalisation))
        else:
            phrases.append(RegionRule(context.vocabulary, group, normalisation, within))
    return phrases + rules


def _end_ids(tokenizer: Any, config: RoleConfig, given: Sequence[int] | None) -> tuple[int, ...]:
    if given is None:
        from rolesafe.attacks.delimiters import closing_token

        found = [tokenizer.eos_token_id]
        if tokenizer.chat_template is not None:
            found.append(closing_token(tokenizer, config))
        given = [int(i) for i in found if i is not None]
    if not given:
        raise ValueError("`end_ids`: expected the id of at least one end token, got none. Pass it.")
    return tuple(dict.fromkeys(int(i) for i in given))
