"""Tokenise a rendered conversation so that only the template's text gives structural tokens.

The text is encoded as in ``apply_chat_template``, in one call of the tokenizer. Where a structural token holds a
character that is not the template's, the text is encoded again piece by piece: the template's structural tokens are
placed directly, and the text between them goes through a copy of the tokenizer without structural tokens. Structural
tokens that still come out of other text (a Unigram holds ``<s>`` as an ordinary piece) are split into smaller pieces.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import numpy as np
import numpy.typing as npt

from rolesafe.roles.plain_tokenizers import without_prefix
from rolesafe.roles.structural_tokens import structural_tokens
from rolesafe.roles.token_spans import BYTE_PIECE, Ints, Span, Tokens, aligned, trimmed

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Flags = npt.NDArray[np.bool_]


class Structure:
    """Encode rendered conversations with the structural tokens of a tokenizer under a chat template.

    Args:
        tokenizer: A transformers tokenizer. It is not changed.
        literals: Texts that the template prints: its literals, and the names of roles.

    Attributes:
        structural: Id of every structural token, by its text.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, literals: Iterable[str] = ()) -> None:
        self.tokenizer = tokenizer
        self.backend = getattr(tokenizer, "backend_tokenizer", None) if tokenizer.is_fast else None
        self.added: dict[str, Any] = {token.content: token for token in tokenizer.added_tokens_decoder.values()}
        self._added_ids = {token.content: i for i, token in tokenizer.added_tokens_decoder.items()}
        self.structural = structural_tokens(tokenizer, set(filter(None, literals)))
        # Leftmost, then longest, as the tokenizer itself chooses.
        longest = sorted(self.structural, key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, longest)) or r"(?!)")
        self.unknown = self._find_unknown()
        self.forbidden = frozenset(i for i in self.structural.values() if i != self.unknown)
        self._variants: dict[str, Any] = {}
        self._renumbered: dict[int, int] = {}  # ids of added tokens in the bare tokenizers, and their own
        self._is_forbidden = _flags(self.forbidden)
        self._is_added = _flags(i for text, i in self._added_ids.items() if text.strip() and i != self.unknown)
        self.known: dict[Any, Any] = {}  # cache of the encoder

    def _find_unknown(self) -> int | None:
        """Return the id of unknown text; None where it is also the begin or end of a sequence."""
        name = getattr(getattr(self.backend, "model", None), "unk_token", None)
        unknown = self.backend.token_to_id(name) if self.backend is not None and name else self.tokenizer.unk_token_id
        return None if unknown in (self.tokenizer.bos_token_id, self.tokenizer.eos_token_id) else unknown

    def markers(self, text: str, start: int = 0, end: int | None = None) -> list[Span]:
        """Return the spans of the structural tokens in a text of the template, in order."""
        spans = []
        for match in self._pattern.finditer(text, start, len(text) if end is None else end):
            token = self.added.get(match[0])
            inside_word = _is_word(text, match.start() - 1) or _is_word(text, match.end())
            if token is not None and token.single_word and inside_word:
                continue
            spans.append(match.span())
        return spans

    # -------------------------------------------------------------------------------------------------------- encoding

    def encode_whole(self, texts: Sequence[str]) -> list[Tokens | None]:
        """Return the tokens of ``apply_chat_template``, for :meth:`encode`; None where their spans are unknown."""
        if not texts:
            return []
        if self.backend is None:
            return [
                self._encode_named(text, self.tokenizer.tokenize(text, split_special_tokens=False)) for text in texts
            ]
        found = self.tokenizer(
            list(texts),
            add_special_tokens=False,
            return_offsets_mapping=True,
            return_attention_mask=False,
            return_token_type_ids=False,
            split_special_tokens=False,
            verbose=False,
        )
        return [Tokens.of(*pair) for pair in zip(found["input_ids"], found["offset_mapping"], strict=True)]

    def encode(
        self,
        text: str,
        trusted: Flags,
        bounds: Sequence[int] = (),
        tokens: Tokens | None = None,
    ) -> Tokens:
        """Return the tokens of a rendered conversation; only the template's text gives structural ones.

        Args:
            text: The conversation.
            trusted: (len(text),) bool, True where a character is the template's.
            bounds: Borders of segments, for tokenizers without token spans.
            tokens: Result of :meth:`encode_whole` for the text.
        """
        if tokens is not None and self._is_clean(text, tokens, trusted):
            return tokens
        aligned = self.backend is not None or self._aligns(text, trusted)
        return self.encode_apart(text, trusted, () if aligned else bounds)

    def plain_ids(self, text: str) -> list[int]:
        """Return the token ids of untrusted text in the middle of other text."""
        return [int(i) for i in self._encode_plain(text, 0, len(text), "text").ids]

    def _is_clean(self, text: str, tokens: Tokens, trusted: Flags) -> bool:
        """Return True if all structural tokens are the template's, and none of its own was merged with other text."""
        foreign = np.concatenate([[0], np.cumsum(~trusted)])
        count = foreign[tokens.ends] - foreign[tokens.starts]
        atomic = _at(self._is_added, tokens.ids) | _at(self._is_forbidden, tokens.ids)
        for k in np.nonzero(atomic & (count > 0))[0]:
            a, b = trimmed(text, int(tokens.starts[k]), int(tokens.ends[k]))
            strange = foreign[b] - foreign[a]
            # An added token inside untrusted text is allowed; one that reaches into the template's text is not.
            if strange and (int(tokens.ids[k]) in self.forbidden or strange < b - a):
                return False
        if any(text not in self.added for text in self.structural):
            at = {int(a) for a in tokens.starts[_at(self._is_forbidden, tokens.ids)]}
            if any(a not in at for a, _ in self._template_markers(text, trusted)):
                return False
        return not any(True for _ in self._misnamed(text, tokens))

    def _misnamed(self, text: str, tokens: Tokens) -> Iterator[int]:
        """Iterate over tokens spelled by name in untrusted text: byte pieces (``<0x41>``), the unknown token."""
        name = None if self.unknown is None else self.tokenizer.convert_ids_to_tokens(self.unknown)
        if "<0x" not in text and (not name or name not in text):
            return
        for k, (a, b) in enumerate(zip(tokens.starts.tolist(), tokens.ends.tolist(), strict=True)):
            if BYTE_PIECE.fullmatch(text, a, b) or (b - a > 1 and text[a:b].strip() == name):
                yield k

    def _template_markers(self, text: str, trusted: Flags) -> list[Span]:
        """Return the spans of the structural tokens that lie in the template's text."""
        edges = np.flatnonzero(np.diff(np.concatenate([[False], trusted, [False]])))
        return [
            span for a, b in zip(edges[::2], edges[1::2], strict=True) for span in self.markers(text, int(a), int(b))
        ]

    def encode_apart(self, text: str, trusted: Flags, cuts: Sequence[int]) -> Tokens:
        """Encode piece by piece; no token crosses the `cuts`. See :meth:`encode`."""
        parts: list[Tokens] = []
        before, at, lead = "start", 0, ""

        def plain(end: int) -> None:
            nonlocal before, at, lead
            for stop in [*(cut for cut in cuts if at < cut < end), end]:
                if at < stop:
                    parts.append(self._encode_plain(text, at, stop, before, lead, trusted))
                    before, at, lead = "text", stop, ""

        for start, end in self._template_markers(text, trusted):
            token = self.added.get(text[start:end])
            left = start
            if token is not None and token.lstrip:
                left = at + len(text[at:start].rstrip())
            plain(left)
            following = end
            if token is not None and token.rstrip:
                following = len(text) - len(text[end:].lstrip())
            parts.append(Tokens.of([self.structural[text[start:end]]], [(start, end)]))
            before, at, lead = "token", following, text[start:end]
        plain(len(text))
        return Tokens.joined(parts)

    def _encode_plain(
        self, text: str, start: int, end: int, before: str, lead: str = "", trusted: Flags | None = None
    ) -> Tokens:
        """Return the tokens of a stretch without structural tokens of the template, after the token `lead`."""
        if self.backend is None:
            return self._encode_slowly(text, start, end, lead, trusted)
        encoding = self._variant(before).encode(text[start:end], add_special_tokens=False)
        tokens = Tokens.of([self._renumbered.get(i, i) for i in encoding.ids], encoding.offsets).moved(start)
        bad = [*self._foreign(tokens, trusted), *self._misnamed(text, tokens)]
        names = encoding.tokens if bad else []  # rebuilt at every access
        return tokens.replaced({k: self._spell(names[k]) for k in bad})

    def _spell(self, token: str) -> list[int]:
        """Return a structural piece as pieces of one character; characters without a piece become unknown text."""
        ids: list[int] = []
        for character in token:
            if self.backend is None:
                found = list(self.tokenizer.convert_tokens_to_ids(self._tokenize(character)))
            else:
                found = [piece.id for piece in self.backend.model.tokenize(character)]
            if self.forbidden.isdisjoint(found):
                ids += found
            elif self.unknown is not None:
                ids.append(self.unknown)
        return ids

    # ------------------------------------------------------------------------------------- tokenizers without a backend

    def _aligns(self, text: str, trusted: Flags) -> bool:
        """Return True if the spans of the tokens follow from their texts."""
        spans, at = [*self._template_markers(text, trusted), (len(text), len(text))], 0
        for start, end in spans:
            if aligned(self._tokenize(text[at:start]), text[at:start]) is None:
                return False
            at = end
        return True

    def _encode_named(self, text: str, names: list[str]) -> Tokens | None:
        """Return the tokens of these names; None where their spans do not follow from the names."""
        spans = aligned(names, text)
        return None if spans is None else Tokens.of(self.tokenizer.convert_tokens_to_ids(names), spans)

    def _encode_slowly(self, text: str, start: int, end: int, lead: str, trusted: Flags | None) -> Tokens:
        whole = text[start:end]
        names = self._tokenize(lead + whole) if lead else []  # SentencePiece begins a text with a space of its own
        names = names[1:] if names[:1] == [lead] else self._tokenize(whole)
        ids = list(self.tokenizer.convert_tokens_to_ids(names))
        spans = aligned(names, whole) or [(0, len(whole))] * len(ids)
        tokens = Tokens.of(ids, spans).moved(start)
        return tokens.replaced({k: self._spell(names[k]) for k in self._foreign(tokens, trusted)})

    def _foreign(self, tokens: Tokens, trusted: Flags | None) -> list[int]:
        """Return indices of structural tokens with a character that is not the template's (all without `trusted`)."""
        found: list[int] = np.nonzero(_at(self._is_forbidden, tokens.ids))[0].tolist()
        if trusted is None:
            return found
        return [k for k in found if not trusted[tokens.starts[k] : tokens.ends[k]].all()]

    def _tokenize(self, text: str) -> list[str]:
        """Return the names of the tokens of a text without structural tokens."""
        own = [t for t in self.added if t not in self.structural and t in text]
        if not own:
            return list(self.tokenizer.tokenize(text, split_special_tokens=True))
        pattern = "|".join(map(re.escape, sorted(own, key=len, reverse=True)))
        out: list[str] = []
        for k, piece in enumerate(re.split(f"({pattern})", text)):
            out += [piece] if k % 2 else self.tokenizer.tokenize(piece, split_special_tokens=True) if piece else []
        return out

    # ----------------------------------------------------------------------------------------------- bare tokenizers

    def _variant(self, before: str) -> Any:
        """Return the tokenizer without structural tokens for text at the start, after a structural token or after text.

        The variants differ in the space that SentencePiece-like tokenizers put in front of a text: the original adds
        one after a structural token with prepend_scheme "always", and none in the middle of a text.
        """
        if before not in self._variants:
            from tokenizers import Tokenizer

            backend: Any = self.backend
            bare: Any = Tokenizer(backend.model)
            bare.normalizer = backend.normalizer
            bare.pre_tokenizer = backend.pre_tokenizer
            if before != "start":
                everywhere = before == "text"
                bare.pre_tokenizer = without_prefix(backend.pre_tokenizer, everywhere)
                bare.normalizer = without_prefix(backend.normalizer, everywhere)
            kept = {
                i: t
                for i, t in sorted(backend.get_added_tokens_decoder().items())
                if t.content not in self.structural and not (t.special and t.content.strip())
            }
            bare.add_tokens(list(kept.values()))  # under other ids where the vocabulary lacks them
            self._renumbered.update({bare.token_to_id(t.content): i for i, t in kept.items()})
            self._variants[before] = bare
        return self._variants[before]


_KNOWN: WeakKeyDictionary[Any, tuple[Any, dict[Any, Structure]]] = WeakKeyDictionary()


def structure(tokenizer: PreTrainedTokenizerBase, template: str | None = None, names: Iterable[str] = ()) -> Structure:
    """Return the :class:`Structure` of a tokenizer under a template; cached until tokens are added to it.

    Args:
        tokenizer: A transformers tokenizer.
        template: A Jinja chat template; default: the tokenizer's own, if it has one.
        names: Names of roles beyond the usual ones.
    """
    from rolesafe.roles.templates import ROLE_NAMES, resolve_template

    if template is None and tokenizer.chat_template is not None:
        template = resolve_template(tokenizer, None)
    state = (tuple(tokenizer.get_added_vocab().items()), tuple(tokenizer.all_special_tokens), len(tokenizer))
    known = _KNOWN.get(tokenizer)
    if known is None or known[0] != state:
        known = _KNOWN[tokenizer] = (state, {})
    names = tuple(names)
    key = (template, names)
    if key not in known[1]:
        from rolesafe.roles.rendering import renderer

        printed = set() if template is None else set(renderer(template).literals)
        roles = {form for name in (*ROLE_NAMES, *names) for form in (name, name.upper(), name.title())}
        # The tokenizer is the weak key, so the value must not refer to it: a copy shares the (large) backend.
        known[1][key] = Structure(copy.copy(tokenizer), printed | roles if printed else ())
    return known[1][key]


def _flags(ids: Iterable[int]) -> Flags:
    ids = list(ids)
    flags = np.zeros(max(ids, default=-1) + 1, dtype=bool)
    flags[ids] = True
    return flags


def _at(flags: Flags, ids: Ints) -> Flags:
    """Return the flags of ids; False beyond the end."""
    if not len(flags):
        return np.zeros(len(ids), dtype=bool)
    return flags[np.minimum(ids, len(flags) - 1)] & (ids < len(flags))


def _is_word(text: str, at: int) -> bool:
    return 0 <= at < len(text) and (text[at].isalnum() or text[at] == "_")
