"""Near delimiters: tokens next to the chat template's delimiters in the embedding.

They pass a filter of the literal strings, and the model reads them almost like the delimiters. StruQ chooses its
delimiters against this attack (Chen et al., arXiv 2402.06363, section 4.1).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rolesafe.attacks.delimiters import Delimiters, delimiters
from rolesafe.config import RoleConfig
from rolesafe.roles.structure import structure

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_TRIED = 200
"""Maximum number of nearest tokens to try; most have no text of their own."""

_MARK = re.compile(r"[^\w\s]")


def near(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, roles: Sequence[str], config: RoleConfig | None
) -> Delimiters:
    """Return the template's delimiters with each token replaced by the nearest other one that a user can type.

    Distance is the cosine of the model's input embeddings. Replaced are structural tokens and those with a character
    that is neither a letter, a digit nor white space ("<|system|>", "<|", "###"); words such as "system" stay. A
    candidate must not be a structural token or one of the delimiters, and its text must encode to it again.

    Raises:
        ValueError: The model has no input embeddings, the tokenizer no offsets, or no candidate is text.
    """
    return _Neighbours(model, tokenizer, delimiters(tokenizer, roles, config)).disguised()


class _Neighbours:
    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, marks: Delimiters) -> None:
        import torch

        embeddings = getattr(model, "get_input_embeddings", lambda: None)()
        if embeddings is None:
            raise ValueError(
                f"`model`: expected one with input embeddings, got {type(model).__name__}. "
                "Leave out attacks with near delimiters."
            )
        if not tokenizer.is_fast:
            raise ValueError(
                f"`tokenizer`: expected a fast one, which returns offsets, got {type(tokenizer).__name__}. Leave out "
                "attacks with near delimiters."
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
        """Return id, start and end of each token to replace."""
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
                    f"`tokenizer`: expected a token with a text of its own among the {len(candidates)} nearest to "
                    f"{self.tokenizer.convert_ids_to_tokens(i)!r}, got none. Leave out attacks with near delimiters."
                )
            self.known[i] = text
        return self.known[i]

    def _text(self, i: int) -> str | None:
        """Return the text that encodes to token `i` alone, if there is one."""
        if i >= len(self.tokenizer):  # padding rows of the embedding
            return None
        text = str(self.tokenizer.decode([i])).strip()
        if not text or "\ufffd" in text:
            return None
        return text if self.state.plain_ids(text) == [i] else None


def _apart(left: str, right: str) -> str:
    """Return both texts, with a space between them where they would form one word."""
    return left + (" " if re.search(r"\w$", left) and re.match(r"\w", right) else "") + right
