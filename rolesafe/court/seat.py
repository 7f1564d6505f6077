"""A court over every reply of a model, for attacks and evaluations that call ``model.generate`` themselves."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import LogitsProcessorList

from rolesafe.attacks.gradient.veto import known_veto
from rolesafe.court.court import Court
from rolesafe.court.processor import CourtProcessor, veto_mask


class CourtVeto:
    """Court as searches know it: the veto as a constant mask, and the nearest reply that it allows.

    Args:
        court: The court.
    """

    def __init__(self, court: Court) -> None:
        self.court = court

    def aim(self, ids: Sequence[int]) -> list[int]:
        """Return `ids` with each vetoed token replaced by the allowed one whose text begins most like it."""
        court, reply = self.court, self.court.start()
        out: list[int] = []
        for token in ids:
            if reply.ended:
                break
            scores = torch.zeros(max(len(court.hidden), token + 1))
            row = CourtProcessor(court, torch.zeros((1, 0), dtype=torch.int64), record=False)(
                torch.tensor([out], dtype=torch.int64), scores[None]
            )[0]
            if row[token] == -torch.inf:
                token = self._nearest(token, torch.nonzero(row > -torch.inf).flatten().tolist())
            out.append(token)
            reply = court.step(reply, token)
        return out

    def _nearest(self, token: int, allowed: Sequence[int]) -> int:
        pieces = self.court.vocabulary.pieces
        wanted = (pieces[token] if token < len(pieces) else None) or b""

        def distance(other: int) -> tuple[int, int, int]:
            piece = (pieces[other] if other < len(pieces) else None) or b""
            size = min(len(piece), len(wanted))
            differ = np.frombuffer(piece[:size], np.uint8) != np.frombuffer(wanted[:size], np.uint8)
            common = int(differ.argmax()) if differ.any() else size
            return -common, abs(len(piece) - len(wanted)), other

        return min(allowed, key=distance)

    def mask(self, ids: Sequence[int], size: int) -> Tensor:
        """Return (W, V) bool, True where a token is vetoed at a position of the reply `ids` (W,)."""
        rows = torch.tensor([list(ids)], dtype=torch.int64)
        return veto_mask(self.court, rows, torch.ones_like(rows, dtype=torch.bool), size)[0]


@contextmanager
def sitting(model: nn.Module, court: Court) -> Iterator[None]:
    """Put every reply that `model` generates within the context under a court, and let attacks know it.

    ``model.generate`` vetoes tokens, and replaces a row that breaks an article all the same (a beam of probability 0)
    by the court's text. Searches with gradients and BEAST aim for the nearest allowed reply, with the veto as a
    constant mask in their loss.

    >>> from rolesafe.court import Court, ForbiddenPhrases, sitting
    >>> from rolesafe.training.tiny import text_tokenizer, tiny_llama
    >>> tokenizer = text_tokenizer(["the key is under the mat"], 300)
    >>> court = Court.compile([ForbiddenPhrases(name="key", phrases=("mat",))], tokenizer)
    >>> model = tiny_llama(len(tokenizer), seed=0, layers=1)
    >>> with sitting(model, court):
    ...     out = model.generate(tokenizer("the key", return_tensors="pt").input_ids, max_new_tokens=4)

    Args:
        model: A causal language model, patched or not.
        court: The court.

    Raises:
        ValueError: Another court sits over this model.
    """
    inner: Any = model.generate
    own = "generate" in model.__dict__

    def generate(inputs: Tensor | None = None, *args: Any, **kw: Any) -> Any:
        ids = next((x for x in (kw.get("input_ids"), inputs) if x is not None), None)
        embeds = kw.get("inputs_embeds")
        if ids is None or embeds is not None:
            ids = torch.zeros((1 if embeds is None else len(embeds), 0), dtype=torch.int64)
        processor = CourtProcessor(court, ids, record=False)
        given = kw.pop("logits_processor", None)
        out = inner(
            inputs,
            *args,
            **{**kw, "eos_token_id": list(court.end_ids)},
            logits_processor=LogitsProcessorList([*(given or []), processor]),
        )
        _replace_broken(court, out if isinstance(out, Tensor) else out.sequences, ids.shape[1])
        return out

    with known_veto(model, CourtVeto(court)):
        model.__dict__["generate"] = generate
        try:
            yield
        finally:
            model.__dict__.pop("generate", None)
            if own:
                model.__dict__["generate"] = inner


def _replace_broken(court: Court, rows: Tensor, width: int) -> None:
    """Replace replies that break an article, in place, by the court's text, cut to their length."""
    for row in rows:
        ids = row[width:].tolist()
        end = next((k for k, token in enumerate(ids) if token in court.end_ids), len(ids))
        if court.check(ids[: end + 1]) is not None:
            text = [*court.refusal_ids[: max(0, len(ids) - 1)], *[court.end_ids[0]] * len(ids)][: len(ids)]
            row[width:] = torch.tensor(text, device=row.device, dtype=row.dtype)
