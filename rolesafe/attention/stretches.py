"""Blocks of keys that are read in one call, and the queries that read them.

Legend: B batch, H query heads, T queries, S keys, R roles.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from rolesafe.attention.problem import Problem

LEAST_AREA = 64 * 512
"""Pairs of tokens of a call, on average, from which calls on blocks of keys are faster than folding."""
_ONE_CHANNEL = 8
"""Factor of that in training without a privileged channel: folding is one call then, forward and backward."""


class Call(NamedTuple):
    """Queries `start` to `stop` that read a block of keys.

    `diagonal`: query i of the call sees the keys up to i of the block. Otherwise each query sees all of them.
    """

    start: int
    stop: int
    diagonal: bool


@dataclass(frozen=True)
class Block:
    """Keys that are read together.

    Attributes:
        runs: First key and end of each unbroken run.
        privileged: True for privileged keys.
        role: Role of the keys; None: several, whose bias is added key by key, or no bias.
        calls: Queries that read the keys, counted from the stretch; no query is in two of them.
    """

    runs: tuple[tuple[int, int], ...]
    privileged: bool
    role: int | None
    calls: tuple[Call, ...]


@dataclass(frozen=True)
class Stretch:
    """Queries `start` to `stop`, of one role or of any (None), and the keys they read, those of a role in sequence."""

    start: int
    stop: int
    role: int | None
    blocks: tuple[Block, ...]


Plan = tuple[tuple[Stretch, ...], ...]
"""Stretches of each batch row."""


def learns(p: Problem, bias: Tensor | None) -> bool:
    """Return True where a backward pass may follow."""
    return torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in (p.q, p.k, p.v, bias, p.share))


def stretches_of(p: Problem, bias: Tensor | None) -> Plan | None:
    """Return the calls that compute a problem; None where it has to be folded.

    With a backward pass, or without a bias, a row is one stretch: a run of keys is read by all later queries in one
    call, so each key has its gradient from one call. Else there is a stretch for each run of queries of one role, which
    reads the keys before it in one call: fewer outputs to put together.

    Args:
        bias: Table of the problem, None where it is known to be zero and to need no gradient.
    """
    if not _is_supported(p):
        return None
    hidden = _hidden(bias)
    if hidden is None:
        return None
    privileged_only = p.dedicated == p.q.shape[1]
    by_query = bias is not None and not learns(p, bias)
    key = ("stretches", p.causal, bias is None, hidden, p.integrity, privileged_only, by_query, p.needs_privileged)

    def build() -> Plan | None:
        found = (_row(p, row, hidden, bias is None, privileged_only) for row in range(p.q.shape[0]))
        length = p.q.shape[2]
        rows = tuple(
            _by_query(blocks, q_roles, p.needs_privileged) if by_query else (Stretch(0, length, None, blocks),)
            for blocks, q_roles in zip(found, p.roles.q_roles, strict=True)
        )
        areas = [
            (call.stop - call.start) * sum(stop - start for start, stop in block.runs)
            for row in rows
            for stretch in row
            for block in stretch.blocks
            for call in block.calls
        ]
        needs_mask = p.documents is not None or (p.causal and length != p.k.shape[2])  # of pairs, if folded
        folds_in_one = not (by_query or p.needs_privileged or needs_mask)
        least = LEAST_AREA * (_ONE_CHANNEL if folds_in_one else 1)
        return rows if sum(areas) >= least * len(areas) else None

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


def _row(
    p: Problem, row: int, hidden: frozenset[tuple[int, int]], no_bias: bool, privileged_only: bool
) -> tuple[Block, ...]:
    """Return the blocks of one batch row.

    Positions are those of keys. A run of keys is read by all later queries in one call, whatever their roles are: on
    them depends what is added to a row of the log-sum-exp, and nothing else.
    """
    q_roles, k_roles = p.roles.q_roles[row], p.roles.k_roles[row]
    length, keys = q_roles.shape[0], k_roles.shape[0]
    offset = keys - length if p.causal else 0
    special = set(p.roles.privileged)
    kinds = torch.isin(k_roles, torch.tensor(p.roles.privileged, dtype=k_roles.dtype)).long() if no_bias else k_roles
    real = torch.ones(keys, dtype=torch.bool) if p.roles.key_mask is None else p.roles.key_mask[row]
    document, edges = torch.zeros(keys, dtype=torch.int64), [0, max(keys, length)]
    if p.documents is not None:
        document = torch.searchsorted(p.documents.long(), torch.arange(keys), right=True)
        edges = sorted({*edges, *p.documents.tolist()})
    cuts = _runs(kinds, real, document)
    firsts = torch.tensor(cuts[:-1])
    readers: dict[int, list[tuple[int, int]]] = {}
    found: dict[object, Block] = {}
    for first, last, kind, seen in zip(cuts, cuts[1:], kinds[firsts].tolist(), real[firsts].tolist(), strict=False):
        privileged = bool(kind) if no_bias else kind in special
        if not seen or (privileged_only and not privileged):
            continue
        if kind not in readers:
            blind = {i for i, j in hidden if j == kind} | (special if p.integrity and not privileged else set())
            readers[kind] = [(a + offset, b + offset) for a, b in _spans_without(q_roles, blind)]
        low, high = _document(edges, first)
        low = max(low, first) if p.causal else low
        spans = [(max(a, low), min(b, high)) for a, b in readers[kind] if max(a, low) < min(b, high)]
        within = sorted({first, last, *(a for a, _ in spans if p.causal and first < a < last)})
        for start, stop in pairwise(within):
            calls = tuple(
                Call(max(a, start) - offset if p.causal else a, b - offset, p.causal and a < stop)
                for a, b in spans
                if not p.causal or b > start
            )
            if not calls:
                continue
            # Keys that the same queries see in full are read together, wherever they are.
            alike = (kind, calls) if not any(call.diagonal for call in calls) else start
            runs = found[alike].runs if alike in found else ()
            found[alike] = Block((*runs, (start, stop)), privileged, None if no_bias else kind, calls)
    begins: dict[object, int] = {}
    for block in found.values():
        begins.setdefault(block.role if block.role is not None else block.privileged, block.runs[0][0])
    order = {kind: at for at, kind in enumerate(sorted(begins, key=lambda kind: begins[kind]))}
    return tuple(sorted(found.values(), key=lambda x: order[x.role if x.role is not None else x.privileged]))


def _by_query(blocks: tuple[Block, ...], roles: Tensor, by_channel: bool) -> tuple[Stretch, ...]:
    """Return the stretches of one role of a row, given its blocks by role.

    Args:
        roles: Of the queries (T,).
        by_channel: Keys of both channels are told apart.
    """
    calls = [call for block in blocks for call in block.calls]
    cuts = sorted({*_runs(roles), *(x for call in calls for x in (call.start, call.stop))})
    return tuple(Stretch(a, b, int(roles[a]), _read(blocks, a, b, by_channel)) for a, b in pairwise(cuts))


def _read(blocks: tuple[Block, ...], start: int, stop: int, by_channel: bool) -> tuple[Block, ...]:
    """Return the keys that the queries from `start` to `stop` read, in as few blocks as possible."""
    found: list[tuple[int, int, bool, bool, int | None]] = []
    for block in blocks:
        privileged = block.privileged and by_channel
        for first, last in block.runs:
            for call in block.calls:
                if not call.start <= start < call.stop:
                    continue
                seen = min(first + start - call.start, last) if call.diagonal else last
                if first < seen:
                    found.append((first, seen, privileged, False, block.role))
                if seen < last:
                    found.append((seen, min(last, seen + stop - start), privileged, True, block.role))
    joined: list[tuple[int, int, bool, bool, int | None]] = []
    for one in sorted(found, key=lambda x: x[:2]):
        before = joined[-1] if joined else None
        if before is not None and before[1:4] == (one[0], one[2], False) and not one[3]:
            joined[-1] = (before[0], one[1], one[2], False, one[4] if before[4] == one[4] else None)
        else:
            joined.append(one)
    length = stop - start
    return tuple(
        Block(((a, b),), special, role, (Call(0, length, diagonal),)) for a, b, special, diagonal, role in joined
    )


def _spans_without(roles: Tensor, without: set[int]) -> list[tuple[int, int]]:
    """Return the unbroken spans of tokens (N,) of other roles."""
    kept = ~torch.isin(roles, torch.tensor(sorted(without), dtype=roles.dtype))
    cuts = _runs(kept)
    return [(a, b) for a, b in pairwise(cuts) if kept[a]]


def _document(edges: list[int], position: int) -> tuple[int, int]:
    """Return the first position and the end of the document around a position."""
    after = bisect_right(edges, position)
    return edges[after - 1], edges[after]
