"""Objectives of gradient attacks: the loss of the wanted reply, and terms against role-aware attention.

Legend: n candidates, L tokens of the slot, W tokens of the reply, H query heads, T queries, S keys, d hidden size.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, get_args

import torch
from torch import Tensor

from rolesafe.attacks.gradient.objective import Objective
from rolesafe.attacks.gradient.victim import Victim
from rolesafe.attention import Problem, RoleIndex
from rolesafe.attention.reference import reference_mass
from rolesafe.patching import is_patched
from rolesafe.patching.observe import observing

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Loss = Callable[[Victim, Tensor], Tensor]
"""Maps a slot, (n, L) ids or (n, L, d) embeddings, to the losses (n,), in fp32 or wider."""

OBJECTIVES: tuple[Objective, ...] = get_args(Objective)


def make_loss(objective: Objective, *, weight: float = 1.0, alpha: float = 1.0) -> Loss:
    """Return the loss of that name.

    Args:
        objective: ``"ce"``: mean negative log-likelihood of the wanted tokens. ``"mellowmax"``: their mellowmax, a
            smooth maximum that weights the worst token most. ``"attention"``: ``"ce"`` minus the attention mass of the
            reply on the slot (AttnGCG, arXiv 2410.09040). ``"role-shift"``: ``"ce"`` plus the distance of the slot's
            hidden states to those of the same tokens in the most privileged role. Equal to ``"ce"`` on a model without
            roles.
        weight: Weight of the term that is added to ``"ce"``, >= 0.
        alpha: Sharpness of ``"mellowmax"``, > 0: towards 0 the mean, towards infinity the maximum.

    Raises:
        ValueError: `objective` is unknown.
    """
    if objective == "ce":
        return lambda victim, slot: reply_loss(victim, victim.forward(slot))
    if objective == "mellowmax":
        return lambda victim, slot: reply_loss(victim, victim.forward(slot), alpha)
    if objective == "attention":
        return lambda victim, slot: attention_loss(victim, slot, weight)
    if objective == "role-shift":
        return lambda victim, slot: role_shift_loss(victim, slot, weight)
    raise ValueError(f"`objective`: expected one of {OBJECTIVES}, got {objective!r}")


@contextmanager
def readable_attention(model: PreTrainedModel, objective: Objective) -> Iterator[None]:
    """Compute the attention of a plain model eagerly within the context if the objective ``"attention"`` reads it."""
    if objective != "attention" or is_patched(model):
        yield
        return
    before = model.config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        yield
    finally:
        model.set_attn_implementation(before)


def reply_loss(victim: Victim, output: Any, alpha: float | None = None) -> Tensor:
    """Return the mean negative log-likelihood (n,) of the wanted tokens, or with `alpha` their mellowmax.

    Mellowmax is ``log(mean(exp(alpha x))) / alpha`` (Asadi and Littman, arXiv 1612.05628).
    """
    wanted = victim.target.wanted
    scores = torch.log_softmax(_wide(victim.reply_logits(output)), dim=-1)
    missing = -scores.gather(-1, wanted[None, :, None].expand(len(scores), -1, 1)).squeeze(-1)  # (n, W)
    if alpha is None:
        return missing.mean(-1)
    return (torch.logsumexp(alpha * missing, dim=-1) - math.log(missing.shape[1])) / alpha


def attention_loss(victim: Victim, slot: Tensor, weight: float) -> Tensor:
    """Return ``"ce"`` minus `weight` times the mass on the slot, mean over layers, heads and reply tokens: (n,)."""
    masses: list[Tensor] = []
    count, length = len(victim.target.wanted), slot.shape[1]
    first = len(victim.target.before)

    def see(module: Any, problem: Problem) -> None:
        # Only the last queries predict the reply; causal order is aligned at the bottom right, so they suffice.
        masses.append(_on_slot(reference_mass(_last_queries(problem, count)), first, length))

    if victim.patched:
        with observing(victim.model, see):
            output = victim.forward(slot)
    else:
        output = victim.forward(slot, output_attentions=True)
        attentions = [mass for mass in output.attentions or () if mass is not None]
        masses += [_on_slot(mass[:, :, -count:], first, length) for mass in attentions]
    if not masses:
        raise ValueError(
            "`objective`: expected a model with readable attention for 'attention', got "
            f"{type(victim.model).__name__}. Use another objective."
        )
    return reply_loss(victim, output) - weight * torch.stack(masses).mean(0)


def role_shift_loss(victim: Victim, slot: Tensor, weight: float) -> Tensor:
    """Return ``"ce"`` plus `weight` times the distance of the slot's hidden states to those in a privileged role: (n,).

    The distance is the cosine distance, mean over layers and slot tokens; the role is the most privileged one.
    """
    if not victim.patched:
        return reply_loss(victim, victim.forward(slot))
    privileged = victim.model.rolesafe_config.privileged_ids
    if not privileged:
        raise ValueError(
            "`objective`: expected a model with a privileged role for 'role-shift', got one without. Use 'ce'."
        )
    output = victim.forward(slot, output_hidden_states=True)
    like = victim.forward(slot, role=privileged[0], whole=False, output_hidden_states=True)
    start, length = (0 if victim.is_cached else len(victim.target.before)), slot.shape[1]
    distances = [
        1 - torch.cosine_similarity(own[:, start : start + length], other[:, start : start + length], dim=-1).mean(-1)
        for own, other in zip(output.hidden_states[1:], like.hidden_states[1:], strict=True)
    ]
    return reply_loss(victim, output) + weight * _wide(torch.stack(distances).mean(0))


def losses(victim: Victim, loss: Loss, candidates: Tensor, batch_size: int, like: Tensor | None = None) -> Tensor:
    """Return `loss` (n,) of `candidates` (n, L), `batch_size` at a time, without gradients.

    Args:
        victim: The model with its target.
        loss: The loss to compute.
        candidates: (n, L) int64 slots.
        batch_size: Maximum number of candidates in a batch.
        like: A slot (L,) that most candidates differ from in one or two tokens: candidates with the same beginning
            share a batch, and the tokens shared with `like` are not run again. Or slots (k, L'), one of which is the
            beginning of each candidate: these are not run again.
    """
    with torch.inference_mode():
        if like is None:
            return torch.cat([loss(victim, batch) for batch in torch.split(candidates, batch_size)])
        if like.ndim == 2:
            length = like.shape[1]
            rows = (candidates[:, None, :length] == like).all(-1).int().argmax(1)
            found = []
            with victim.knowing(like) as share:
                for batch, own in zip(*(torch.split(x, batch_size) for x in (candidates, rows)), strict=True):
                    share(length, own)
                    found.append(loss(victim, batch))
            return torch.cat(found)
        first, order = torch.sort((candidates != like).int().argmax(1), stable=True)
        starts = first[::batch_size].tolist()
        found = []
        with victim.knowing(like) as share:
            for start, batch in zip(starts, torch.split(order, batch_size), strict=True):
                share(start)
                found.append(loss(victim, candidates[batch]))
        values = torch.cat(found)
        return torch.empty_like(values).scatter_(0, order, values)


def gradient(victim: Victim, loss: Loss, ids: Tensor) -> tuple[float, Tensor]:
    """Return the loss of the slot `ids` (L,), and its gradient (L, d) with respect to the slot's input embeddings.

    The gradient with respect to one-hot vectors is this one times the embeddings, see :func:`token_scores`.
    """
    with torch.enable_grad(), victim.reading(ids):
        embeddings = victim.model.get_input_embeddings()(ids).detach()[None].requires_grad_()
        value = loss(victim, embeddings)[0]
        (found,) = torch.autograd.grad(value, embeddings)
    return float(value.detach()), found[0]


def token_scores(victim: Victim, slopes: Tensor) -> Tensor:
    """Return the gradient (L, V') with respect to the one-hot vectors of the slot, for the allowed tokens."""
    with torch.no_grad():
        table = victim.model.get_input_embeddings()(victim.target.allowed)
        return slopes @ table.to(slopes.dtype).T


def _on_slot(mass: Tensor, first: int, length: int) -> Tensor:
    """Return the part (n,) of a mass (n, H, W, S) that is on the slot, mean over heads and queries."""
    return _wide(mass[..., first : first + length].sum(-1).mean((1, 2)))


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _last_queries(problem: Problem, count: int) -> Problem:
    """Return the problem of the last `count` queries."""
    roles = problem.roles
    return dataclasses.replace(
        problem,
        q=problem.q[:, :, -count:],
        roles=RoleIndex(roles.q_roles[:, -count:], roles.k_roles, roles.privileged, roles.key_mask),
        mask=None if problem.mask is None else problem.mask[..., -count:, :],
        dropout=0.0,
    )
