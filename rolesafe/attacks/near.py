"""Delimiters that are not the delimiters: tokens that the model's embedding puts next to them.

A filter that looks for the literal strings does not find them, and to the model they are nearly the same. StruQ's
delimiters are chosen against this (Chen et al., arXiv 2402.06363, section 4.1).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from rolesafe.attacks.delimiters import Delimiters, delimiters
from rolesafe.config import RoleConfig

_TRIED = 200
"""Nearest tokens that are looked at before giving up: most are no text of their own."""

_MARK = re.compile(r"[^\w\s]")


def near(model: Any, tokenizer: Any, roles: Sequence[str], config: RoleConfig | None) -> Delimiters:
    """The template's delimiters with each token replaced by the nearest other one that somebody can type.

    Nearest by the cosine of the model's input embeddings. Replaced are structural tokens and those with a character
    that is neither a letter, a digit nor white space ("<|system|>", "<|", "###"); words such as "system" stay. A
    candidate must be no structural token, none of the delimiters' own, and must come out of its text again.

    Raises:
        ValueError: The model has no input embeddings, the tokenizer no offsets, or no candidate is text.
    """
    return _Neighbours(model, tokenizer, delimiters(tokenizer, roles, config)).disguised()


class _Neighbours:
    def __init__(self, model: Any, tokenizer: Any, marks: Delimiters) -> None:
        import torch

        from rolesafe.roles.structure import structure

        embeddings = getattr(model, "get_input_embeddings", lambda: None)()
        if embeddings is None:
            raise ValueError(
                f"`model`: expected one with input embeddings to look for neighbours in, got {type(model).__name__}; "
                "leave out attacks with near delimiters"
            )
        if not tokenizer.is_fast:
            raise ValueError(
                f"`tokenizer`: expected a fast one, whose tokens have offsets, got {type(tokenizer).__name__}; leave "
                "out attacks with near delimiters"
            )
        self.tokenizer = tokenizer
        self.state = structure(tokenizer)
        self.marks = marks
        self.vectors = torch.nn.functional.normalize(embeddings.weight.detach().float(), dim=1)  # (V, E)
        self.structural = {*self.state.structural.values(), *tokenizer.all_special_ids}
        self.own = {i for _, text in (*marks.headers, *marks.footers) for i, _, _ in self._tokens(text)}
        self.known: dict[int, str] = {}

    def disguised(self) -> Delimiters:
        headers = tuple((role, self._disguise(text)) for role, text in self.marks.headers)
        return Delimiters(headers, tuple((role, self._disguise(text)) for role, text in self.marks.footers))

    def _tokens(self, text: str) -> list[tuple[int, int, int]]:
        """Id, start and end of each token that is to be replaced."""
        found = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        return [
            (int(i), start, end)
            for i, (start, end) in zip(found["input_ids"], found["offset_mapping"], strict=True)
            if i in self.structural or _MARK.search(text[start:end])
        ]

    def _disguise(self, text: str) -> str:
        out, at = "", 0
        for i, start, end in self._tokens(text):
            inside = text[start:end]
            blank = len(inside) - len(inside.lstrip())  # a token may hold the space before its word
            out = _apart(_apart(out, text[at : start + blank]), self._nearest(i))
            at = start + len(inside.rstrip())
        return _apart(out, text[at:])

    def _nearest(self, i: int) -> str:
        if i not in self.known:
            order = (self.vectors @ self.vectors[i]).argsort(descending=True, stable=True).tolist()
            candidates = [j for j in order if j not in self.structural and j not in self.own][:_TRIED]
            text = next((t for t in map(self._text, candidates) if t is not None), None)
            if text is None:
                raise ValueError(
                    f"`tokenizer`: expected a token that is text of its own among the {len(candidates)} nearest to "
                    f"{self.tokenizer.convert_ids_to_tokens(i)!r}, got none; leave out attacks with near delimiters"
                )
            self.known[i] = text
        return self.known[i]

    def _text(self, i: int) -> str | None:
        """What to type to get this token, if there is such a text."""
        if i >= len(self.tokenizer):  # rows that the embedding was padded with
            return None
        text = str(self.tokenizer.decode([i])).strip()
        if not text or "\ufffd" in text:
            return None
        return text if self.state.plain_ids(text) == [i] else None


def _apart(left: str, right: str) -> str:
    """Both texts, with a space between them where they would be read as one word."""
    return left + (" " if re.search(r"\w$", left) and re.match(r"\w", right) else "") + right
