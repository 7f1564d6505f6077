"""Greedy coordinate gradient (Zou et al., arXiv 2307.15043) with roles, and with losses that know the defence.

Modelled on nanoGCG (MIT), which passes no roles. Steps, width, top-k, replaced places, buffer, mellowmax alpha and
probe sampling (Zhao et al., arXiv 2403.01251) have its defaults. Where it differs from nanoGCG 0.3.0:

- `early_stop` is on, and asks for the greedy reply to the text that would be sent. There it is off.
- The slot starts from `length` random tokens, drawn from the seed, not from twenty times "x"; see `init`.
- `topk` is at most a quarter of the tokens that the slot may hold.
- Mellowmax is over log-likelihoods, not over raw logits.
- Candidates that do not read back as their tokens are always dropped, in the whole conversation, and so are those with
  the secret: a model that repeats it gave nothing away.
- The result is the best slot of the whole search, the start included.

Legend: L tokens of the slot, V' tokens that it may hold, n candidates.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rolesafe.attacks.gradient.losses import Loss, gradient, losses, make_loss, readable_attention, token_scores
from rolesafe.attacks.gradient.session import Watch, ask_in_text, evaluating, generator_of
from rolesafe.attacks.gradient.target import Target, check_count
from rolesafe.attacks.gradient.victim import Victim
from rolesafe.attacks.replies import role_config
from rolesafe.attacks.search import Found
from rolesafe.config import RoleConfig
from rolesafe.tasks import Example


def gcg(
    model: Any,
    tokenizer: Any,
    example: Example,
    *,
    wanted: str,
    success: str,
    seed: int | str,
    max_new_tokens: int = 16,
    batch_size: int = 128,
    num_steps: int = 250,
    search_width: int = 512,
    topk: int = 256,
    n_replace: int = 1,
    buffer_size: int = 0,
    objective: str = "ce",
    weight: float = 1.0,
    mellowmax_alpha: float = 1.0,
    length: int = 20,
    place: str = "suffix",
    carrier: str = "request",
    init: str | None = None,
    ascii_only: bool = True,
    early_stop: bool = True,
    check_every: int = 10,
    draft: Any = None,
    sampling_factor: int = 16,
    reduction: int = 8,
    prefix_cache: bool = True,
) -> Found:
    """Look for the slot whose tokens make the wanted reply likeliest, one exchanged token per step.

    Args:
        model, tokenizer, example, wanted, success, seed, max_new_tokens, batch_size: As in
            :class:`rolesafe.attacks.search.Search`.
        num_steps: Most steps.
        search_width: Candidates per step.
        topk: Tokens with the steepest gradient that a place of the slot may be changed to; at most a quarter of all,
            since with all of them the gradient would choose nothing.
        n_replace: Places that a candidate changes.
        buffer_size: Number of slots kept; each step goes on from the best. 0: each step goes on from the best
            candidate of the step before, be it worse or not.
        objective, weight, mellowmax_alpha: The loss, see :func:`rolesafe.attacks.gradient.losses.make_loss`.
        length, place, carrier, init, ascii_only: The slot, see :class:`rolesafe.attacks.gradient.target.Target`.
        early_stop: Stop as soon as the greedy reply to the best slot contains `success`.
        check_every: Steps between two replies that are asked for because of that. Where the wanted reply itself has
            become the greedy one, the reply is asked for at once.
        draft: Probe sampling: a smaller model with the same tokenizer. It ranks all candidates; the model itself sees
            a sample of them, and of the rest the fewer the better the two agree on the sample.
        sampling_factor: The sample is one in so many candidates.
        reduction: Where the two do not agree at all, one candidate in half so many is kept; at full agreement one.
        prefix_cache: Keep the keys and values of what candidates have in common. It changes the time, not the result.

    Returns:
        The messages with the lowest loss. `n_queries` does not count what the draft model was run on.

    Raises:
        ValueError: A parameter is not as described, or the slot does not fit into the context.
    """
    counts = {
        "num_steps": num_steps, "search_width": search_width, "topk": topk, "n_replace": n_replace,
        "batch_size": batch_size, "max_new_tokens": max_new_tokens, "check_every": check_every,
        "sampling_factor": sampling_factor, "reduction": reduction,
    }  # fmt: skip
    for name, count in counts.items():
        check_count(name, count)
    check_count("buffer_size", buffer_size, 0)
    loss = make_loss(objective, weight=weight, alpha=mellowmax_alpha)
    generator = generator_of(seed)
    with evaluating(model, draft), readable_attention(model, objective), readable_attention(draft, objective):
        target = Target(
            model, tokenizer, example, wanted=wanted, success=success, length=length, generator=generator, place=place,
            carrier=carrier, init=init, ascii_only=ascii_only, room=max_new_tokens,
        )  # fmt: skip
        if n_replace > len(target.start):
            raise ValueError(f"`n_replace`: expected at most the slot's {len(target.start)} tokens, got {n_replace}")
        victim = Victim(model, target, cached=prefix_cache)
        probe = None if draft is None else Probe.of(draft, model, target, loss, sampling_factor, reduction)
        ask = ask_in_text(victim, tokenizer, max_new_tokens)
        watch = Watch(victim, ask, success, check_every if early_stop else None)
        best, slope = gradient(victim, loss, target.start)
        buffer = _Buffer(buffer_size, best, target.start)
        if buffer_size > 1:
            _fill(buffer, victim, loss, generator, batch_size)
        curve = [buffer.least[0]]
        steps = 0
        while True:
            ids = buffer.ids
            # before the model is asked, which then need not run this slot once more
            if ids is not target.start and steps < num_steps:
                _, slope = gradient(victim, loss, ids)
            if watch.gives_in(buffer.least[1], steps) or steps == num_steps:
                break
            steps += 1
            drawn = draw(ids, token_scores(victim, slope), target.allowed, search_width, topk, n_replace, generator)
            if target.sieving:
                drawn = target.sieve(drawn)
            like = None if objective == "role-shift" else ids  # that one looks at the whole slot
            if probe is None:
                values = losses(victim, loss, drawn, batch_size, like)
            else:
                drawn, values = probe.narrow(victim, drawn, generator, batch_size, like)
            for value, found in target.survivors(drawn, values):
                buffer.add(value, found)
            curve.append(buffer.least[0])
    return Found(
        messages=target.messages(buffer.least[1].tolist()),
        reply=None,
        n_queries=victim.n_queries + watch.n_replies,
        n_steps=steps,
        losses=tuple(curve),
    )


def draw(
    ids: Tensor, scores: Tensor, allowed: Tensor, width: int, topk: int, n_replace: int, generator: torch.Generator
) -> Tensor:
    """Candidates (width, L): `ids` (L,) with `n_replace` places changed to tokens among the `topk` steepest.

    Args:
        ids: The slot.
        scores: (L, V') gradient with respect to the one-hot vectors; the most negative promise most.
        allowed: (V',) ids of the columns of `scores`.
        width: Number of candidates.
        topk: Tokens to choose from at each place; at most a quarter of the V'.
        n_replace: Places changed.
        generator: On the CPU, so that the same seed draws the same everywhere.
    """
    length = len(ids)
    steepest = allowed[(-scores).topk(min(topk, max(1, scores.shape[1] // 4)), dim=1).indices]  # (L, topk)
    places = torch.rand(width, length, generator=generator).argsort(1)[:, :n_replace]
    choice = torch.randint(steepest.shape[1], (width, n_replace), generator=generator)
    places, choice = places.to(ids.device), choice.to(ids.device)
    return ids.repeat(width, 1).scatter_(1, places, steepest[places, choice])


class _Buffer:
    """The slots that the search goes on from, and the best one it has ever seen."""

    def __init__(self, size: int, loss: float, ids: Tensor) -> None:
        self.size = size
        self.held = [(loss, ids)]
        self.least = (loss, ids)

    @property
    def ids(self) -> Tensor:
        """The slot to go on from."""
        return self.held[0][1]

    def add(self, loss: float, ids: Tensor) -> None:
        if loss < self.least[0]:
            self.least = (loss, ids)
        if self.size == 0:
            self.held = [(loss, ids)]
        elif len(self.held) < self.size or loss < self.held[-1][0]:
            self.held = sorted([*self.held, (loss, ids)], key=lambda pair: pair[0])[: self.size]


def _fill(buffer: _Buffer, victim: Victim, loss: Loss, generator: torch.Generator, batch_size: int) -> None:
    """Fill the buffer with other first slots: the one there is, with all tokens drawn anew where that survives."""
    target = victim.target
    rows = torch.randint(len(target.allowed), (buffer.size - 1, len(target.start)), generator=generator)
    drawn = target.allowed[rows.to(target.allowed.device)]
    for value, ids in target.survivors(drawn, losses(victim, loss, drawn, batch_size), len(drawn)):
        buffer.add(value, ids)


@dataclass(frozen=True)
class Probe:
    """Probe sampling: which candidates are worth the model's time."""

    draft: Victim
    loss: Loss
    factor: int
    reduction: int

    @classmethod
    def of(cls, draft: Any, model: Any, target: Target, loss: Loss, factor: int, reduction: int) -> Probe:
        """Checks that `draft` reads the target's tokens and roles as `model` does."""
        size = draft.get_input_embeddings().num_embeddings
        if size != model.get_input_embeddings().num_embeddings:
            raise ValueError(
                f"`draft`: expected a model of the same tokenizer, with {model.get_input_embeddings().num_embeddings} "
                f"token embeddings, got one with {size}"
            )
        own, other = role_config(model) or RoleConfig(), role_config(draft)
        if other is not None and other.roles != own.roles:
            raise ValueError(f"`draft`: expected the roles {own.roles}, got {other.roles}; patch it with the same")
        return cls(Victim(draft, target), loss, factor, reduction)

    def narrow(
        self, victim: Victim, candidates: Tensor, generator: torch.Generator, batch_size: int, like: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Those of `candidates` (n, L) that the model was run on (m, L), and their losses (m,)."""
        n = len(candidates)
        sample = torch.randperm(n, generator=generator)[: max(2, n // self.factor)].to(candidates.device)
        sampled = losses(victim, self.loss, candidates[sample], batch_size, like)
        drafted = losses(self.draft, self.loss, candidates, batch_size, like)
        agreement = (1 + rank_correlation(sampled, drafted[sample])) / 2
        count = max(1, min(n, int((1 - agreement) * n / self.reduction)))
        chosen = drafted.topk(count, largest=False).indices
        return (
            candidates[torch.cat([sample, chosen])],
            torch.cat([sampled, losses(victim, self.loss, candidates[chosen], batch_size, like)]),
        )


def rank_correlation(x: Tensor, y: Tensor) -> float:
    """Spearman's, of (n,) and (n,), without regard to ties; -1 for fewer than two."""
    if len(x) < 2:
        return -1.0
    ranks = torch.stack([v.argsort().argsort().double() for v in (x, y)])
    centred = ranks - ranks.mean(1, keepdim=True)
    return float((centred[0] * centred[1]).sum() / (centred.norm(dim=1).prod()))
