"""Stretches of one role in a row of tokens, and the pieces of keys that each stretch of queries sees.

Legend: B batch, H query heads, T queries, S keys, R roles.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from rolesafe.attention.problem import Problem

LEAST_AREA = 64 * 64
"""Pairs of tokens in a piece, on average, from which calls on pieces are faster than folding."""

_Cut = Literal["role", "channel", "nowhere"]


@dataclass(frozen=True)
class Piece:
    """Keys of one call.

    Attributes:
        start: First key, in the order of the plan. `stop`: end of the keys.
        diagonal: True where queries and keys are the same tokens, in causal order.
        privileged: True for privileged keys.
        role: Role of the keys; None: several, whose bias is added key by key.
    """

    start: int
    stop: int
    diagonal: bool
    privileged: bool
    role: int | None


@dataclass(frozen=True)
class Stretch:
    """Queries of one role, `start` to `stop`, and the pieces of keys they see."""

    start: int
    stop: int
    role: int
    privileged: bool
    pieces: tuple[Piece, ...]


@dataclass(frozen=True)
class RowPlan:
    """Calls of one batch row.

    Attributes:
        stretches: All queries.
        order: Positions of the visible keys in the order that the pieces refer to; None: as they are.
    """

    stretches: tuple[Stretch, ...]
    order: Tensor | None


def stretches_of(p: Problem, bias: Tensor | None) -> tuple[RowPlan, ...] | None:
    """Return the calls that compute a problem in pieces; None where it has to be folded.

    Args:
        bias: Table of the problem, None where it is known to be zero and to need no gradient.
    """
    if not _is_supported(p):
        return None
    hidden = _hidden(bias)
    if hidden is None:
        return None
    # The gradient of a table needs the mass that a query gives each role; the channels need that of privileged keys.
    learned = bias is not None and bias.requires_grad and torch.is_grad_enabled()
    cut: _Cut = "role" if learned else "channel" if p.needs_privileged else "nowhere"
    key = ("stretches", cut, p.causal, bias is None, hidden)

    def build() -> tuple[RowPlan, ...] | None:
        rows = tuple(_row(p, row, cut, hidden, bias is None) for row in range(p.q.shape[0]))
        pieces = [(x.stop - x.start, piece) for row in rows for x in row.stretches for piece in x.pieces]
        area = sum(length * (x.stop - x.start) // (1 + x.diagonal) for length, x in pieces)
        return rows if area >= LEAST_AREA * len(pieces) else None

    return p.roles.keep_for(p.documents, key, build)


def _is_supported(p: Problem) -> bool:
    if torch.compiler.is_compiling() or p.q.device.type != "cpu" or p.dropout or p.mass_target or p.mask is not None:
        return False
    if torch._C._are_functorch_transforms_active() or torch.autograd.forward_ad._current_level >= 0:
        return False
    length, keys, dim = p.q.shape[2], p.k.shape[2], p.q.shape[3]
    if p.window is not None or p.v.shape[3] != dim or not length or not keys or (p.causal and length > keys):
        return False
    return all(type(x) in (Tensor, torch.nn.Parameter) for x in (p.q, p.k, p.v))


def _hidden(bias: Tensor | None) -> frozenset[tuple[int, int]] | None:
    """Return the pairs of roles that no head sees; None where some heads see one that others do not."""
    if bias is None:
        return frozenset()
    hidden = torch.isneginf(bias.detach())
    everywhere = hidden.all(0)
    if not torch.equal(everywhere, hidden.any(0)):
        return None
    return frozenset((int(i), int(j)) for i, j in everywhere.nonzero().tolist())


def _runs(*of: Tensor) -> list[int]:
    """Return the positions where any of some (N,) tensors changes, with 0 and N."""
    changed = torch.zeros(of[0].shape[0] - 1, dtype=torch.bool)
    for x in of:
        changed |= x[1:] != x[:-1]
    return [0, *(changed.nonzero().flatten() + 1).tolist(), of[0].shape[0]]


def _row(p: Problem, row: int, cut: _Cut, hidden: frozenset[tuple[int, int]], no_bias: bool) -> RowPlan:
    """Return the calls of one batch row.

    Keys of one role that are cut apart are read in one piece if the order of keys allows it, so where pieces are cut by
    role, keys are sorted by it.
    """
    q_roles, k_roles = p.roles.q_roles[row], p.roles.k_roles[row]
    length, keys = q_roles.shape[0], k_roles.shape[0]
    real = torch.ones(keys, dtype=torch.bool) if p.roles.key_mask is None else p.roles.key_mask[row]
    document = torch.zeros(keys, dtype=torch.int64)
    if p.documents is not None:
        document = torch.searchsorted(p.documents.long(), torch.arange(keys), right=True)
    q_cuts, k_cuts = _runs(q_roles), _runs(k_roles, real, document)
    offset = keys - length if p.causal else 0
    if p.causal:  # the same cuts for both, so that a diagonal piece has one role on each side
        q_cuts = sorted({*(x + offset for x in q_cuts), *(x for x in k_cuts if x > offset)})
        k_cuts = sorted({*k_cuts, *q_cuts})
        q_cuts = [x - offset for x in q_cuts]
    starts = torch.tensor(k_cuts[:-1])
    found = zip(k_cuts, k_cuts[1:], *(x[starts].tolist() for x in (document, real, k_roles)), strict=False)
    own = [(doc, k, start, stop) for start, stop, doc, seen, k in found if seen]
    ordered = sorted(own) if cut == "role" else own
    order = torch.cat([torch.arange(start, stop) for *_, start, stop in ordered]) if ordered != own else None
    q_starts = torch.tensor(q_cuts[:-1])
    q_document = (document[q_starts + offset] if p.documents is not None else torch.zeros_like(q_starts)).tolist()
    stretches = []
    for start, stop, role, doc in zip(q_cuts, q_cuts[1:], q_roles[q_starts].tolist(), q_document, strict=False):
        pieces: list[Piece] = []
        at = 0
        for k_doc, k, k_start, k_stop in ordered:
            first = k_start if order is None else at
            at += k_stop - k_start
            if k_doc != doc or (role, k) in hidden or (p.causal and k_start > start + offset):
                continue
            diagonal = p.causal and k_start == start + offset
            piece = Piece(first, first + k_stop - k_start, diagonal, k in p.roles.privileged, None if no_bias else k)
            if pieces and not diagonal and (joined := _join(pieces[-1], piece, cut)) is not None:
                pieces[-1] = joined
            else:
                pieces.append(piece)
        stretches.append(Stretch(start, stop, role, role in p.roles.privileged, tuple(pieces)))
    return RowPlan(tuple(stretches), order)


def _join(a: Piece, b: Piece, cut: _Cut) -> Piece | None:
    """Return two neighbouring pieces as one; None where their keys must be told apart."""
    if (
        a.diagonal
        or a.stop != b.start
        or (cut == "role" and a.role != b.role)
        or (cut == "channel" and a.privileged != b.privileged)
    ):
        return None
    return Piece(a.start, b.stop, False, a.privileged, a.role if a.role == b.role else None)
