"""Article on the language of a reply: a regular expression, a JSON schema or a grammar, by llguidance.

llguidance (MIT) never raises on errors of a grammar or a token: a matcher enters an error state, in which its mask
allows the end token. So `is_error` is read after every call, and an error ends the reply.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args
from weakref import WeakKeyDictionary

import numpy as np

from rolesafe.court.articles import Article, Context, expect
from rolesafe.court.rules import Flags, Rule
from rolesafe.court.vocabulary import Vocabulary
from rolesafe.extras import require

Form = Literal["regex", "json_schema", "grammar"]
_TOKEN_NAME = re.compile(r"<\[|<\|")  # in a grammar: token ids, special tokens
_DENIED = re.compile(r"%(llguidance|import)\b")
MAX_GRAMMAR = 500_000
"""Size limit `max_grammar_size` of a grammar."""
MAX_FUEL = 1_000_000
"""Limit `initial_lexer_fuel` of the work to build the automata of regular expressions."""
MAX_SOURCE = 1_000_000
"""Largest number of characters of a source."""


class EngineError(RuntimeError):
    """Error state of the grammar engine. The court ends the reply."""


@dataclass(frozen=True, kw_only=True)
class AllowedLanguage(Article):
    """Require that a reply is a text of a language. Needs the extra ``court``.

    Args:
        form: ``"regex"``: Rust syntax, for the whole reply; ``"json_schema"``; ``"grammar"``: llguidance's variant of
            Lark. A grammar may not name token ids or special tokens.
        source: The expression, the schema as JSON text, or the grammar.
        max_grammar: Size limit of the grammar, at most :data:`MAX_GRAMMAR`.
        max_fuel: Limit of the work to build automata, at most :data:`MAX_FUEL`.
    """

    kind: ClassVar[str] = "allowed_language"
    about: ClassVar[str] = "a regular expression, JSON schema or grammar of the whole reply"

    form: Form = "regex"
    source: str = ""
    max_grammar: int = MAX_GRAMMAR
    max_fuel: int = MAX_FUEL

    def __post_init__(self) -> None:
        super().__post_init__()
        expect(self.form in get_args(Form), "form", f"one of {get_args(Form)}", self.form)
        expect(isinstance(self.source, str) and bool(self.source.strip()), "source", "a text", self.source)
        if len(self.source) > MAX_SOURCE:
            raise ValueError(
                f"`source`: expected at most MAX_SOURCE = {MAX_SOURCE} characters, got {len(self.source)}. Shorten it."
            )
        for key, most in (("max_grammar", MAX_GRAMMAR), ("max_fuel", MAX_FUEL)):
            value = getattr(self, key)
            good = isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= most
            expect(good, key, f"a number from 1 to {most}", value)
        if self.form == "json_schema":
            try:
                schema = json.loads(self.source)
            except (ValueError, RecursionError) as error:
                raise ValueError(
                    f"`source`: expected a JSON schema as JSON text, got something else: {error}"
                ) from error
            expect(isinstance(schema, (dict, bool)), "source", "a JSON schema, an object", schema)
        if self.form == "grammar" and (found := _TOKEN_NAME.search(self.source) or _DENIED.search(self.source)):
            raise ValueError(
                f"`source`: expected a grammar of text, got {found[0]!r}: token ids, special tokens and imported "
                "grammars would pass by the other articles. Write the text instead."
            )

    def grammar(self) -> str:
        """Return the grammar in the engine's format."""
        matcher = require("llguidance", "court").LLMatcher
        if self.form == "regex":
            return str(matcher.grammar_from_regex(self.source))
        if self.form == "json_schema":
            return str(matcher.grammar_from_json_schema(self.source))
        return str(matcher.grammar_from_lark(self.source))

    def compile(self, context: Context) -> Iterator[Rule]:
        """Yield the rule.

        Raises:
            ImportError: llguidance is not installed.
            ValueError: The source is invalid, exceeds a limit, or allows no text with this tokenizer.
        """
        yield LanguageRule(self, context)


class LanguageRule(Rule):
    """Texts of a language. State: a matcher of the engine, never changed after it was made."""

    reads_text = True

    def __init__(self, article: AllowedLanguage, context: Context) -> None:
        module = require("llguidance", "court")
        self.article = article.name
        self.vocabulary = context.vocabulary
        limits = module.LLParserLimits(
            max_grammar_size=article.max_grammar, initial_lexer_fuel=article.max_fuel, verbose_errors=False
        )
        tokenizer = engine_tokenizer(context)
        self._ends = np.array(context.end_ids, dtype=np.int64)
        self.start: Any = module.LLMatcher(tokenizer, article.grammar(), log_level=0, limits=limits)
        try:
            mask, ends = self._mask(self.start)
        except EngineError as error:
            raise ValueError(
                f"`source`: expected a valid {article.form} within `max_grammar` = {article.max_grammar} and "
                f"`max_fuel` = {article.max_fuel}, got an error of the engine: {error}. Correct or simplify it."
            ) from error
        if not mask.any() and not ends:
            raise ValueError(
                f"`source`: expected a {article.form} that allows a text of this tokenizer, got one that allows none. "
                "Correct it."
            )
        self._cache: dict[int, tuple[Any, Flags, bool]] = {}

    def step(self, state: Any, token: int) -> Any | None:
        """Return a matcher after a token; None if the language does not allow it.

        Raises:
            EngineError: The engine failed.
        """
        mask, _ = self._known(state)
        if not mask[token]:
            return None
        after = state.deep_copy()
        done = after.consume_token(token)
        _check(after)
        if not done:
            raise EngineError("a token of the mask was not accepted")
        return after

    def allowed(self, state: Any) -> Flags:
        """Return the tokens that keep the reply a beginning of a text of the language.

        Raises:
            EngineError: The engine failed.
        """
        return self._known(state)[0]

    def may_end(self, state: Any) -> bool:
        """Return True if the reply is a text of the language."""
        return self._known(state)[1]

    def _known(self, state: Any) -> tuple[Flags, bool]:
        found = self._cache.get(id(state))
        if found is None:
            if len(self._cache) >= 256:
                self._cache.clear()
            found = self._cache[id(state)] = (state, *self._mask(state))  # holds the matcher, so its id stays its own
        return found[1], found[2]

    def _mask(self, state: Any) -> tuple[Flags, bool]:
        """Return the mask (V,) of ordinary tokens, and True if the reply may end."""
        _check(state)
        size = len(self.vocabulary)
        if state.is_stopped():
            _check(state)
            return np.zeros(size, dtype=bool), bool(state.is_accepting())
        data = state.compute_bitmask()
        _check(state)
        bits = np.unpackbits(np.frombuffer(data, dtype=np.uint8), bitorder="little")[:size].astype(bool)
        if len(bits) < size:
            raise EngineError(f"a mask of {len(bits)} tokens for a vocabulary of {size}")
        ends = bool(state.is_accepting())
        _check(state)
        bits[self._ends[self._ends < size]] = False
        return bits, ends


def _check(matcher: Any) -> None:
    if matcher.is_error():
        lines = str(matcher.get_error()).strip().splitlines() or ["unknown error"]
        raise EngineError(lines[0][:300])


_KNOWN: WeakKeyDictionary[Vocabulary, Any] = WeakKeyDictionary()


def engine_tokenizer(context: Context) -> Any:
    """Return the engine's view of a vocabulary; cached."""
    vocabulary = context.vocabulary
    if vocabulary in _KNOWN:
        return _KNOWN[vocabulary]
    module = require("llguidance", "court")
    if not context.end_ids:
        raise ValueError("`end_ids`: expected the id of at least one end token, got none. Pass it.")

    class Pieces:
        """Vocabulary in the form that the engine's TokenizerWrapper reads."""

        eos_token_id = context.end_ids[0]
        bos_token_id = None
        # 0xff marks a special token for the engine: no text holds that byte
        tokens: ClassVar[list[bytes]] = [
            b"\xff" + vocabulary.special.get(i, f"<{i}>").encode() if piece is None else piece
            for i, piece in enumerate(vocabulary.pieces)
        ]
        special_token_ids: ClassVar[list[int]] = [i for i, piece in enumerate(vocabulary.pieces) if piece is None]

        def __call__(self, text: str) -> list[int]:
            return list(context.encode(text if isinstance(text, str) else text.decode("utf-8", "replace")))

    found = module.LLTokenizer(module.TokenizerWrapper(Pieces()), n_vocab=len(vocabulary), eos_token=context.end_ids[0])
    _KNOWN[vocabulary] = found
    return found
