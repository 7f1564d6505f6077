"""Court: articles compiled for a tokenizer and a conversation, and the tree of replies that it has read.

A node of the tree is a reply so far. Nodes are found by token ids, so a beam that was reordered, a candidate that was
rejected and a reply that is read again share their states, and none of them can carry a wrong one.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from rolesafe.config import RoleConfig
from rolesafe.court.articles import Article, Articles, Context, PhraseSet
from rolesafe.court.automaton import LARGEST, Ids
from rolesafe.court.language import EngineError
from rolesafe.court.normalise import Normalisation
from rolesafe.court.rules import Flags, PhraseRule, RegionRule, Rule
from rolesafe.court.shape import Length, Opening
from rolesafe.court.vocabulary import Vocabulary
from rolesafe.roles.messages import read_conversation

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ENGINE = "engine error"
NOTHING = "nothing allowed"


@dataclass(frozen=True)
class Veto:
    """Intervention of the court, for the record.

    Attributes:
        position: Index of the token in the reply.
        article: Name of the article, or ``"vocabulary"`` for a token that is no text.
        kind: ``"veto"``: the model's first choice was forbidden; ``"ended"``: the court ended the reply.
        token: Id of the forbidden first choice; None where the court ended the reply.
        reason: Further words, such as ``"nothing allowed"``.
    """

    position: int
    article: str
    kind: str
    token: int | None = None
    reason: str = ""


@dataclass(eq=False, slots=True)
class Reply:
    """Reply so far, a node of the tree.

    Attributes:
        count: Number of its tokens.
        states: State of every rule; None after the end or a violation.
        children: Replies one token longer, by token.
        broken: Article that the last token breaks; None for a good reply.
        ended: True after an end token.
        tail: Tokens of the court's text that are left to write, where the court ends the reply; else None.
        veto: Intervention at this node.
    """

    count: int = 0
    states: tuple[Any, ...] | None = None
    children: dict[int, Reply] = field(default_factory=dict)
    broken: str | None = None
    ended: bool = False
    tail: tuple[int, ...] | None = None
    veto: Veto | None = None
    mask: Mask | None = None


@dataclass(frozen=True, slots=True)
class Mask:
    """Tokens that a reply may go on with.

    Attributes:
        forbidden: Arrays of forbidden ids, in no order.
        allowed: (V,) bool, the only allowed tokens; None: all that are not forbidden.
        ends: True if the reply may end.
        forced: The only allowed token; None where the other fields decide.
    """

    forbidden: tuple[Ids, ...] = ()
    allowed: Flags | None = None
    ends: bool = True
    forced: int | None = None


class Court:
    """Articles compiled for one tokenizer. Make it with :meth:`compile`.

    Attributes:
        articles: The articles.
        vocabulary: Bytes of the tokenizer's tokens.
        end_ids: Ids that end a reply.
        hidden: (V,) bool, tokens that no reply may hold: special and unknown ones.
        refusal_ids: Tokens of the text that ends a reply where nothing else is allowed.
    """

    def __init__(self, articles: Articles, rules: Sequence[Rule], context: Context, refusal_ids: Sequence[int]) -> None:
        self.articles, self.rules, self.context = articles, tuple(rules), context
        self.vocabulary, self.end_ids = context.vocabulary, context.end_ids
        self.hidden = np.array([piece is None for piece in self.vocabulary.pieces])
        self._ends = frozenset(self.end_ids)
        self._text = int((~self.hidden).sum())
        self.refusal_ids = tuple(refusal_ids)

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
            tuple(read_conversation(messages, config.roles, "messages")) if messages else (),
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

    # ------------------------------------------------------------------------------------------------------------ tree

    def start(self) -> Reply:
        """Return the empty reply, the root of a new tree."""
        return Reply(0, tuple(rule.start for rule in self.rules))

    def read(self, ids: Sequence[int], reply: Reply | None = None) -> Reply:
        """Return the reply after token ids, from the empty reply or from `reply`."""
        reply = self.start() if reply is None else reply
        for token in ids:
            reply = self.step(reply, int(token))
        return reply

    def step(self, reply: Reply, token: int) -> Reply:
        """Return the reply after one more token. It is broken if the token was forbidden."""
        found = reply.children.get(token)
        if found is None:
            found = reply.children[token] = self._step(reply, token)
        return found

    def _step(self, reply: Reply, token: int) -> Reply:
        count = reply.count + 1
        if reply.broken is not None:
            return Reply(count, broken=reply.broken)
        if reply.ended:
            return Reply(count, ended=True)
        mask = self.mask(reply)
        if token in self._ends:
            good = mask.ends or mask.forced == token
            return Reply(count, ended=True, broken=None if good else self._blame_end(reply))
        if mask.forced is not None and mask.forced != token:
            return Reply(count, broken=self._blame_forced(reply))
        if self._is_hidden(token):
            return Reply(count, broken="vocabulary")
        if reply.tail is not None:
            return Reply(count, reply.states, tail=reply.tail[1:], veto=reply.veto)
        assert reply.states is not None
        states = []
        for rule, state in zip(self.rules, reply.states, strict=True):
            try:
                after = rule.step(state, token)
            except EngineError as error:
                veto = Veto(count, rule.article, "ended", reason=f"{ENGINE}: {error}")
                return Reply(count, tail=(), veto=veto)
            if after is None:
                return Reply(count, broken=rule.blame(state, token))
            states.append(after)
        return Reply(count, tuple(states))

    def _is_hidden(self, token: int) -> bool:
        return not 0 <= token < len(self.hidden) or bool(self.hidden[token])

    def mask(self, reply: Reply) -> Mask:
        """Return the tokens that a reply may go on with; where there are none, the court's text."""
        if reply.mask is None:
            reply.mask = self._mask(reply)
        return reply.mask

    def _mask(self, reply: Reply) -> Mask:
        if reply.broken is not None or reply.ended:
            return Mask(forced=self.end_ids[0])
        if reply.tail is not None:
            return Mask(forced=reply.tail[0] if reply.tail else self.end_ids[0])
        assert reply.states is not None
        forbidden: list[Ids] = []
        allowed: Flags | None = None
        ends, forced = True, None
        culprit = ""
        for rule, state in zip(self.rules, reply.states, strict=True):
            try:
                ids = rule.forbidden(state)
                only = rule.allowed(state)
                may_end = rule.may_end(state)
            except EngineError as error:
                return self.end(reply, rule.article, f"{ENGINE}: {error}")
            if len(ids):
                forbidden.append(ids)
            if only is not None:
                allowed = only if allowed is None else allowed & only
                culprit = rule.article
            if not may_end:
                ends = False
            if forced is None:
                forced = rule.forced(state)
        if forced is not None and (
            any(forced in ids for ids in forbidden) or (allowed is not None and not allowed[forced])
        ):
            return self.end(reply, culprit or self._blame_end(reply), NOTHING)
        if forced is None and not ends and not self._any(forbidden, allowed):
            return self.end(reply, culprit or self._blame_end(reply), NOTHING)
        return Mask(tuple(forbidden), allowed, ends, forced)

    def _any(self, forbidden: list[Ids], allowed: Flags | None) -> bool:
        if allowed is None and sum(map(len, forbidden)) < self._text:
            return True
        left = ~self.hidden if allowed is None else allowed & ~self.hidden
        left = left.copy()
        for ids in forbidden:
            left[ids] = False
        return bool(left.any())

    def end(self, reply: Reply, article: str, reason: str) -> Mask:
        """End a reply with the court's text, or at once where that would break an article of forbidden texts."""
        tail = self.refusal_ids
        for rule, state in zip(self.rules, reply.states or (), strict=False):
            if isinstance(rule, PhraseRule):
                for token in tail:
                    state = rule.step(state, token)
                    if state is None:
                        tail = ()
                        break
        if reply.states is None:
            tail = ()
        reply.tail = tail
        reply.veto = Veto(reply.count, article, "ended", reason=reason)
        reply.mask = Mask(forced=tail[0] if tail else self.end_ids[0])
        return reply.mask

    def blame(self, reply: Reply, token: int) -> str:
        """Return the article that forbids `token` after a reply."""
        if token in self._ends:
            return self._blame_end(reply)
        if self._is_hidden(token):
            return "vocabulary"
        for rule, state in zip(self.rules, reply.states or (), strict=False):
            if token in rule.forbidden(state):
                return rule.blame(state, token)
            only = rule.allowed(state)
            if only is not None and not only[token]:
                return rule.article
        return self._blame_forced(reply)

    def _blame_end(self, reply: Reply) -> str:
        pairs = zip(self.rules, reply.states or (), strict=False)
        return next((rule.article for rule, state in pairs if not rule.may_end(state)), "?")

    def _blame_forced(self, reply: Reply) -> str:
        if reply.veto is not None:
            return reply.veto.article
        pairs = zip(self.rules, reply.states or (), strict=False)
        return next((rule.article for rule, state in pairs if rule.forced(state) is not None), "?")


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


def load_articles(path: Any) -> Articles:
    """Read articles from a JSON or YAML file.

    Raises:
        ValueError: It holds no articles, or a field does not fit; the message has the path to it.
        OSError: It cannot be read.
    """
    from pathlib import Path

    import yaml

    from rolesafe.files import read_whole

    text = read_whole(path)
    try:
        values = json.loads(text) if Path(path).suffix == ".json" else yaml.safe_load(text)
    except (ValueError, RecursionError, yaml.YAMLError) as error:
        raise ValueError(
            f"`path`: expected articles as JSON or YAML in {str(path)!r}, got something else: {error}"
        ) from error
    return Articles.from_dict(values)


def save_articles(articles: Articles, path: Any) -> None:
    """Write articles to a file as a whole: JSON for a name in ``.json``, else YAML."""
    from pathlib import Path

    import yaml

    from rolesafe.files import write_whole

    values = articles.to_dict()
    if Path(path).suffix == ".json":
        write_whole(path, json.dumps(values, indent=2, ensure_ascii=False) + "\n")
    else:
        write_whole(path, yaml.safe_dump(values, sort_keys=False, allow_unicode=True))
