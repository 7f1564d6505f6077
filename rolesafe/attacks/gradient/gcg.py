"""Greedy coordinate gradient (Zou et al., arXiv 2307.15043) with roles, and with losses that know the defence.

Modelled on nanoGCG (MIT), which passes no roles. Steps, width, top-k, replaced tokens, buffer, mellowmax alpha and
probe sampling (Zhao et al., arXiv 2403.01251) have its defaults. Differences to nanoGCG 0.3.0:

- `early_stop` is on by default, and asks for the greedy reply to the text.
- The slot starts from `length` random tokens, drawn from the seed, instead of twenty times "x"; see `init`.
- `topk` is at most a quarter of the allowed tokens.
- Mellowmax is over log-likelihoods instead of raw logits.
- Candidates that do not encode to their own tokens in the whole conversation are always dropped, and so are those with
  the secret, since a model that repeats it has not leaked it.
- The result is the best slot of the whole search, including the start.

Legend: L tokens of the slot, V' allowed tokens, n candidates.
"""

from __future__ import annotations

import functools
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from rolesafe.attacks.gradient.losses import gradient, losses, readable_attention, token_scores
from rolesafe.attacks.gradient.session import Session, session
from rolesafe.attacks.gradient.victim import Victim
from rolesafe.attacks.replies import role_config
from rolesafe.attacks.search import Found, SearchContext
from rolesafe.config import RoleConfig
from rolesafe.patching.loading import read_model
from rolesafe.patching.modes import evaluating

if TYPE_CHECKING:
    from rolesafe.attacks.gradient.config import GCGConfig

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def gcg(context: SearchContext, config: GCGConfig) -> Found:
    """Exchange tokens of the slot step by step and return the slot that makes the wanted reply most likely.

    Raises:
        ValueError: The draft does not fit the model, `n_replace` is too large, or as
            :func:`rolesafe.attacks.gradient.session.session`.
    """
    model, draft = context.model, context.draft
    if draft is None and config.draft:
        draft = _read_draft(config.draft, str(model.device))
    with ExitStack() as stack:
        if draft is not None:
            stack.enter_context(evaluating(draft))
            stack.enter_context(readable_attention(draft, config.objective))
        run = stack.enter_context(session(context, config, cached=config.prefix_cache))
        victim, target = run.victim, run.target
        if config.n_replace > len(target.start):
            raise ValueError(
                f"`n_replace`: expected at most the slot's {len(target.start)} tokens, got {config.n_replace}"
            )
        probe = None if draft is None else Probe.of(draft, run, config)
        best, slope = gradient(victim, run.loss, target.start)
        buffer = _Buffer(config.buffer_size, best, target.start)
        if config.buffer_size > 1:
            _fill(buffer, run)
        curve = [buffer.least[0]]
        steps = 0
        while True:
            ids = buffer.ids
            # before the reply is asked for, which then need not run this slot again
            if ids is not target.start and steps < config.num_steps:
                _, slope = gradient(victim, run.loss, ids)
            if run.watch.gives_in(buffer.least[1], steps) or steps == config.num_steps:
                break
            steps += 1
            scores = token_scores(victim, slope)
            drawn = draw(ids, scores, target.allowed, config.search_width, config.topk, config.n_replace, run.generator)
            if target.sieving:
                drawn = target.sieve(drawn)
            like = None if config.objective == "role-shift" else ids  # "role-shift" needs the whole slot
            if probe is None:
                values = run.losses(drawn, like)
            else:
                drawn, values = probe.narrow(run, drawn, like)
            for value, found in target.survivors(drawn, values):
                buffer.add(value, found)
            curve.append(buffer.least[0])
            run.log(steps, config.num_steps, buffer.least[0])
    return Found(
        messages=target.messages(buffer.least[1].tolist()),
        reply=None,
        n_queries=run.n_queries,
        n_steps=steps,
        losses=tuple(curve),
    )


@functools.lru_cache(maxsize=1)
def _read_draft(path: str, device: str) -> PreTrainedModel:
    try:
        return read_model(path).to(device)
    except ValueError as error:
        raise ValueError(f"`draft`: {error}") from error


def draw(
    ids: Tensor, scores: Tensor, allowed: Tensor, width: int, topk: int, n_replace: int, generator: torch.Generator
) -> Tensor:
    """Return candidates (width, L): `ids` (L,) with `n_replace` tokens exchanged for some of the `topk` steepest.

    Args:
        ids: (L,) int64, the slot.
        scores: (L, V') gradient with respect to the one-hot vectors; the most negative tokens lower the loss most.
        allowed: (V',) int64, token ids of the columns of `scores`.
        width: Number of candidates.
        topk: Tokens to choose from at each position; at most a quarter of the V'.
        n_replace: Number of exchanged tokens.
        generator: A generator on the CPU, so that equal seeds draw the same on every device.
    """
    length = len(ids)
    steepest = allowed[(-scores).topk(min(topk, max(1, scores.shape[1] // 4)), dim=1).indices]  # (L, topk)
    places = torch.rand(width, length, generator=generator).argsort(1)[:, :n_replace]
    choice = torch.randint(steepest.shape[1], (width, n_replace), generator=generator)
    places, choice = places.to(ids.device), choice.to(ids.device)
    return ids.repeat(width, 1).scatter_(1, places, steepest[places, choice])


class _Buffer:
    """Hold the slots to continue from, and the best slot of the whole search."""

    def __init__(self, size: int, loss: float, ids: Tensor) -> None:
        self.size = size
        self.held = [(loss, ids)]
        self.least = (loss, ids)

    @property
    def ids(self) -> Tensor:
        """Return the slot (L,) to continue from."""
        return self.held[0][1]

    def add(self, loss: float, ids: Tensor) -> None:
        if loss < self.least[0]:
            self.least = (loss, ids)
        if self.size == 0:
            self.held = [(loss, ids)]
        elif len(self.held) < self.size or loss < self.held[-1][0]:
            self.held = sorted([*self.held, (loss, ids)], key=lambda pair: pair[0])[: self.size]


def _fill(buffer: _Buffer, run: Session) -> None:
    """Fill the buffer with other first slots, all tokens drawn anew, as far as they survive."""
    target = run.target
    rows = torch.randint(len(target.allowed), (buffer.size - 1, len(target.start)), generator=run.generator)
    drawn = target.allowed[rows.to(target.allowed.device)]
    for value, ids in target.survivors(drawn, run.losses(drawn), len(drawn)):
        buffer.add(value, ids)


@dataclass(frozen=True)
class Probe:
    """Select candidates with a draft model (probe sampling).

    Attributes:
        draft: The draft model, with the target of the model.
        factor, reduction: See `sampling_factor` and `reduction` of :class:`GCGConfig`.
    """

    draft: Victim
    factor: int
    reduction: int

    @classmethod
    def of(cls, draft: PreTrainedModel, run: Session, config: GCGConfig) -> Probe:
        """Return a probe.

        Raises:
            ValueError: `draft` has another number of token embeddings or other roles than the model.
        """
        model = run.victim.model
        size, own_size = (m.get_input_embeddings().num_embeddings for m in (draft, model))
        if size != own_size:
            raise ValueError(
                f"`draft`: expected a model of the same tokenizer, with {own_size} token embeddings, got one with "
                f"{size}"
            )
        own, other = role_config(model) or RoleConfig(), role_config(draft)
        if other is not None and other.roles != own.roles:
            raise ValueError(f"`draft`: expected the roles {own.roles}, got {other.roles}. Patch it with the same.")
        return cls(Victim(draft, run.target), config.sampling_factor, config.reduction)

    def narrow(self, run: Session, candidates: Tensor, like: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return those of `candidates` (n, L) that the model was run on (m, L), and their losses (m,)."""
        n = len(candidates)
        sample = torch.randperm(n, generator=run.generator)[: max(2, n // self.factor)].to(candidates.device)
        sampled = run.losses(candidates[sample], like)
        drafted = losses(self.draft, run.loss, candidates, run.batch_size, like)
        agreement = (1 + rank_correlation(sampled, drafted[sample])) / 2
        count = max(1, min(n, int((1 - agreement) * n / self.reduction)))
        chosen = drafted.topk(count, largest=False).indices
        return (
            candidates[torch.cat([sample, chosen])],
            torch.cat([sampled, run.losses(candidates[chosen], like)]),
        )


def rank_correlation(x: Tensor, y: Tensor) -> float:
    """Return Spearman's rank correlation of (n,) and (n,), ignoring ties; -1 for n < 2."""
    if len(x) < 2:
        return -1.0
    ranks = torch.stack([v.argsort().argsort().double() for v in (x, y)])
    centred = ranks - ranks.mean(1, keepdim=True)
    return float((centred[0] * centred[1]).sum() / (centred.norm(dim=1).prod()))
