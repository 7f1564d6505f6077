"""Find the structural tokens of a tokenizer under a chat template.

*Structural* are tokens with a meaning beyond their text: the special tokens, added tokens named like parts of a
conversation (``<|name|>``, ``[NAME]``, ``<tool_call>``, ``<think>``), and every token that the chat template prints as
one, wherever the tokenizer keeps it: an added token, flagged special or not, or a piece of the vocabulary that plain
text is not merged to. Pieces of the vocabulary called ``<|name|>`` count whether the template prints them or not.
Words, digits, white space and single characters are never structural unless flagged special, nor are other added
tokens that the template does not print (a vocabulary of one's own, Gemma's HTML tags).
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from rolesafe.roles.token_spans import BYTE_PIECE

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_CONTROL = re.compile(r"<[|\uff5c].*[|\uff5c]>|\[/?[A-Z][A-Z0-9_]*\]|<</?[A-Z]+>>")
_PIPED = re.compile(r"<[|\uff5c][^<>]+[|\uff5c]>")
_CONVERSATION = re.compile(
    r"[<\[{]+/?[^\s]*(system|developer|user|human|assistant|model|tool|function|think|reason|turn|message|role|channel)"
    r"[^\s]*[>\]}]+",
    re.IGNORECASE,
)
_COMPLETE = re.compile(  # in brackets, with a letter or digit
    r"<+[^<>\s]*[^\W_][^<>\s]*>+|\[+[^\[\]\s]*[^\W_][^\[\]\s]*\]+|\{+[^{}\s]*[^\W_][^{}\s]*\}+"
    r"|[【〈《「『«⟨]\S+[】〉》」』»⟩]"
)
_NATURAL = re.compile(r"[^\w\s]?[\w]+|[\W_]+")  # a word, with a sign before it; signs and white space alone
_BLANK = "▁ĠĊ \n\t"


def structural_tokens(tokenizer: PreTrainedTokenizerBase, literals: set[str]) -> dict[str, int]:
    """Return the id of every structural token, by its text.

    Args:
        tokenizer: A transformers tokenizer.
        literals: Texts that the template prints.
    """
    added = {token.content: (i, token) for i, token in tokenizer.added_tokens_decoder.items()}
    special = dict(zip(tokenizer.all_special_tokens, tokenizer.all_special_ids, strict=True))
    prints = _Printer(literals)
    found: dict[str, int] = {}
    for text, i in {**special, **{text: i for text, (i, _) in added.items()}}.items():
        flagged = text in special or (text in added and added[text][1].special)
        named = _CONTROL.fullmatch(text) or _CONVERSATION.fullmatch(text)
        if text.strip() and (flagged or named or (_marks(text) and prints(text))):
            found[text] = i
    found.update((text, i) for text, i in _pieces(tokenizer, literals, prints, added) if text not in added)
    return found


def _pieces(
    tokenizer: PreTrainedTokenizerBase, literals: set[str], prints: _Printer, added: Mapping[str, Any]
) -> Iterator[tuple[str, int]]:
    """Iterate over vocabulary pieces that the template prints as one token and that plain text is not merged to."""
    vocabulary: dict[str, int] = tokenizer.get_vocab()
    backend = getattr(tokenizer, "backend_tokenizer", None) if tokenizer.is_fast else None

    @functools.cache
    def merged() -> set[str]:
        return set() if backend is None else _merged_pieces(backend.model)

    for piece, i in vocabulary.items():
        named = _COMPLETE.fullmatch(piece) and not BYTE_PIECE.fullmatch(piece)
        printed = bool(named) and prints(piece)
        if not printed and not _PIPED.fullmatch(piece):
            continue
        if piece in tokenizer.tokenize(piece) and (printed or piece not in merged()):
            yield piece, i
    if backend is None:
        return
    for literal in literals:
        for piece in tokenizer.tokenize(literal):
            text = piece.strip(_BLANK)
            if piece in added or piece not in vocabulary or text not in literal:
                continue
            if len(text) < 2 or _NATURAL.fullmatch(text) or _COMPLETE.fullmatch(piece):
                continue
            if piece not in merged():
                yield piece, vocabulary[piece]


class _Printer:
    """Predicate: a template can print a text literally, inside one literal or across consecutive literals."""

    def __init__(self, literals: set[str]) -> None:
        self.literals = sorted(literals)
        self.joined = "\0".join(self.literals)

    def __call__(self, text: str) -> bool:
        if text in self.joined:
            return True
        ends = [k for k in range(len(text)) if not k or any(s.endswith(text[:k]) for s in self.literals)]
        reached, ahead = set(ends), list(ends)
        while ahead:
            at = ahead.pop()
            if at and any(s.startswith(text[at:]) for s in self.literals):
                return True
            for literal in self.literals:
                to = at + len(literal)
                if to not in reached and to <= len(text) and text.startswith(literal, at):
                    if to == len(text):
                        return True
                    reached.add(to)
                    ahead.append(to)
        return False


def _marks(text: str) -> bool:
    """Return True for a printed added token that is a marker: no word, number, white space or single character."""
    bare = text.strip()
    if len(bare) < 2:
        return bool(bare) and not bare.isprintable()  # a private character, say
    return not re.fullmatch(r"[\w'\u2019-]+", bare) or (bare.isascii() and bare.isupper() and len(bare) > 2)


def _merged_pieces(model: Any) -> set[str]:
    """Return the pieces that a model merges from smaller ones, without those that it only finds whole."""
    state = json.loads(model.__getstate__())
    if state["type"] == "BPE":
        pairs = (pair.split(" ") if isinstance(pair, str) else pair for pair in state["merges"])
        return {left + right for left, right in pairs}
    if state["type"] == "Unigram":
        return {piece for piece, score in state["vocab"] if score < 0}
    return set()
