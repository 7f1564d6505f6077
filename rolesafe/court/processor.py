"""Veto in ``generate``: a LogitsProcessor over the tree of replies, and the projection of logits for training.

Legend: B prompts, R rows (beams and returned sequences of all prompts), N tokens of the prompt, L tokens so far, V ids.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from transformers import LogitsProcessor

from rolesafe.arguments import is_integer
from rolesafe.court.court import Court
from rolesafe.court.tree import NOTHING, Mask, Reply, Veto

Gradient = Literal["none", "constant_mask"]


class CourtProcessor(LogitsProcessor):
    """Set the logits of tokens that break an article to -inf, for one call of ``generate``.

    The state of a row follows from its token ids, so greedy search, sampling, beams, assisted decoding and prompt
    lookup need no bookkeeping, and the prompts of a batch may have different courts. Pass it last in
    ``model.generate(..., logits_processor=LogitsProcessorList([processor]))``. Make a new one for each call.

    A row where nothing is allowed, or where the engine of a grammar fails, goes on with the court's text and ends.
    Where fewer tokens are allowed than there are beams, ``generate`` may keep beams of probability 0:
    :func:`rolesafe.court.generate` checks the result and replaces them.

    Args:
        court: Court of all prompts, or one for each prompt.
        input_ids: (B, N) prompts as passed to ``generate``; with ``inputs_embeds`` a tensor of shape (B, 0).
        continued: Number of tokens at the end of each prompt that belong to the reply (``continue_final_message``):
            one number, or one per prompt.
        record: Keep the forbidden first choices of the model, for :meth:`record`.

    Raises:
        ValueError: Shapes do not fit, or the beginning of a reply in the prompt breaks an article.
    """

    def __init__(
        self,
        court: Court | Sequence[Court],
        input_ids: Tensor,
        *,
        continued: int | Sequence[int] = 0,
        record: bool = True,
    ) -> None:
        if not isinstance(input_ids, Tensor) or input_ids.ndim != 2:
            raise ValueError("`input_ids`: expected the prompts as a tensor of shape (B, N). Pass those of `generate`.")
        size = input_ids.shape[0]
        self.courts = [court] * size if isinstance(court, Court) else list(court)
        if len(self.courts) != size:
            raise ValueError(f"`court`: expected one court, or one for each of {size} prompts, got {len(self.courts)}.")
        counts = [continued] * size if isinstance(continued, int) else list(continued)
        if len(counts) != size or not all(is_integer(n, 0) and n <= input_ids.shape[1] for n in counts):
            raise ValueError(
                f"`continued`: expected a number of tokens of the prompt, or one for each of {size} prompts, got "
                f"{continued!r:.80}."
            )
        self._prompts = input_ids.detach().cpu().numpy()
        self._roots: list[Reply] = []
        for i, (one, count) in enumerate(zip(self.courts, counts, strict=True)):
            begun = self._prompts[i, self._prompts.shape[1] - count :].tolist()
            root = one.read(begun)
            if root.broken is not None:
                raise ValueError(
                    f"`input_ids[{i}]`: expected the beginning of a reply that keeps all articles, got one that breaks "
                    f"{root.broken!r}. Remove that part of the message."
                )
            self._roots.append(root)
        self._record = record
        self._rows: list[tuple[Any, Reply]] = []  # ids and reply of each row at the last call
        self._fixed: dict[tuple[int, int], Tensor] = {}

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Return logits (R, V) in which forbidden tokens have -inf exactly; `scores` is not changed.

        Raises:
            ValueError: The rows do not begin with the prompts of this processor, or V is smaller than the vocabulary.
        """
        if input_ids.ndim != 2:  # continuous batching passes the last token of each row alone
            raise ValueError(
                f"`input_ids`: expected whole rows of shape (R, L), got {tuple(input_ids.shape)}. Continuous batching "
                "is not supported: use `generate`."
            )
        ids = input_ids.detach().cpu().numpy()
        replies, owners = self._replies(ids)
        out = scores.detach().clone()
        best = out.argmax(dim=-1).tolist() if self._record else None
        for r, (reply, owner) in enumerate(zip(replies, owners, strict=True)):
            court = self.courts[owner]
            mask = court.mask(reply)
            if best is not None and reply.veto is None and reply.broken is None and not reply.ended:
                self._note(court, reply, mask, best[r], scores[r])
            self._apply(court, mask, out[r])
        # NaN, or nothing left of what other processors allowed: the court ends the reply
        bad = ~(out.amax(dim=-1) > -torch.inf)
        if bad.any():
            for r in torch.nonzero(bad).flatten().tolist():
                reply, court = replies[r], self.courts[owners[r]]
                if reply.tail is None and reply.broken is None and not reply.ended:
                    court.end(reply, "logits", NOTHING)
                self._apply(court, court.mask(reply), out[r].fill_(0.0))
        self._rows = list(zip(ids, replies, strict=True))
        return out

    def _replies(self, ids: Any) -> tuple[list[Reply], list[int]]:
        """Return the reply and the prompt of each row."""
        size, width = self._prompts.shape
        if ids.shape[0] % size or ids.shape[1] < width:
            raise ValueError(
                f"`input_ids`: expected rows that begin with the {size} prompts of {width} tokens of this processor, "
                f"got shape {ids.shape}. Make a new processor for each call of generate."
            )
        each = ids.shape[0] // size
        replies, owners = [], []
        for r, row in enumerate(ids):
            owner = r // each
            replies.append(self._reply(r, row, owner, width))
            owners.append(owner)
        return replies, owners

    def _reply(self, r: int, row: Any, owner: int, width: int) -> Reply:
        court = self.courts[owner]
        if r < len(self._rows):
            before, reply = self._rows[r]
            if len(row) == len(before) + 1 and np.array_equal(row[:-1], before):
                return court.step(reply, int(row[-1]))
        if not np.array_equal(row[:width], self._prompts[owner]):
            raise ValueError(
                f"`input_ids[{r}]`: expected a row that begins with prompt {owner} of this processor, got another. "
                "Make a new processor for each call of generate, with its `input_ids`."
            )
        return court.read(row[width:].tolist(), self._roots[owner])

    def _apply(self, court: Court, mask: Mask, row: Tensor) -> None:
        """Set the forbidden entries of one row (V,) to -inf."""
        size = len(court.hidden)
        if row.shape[0] < size:
            raise ValueError(
                f"`scores`: expected logits for {size} tokens, the court's vocabulary, got {row.shape[0]}. Compile the "
                "court with the tokenizer of the model."
            )
        if mask.forced is not None:
            kept = row[mask.forced].clone()
            row.fill_(-torch.inf)
            row[mask.forced] = torch.where(kept > -torch.inf, kept, torch.zeros_like(kept))
            return
        ends = row[list(court.end_ids)].clone() if mask.ends else None
        row.index_fill_(0, self._constant(court, row), -torch.inf)
        if mask.allowed is not None:
            row[:size].masked_fill_(~torch.from_numpy(mask.allowed).to(row.device), -torch.inf)
        for found in mask.forbidden:
            row.index_fill_(0, torch.from_numpy(found).to(row.device), -torch.inf)
        if ends is not None:
            row[list(court.end_ids)] = ends

    def _constant(self, court: Court, row: Tensor) -> Tensor:
        """Return the ids that no reply of a court may hold, rows beyond the vocabulary included."""
        key = (id(court), row.shape[0])
        if key not in self._fixed:
            beyond = np.arange(len(court.hidden), row.shape[0])
            ids = np.concatenate([np.nonzero(court.hidden)[0], beyond])
            self._fixed[key] = torch.from_numpy(ids).to(row.device)
        return self._fixed[key]

    def _note(self, court: Court, reply: Reply, mask: Mask, token: int, scores: Tensor) -> None:
        """Keep the model's first choice, of logits (V,), where it is forbidden."""
        if token in court.end_ids:
            bad = not mask.ends and mask.forced != token
        elif mask.forced is not None:
            bad = mask.forced != token
        else:
            bad = (
                token >= len(court.hidden)
                or bool(court.hidden[token])
                or (mask.allowed is not None and not mask.allowed[token])
                or any(bool((found == token).any()) for found in mask.forbidden)
            )
        if bad and bool(scores.amin() < scores.amax()):  # prompt lookup asks with equal logits: no model chose
            reply.veto = Veto(reply.count, court.blame(reply, token), "veto", token)

    def record(self, output_ids: Tensor) -> list[list[Veto]]:
        """Return the court's interventions in each row (R, L) that ``generate`` returned, in order.

        Interventions in candidates that were rejected and in beams that were dropped are not in it.
        """
        ids = output_ids.detach().cpu().numpy()
        size, width = self._prompts.shape
        each = max(1, ids.shape[0] // size)
        out = []
        for r, row in enumerate(ids):
            court, reply = self.courts[r // each], self._roots[r // each]
            found: list[Veto] = []
            for token in row[width:].tolist():
                if reply.veto is not None and reply.veto not in found:
                    found.append(reply.veto)
                reply = court.step(reply, token)
                if reply.ended or reply.broken is not None:
                    break
            if reply.veto is not None and reply.veto not in found:
                found.append(reply.veto)
            out.append(found)
        return out


def veto_mask(court: Court, input_ids: Tensor, replies: Tensor, size: int) -> Tensor:
    """Return (B, L, V) bool, True where a token is forbidden at each position of given replies.

    Args:
        court: The court.
        input_ids: (B, L) int64, tokens of whole sequences.
        replies: (B, L) bool, True for the tokens of the reply, one run per row. Nothing is forbidden elsewhere.
        size: Number of ids V of the model's logits.
    """
    out = torch.zeros((*input_ids.shape, size), dtype=torch.bool)
    for b, (row, marks) in enumerate(zip(input_ids.tolist(), replies.tolist(), strict=True)):
        reply = court.start()
        row_scores = CourtProcessor(court, input_ids[b : b + 1, :0], record=False)
        for t, (token, inside) in enumerate(zip(row, marks, strict=True)):
            if not inside:
                continue
            scores = torch.zeros(size)
            row_scores._apply(court, court.mask(reply), scores)
            out[b, t] = scores == -torch.inf
            reply = court.step(reply, token)
    return out.to(input_ids.device)


def project(logits: Tensor, forbidden: Tensor, *, gradient: Gradient = "none") -> Tensor:
    """Project logits onto the allowed tokens.

    Args:
        logits: (..., V), any floating dtype.
        forbidden: (..., V) bool, True for a token to forbid.
        gradient: ``"none"``: the result carries no gradient, so an attack by gradients learns nothing from it;
            ``"constant_mask"``: gradients reach the allowed logits, as for a model that trains under the veto.

    Returns:
        `logits` with -inf at forbidden tokens; the others keep their values.

    Raises:
        ValueError: The shapes differ, or `gradient` is unknown.
    """
    if forbidden.shape != logits.shape or forbidden.dtype != torch.bool:
        raise ValueError(
            f"`forbidden`: expected bool of shape {tuple(logits.shape)}, got {forbidden.dtype} of "
            f"{tuple(forbidden.shape)}. Use `veto_mask`."
        )
    if gradient == "none":
        return logits.detach().masked_fill(forbidden, -torch.inf)
    if gradient == "constant_mask":
        return logits.masked_fill(forbidden, -torch.inf)
    raise ValueError(f"`gradient`: expected 'none' or 'constant_mask', got {gradient!r}. Choose one.")
