"""Soft prompts by projected gradient descent (Schwinn et al., arXiv 2402.09063): a stronger attacker than any text.

The slot is made of embeddings instead of tokens, which nobody can type. A model that falls here may still hold against
text. One that holds here is not proven to hold against text: descent has one start and may miss.

Legend: L tokens of the slot, d hidden size.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from rolesafe.attacks.gradient.losses import make_loss, readable_attention
from rolesafe.attacks.gradient.session import Watch, evaluating, generator_of
from rolesafe.attacks.gradient.target import Target, check_count, check_number
from rolesafe.attacks.gradient.victim import Victim
from rolesafe.attacks.replies import end_ids
from rolesafe.attacks.search import Found
from rolesafe.roles.encoding import padding_id
from rolesafe.tasks import Example

METHODS = ("adam", "sign")
NORMS = ("none", "l2", "linf")


def pgd(
    model: Any,
    tokenizer: Any,
    example: Example,
    *,
    wanted: str,
    success: str,
    seed: int | str,
    max_new_tokens: int = 16,
    batch_size: int = 128,
    num_steps: int = 100,
    step_size: float = 0.1,
    method: str = "adam",
    norm: str = "none",
    eps: float = 1.0,
    objective: str = "ce",
    weight: float = 1.0,
    mellowmax_alpha: float = 1.0,
    length: int = 20,
    place: str = "suffix",
    carrier: str = "request",
    init: str | None = None,
    early_stop: bool = True,
    check_every: int = 10,
) -> Found:
    """Move the embeddings of the slot down the gradient of the loss.

    Args:
        model, tokenizer, example, wanted, success, seed, max_new_tokens: As in
            :class:`rolesafe.attacks.search.Search`.
        batch_size: Not used: there is one sequence.
        num_steps: Most steps.
        step_size: In root mean squares of an embedding's entries over the vocabulary.
        method: ``"adam"``, or ``"sign"``: steps of `step_size` along the gradient's sign.
        norm: ``"none"``: anywhere; ``"l2"``: each token within `eps` mean embedding norms of its first one;
            ``"linf"``: each entry within `eps` root mean squares of an entry.
        eps: Radius, for `norm`.
        objective, weight, mellowmax_alpha: The loss, see :func:`rolesafe.attacks.gradient.losses.make_loss`.
        length, place, carrier, init: The slot and what it starts from, see
            :class:`rolesafe.attacks.gradient.target.Target`.
        early_stop, check_every: As in :func:`rolesafe.attacks.gradient.gcg.gcg`.

    Returns:
        ``typed=False``, with the reply to the embeddings of the lowest loss. The messages hold the tokens that the
        slot started from.

    Raises:
        ValueError: A parameter is not as described, or the slot does not fit into the context.
    """
    for name, count in (
        ("num_steps", num_steps), ("max_new_tokens", max_new_tokens), ("check_every", check_every),
        ("batch_size", batch_size),
    ):  # fmt: skip
        check_count(name, count)
    check_number("step_size", step_size)
    check_number("eps", eps)
    if method not in METHODS:
        raise ValueError(f"`method`: expected one of {METHODS}, got {method!r}")
    if norm not in NORMS:
        raise ValueError(f"`norm`: expected one of {NORMS}, got {norm!r}")
    loss = make_loss(objective, weight=weight, alpha=mellowmax_alpha)
    with evaluating(model), readable_attention(model, objective):
        target = Target(
            model, tokenizer, example, wanted=wanted, success=success, length=length, generator=generator_of(seed),
            place=place, carrier=carrier, init=init, room=max_new_tokens,
        )  # fmt: skip
        victim = Victim(model, target)
        ask = ask_in_embeddings(victim, tokenizer, max_new_tokens)
        watch = Watch(victim, ask, success, check_every if early_stop else None)
        embed = model.get_input_embeddings()
        with torch.no_grad():
            table = embed(target.allowed).float()
            unit = float(table.square().mean().sqrt())
            radius = eps * (float(table.norm(dim=-1).mean()) if norm == "l2" else unit)
            start = embed(target.start).float()
        soft = start.clone().requires_grad_()
        adam = torch.optim.Adam([soft], lr=step_size * unit)
        best, least, steps = start.to(embed.weight.dtype), math.inf, 0
        curve: list[float] = []
        while True:
            here = soft.detach().to(embed.weight.dtype, copy=True)
            with torch.enable_grad(), victim.reading(here):
                value = loss(victim, soft[None].to(embed.weight.dtype))[0]
                (soft.grad,) = torch.autograd.grad(value, soft)
            if float(value.detach()) < least:
                best, least = here, float(value.detach())
            curve.append(least)
            if watch.gives_in(best, steps) or steps == num_steps:
                break
            steps += 1
            if method == "adam":
                adam.step()
            with torch.no_grad():
                if method == "sign":
                    soft -= step_size * unit * soft.grad.sign()
                soft.copy_(start + _project(soft - start, norm, radius))
        reply = ask(best)
    return Found(
        messages=target.messages(target.start.tolist()),
        reply=reply,
        n_queries=victim.n_queries + watch.n_replies + 1,
        n_steps=steps,
        losses=tuple(curve),
        typed=False,
    )


def ask_in_embeddings(victim: Victim, tokenizer: Any, max_new_tokens: int) -> Callable[[Tensor], str]:
    """The greedy reply to a slot of embeddings (L, d)."""
    model, target = victim.model, victim.target
    ends = end_ids(model, tokenizer)

    def ask(soft: Tensor) -> str:
        with torch.no_grad():
            embed = model.get_input_embeddings()
            whole = torch.cat([embed(target.before), soft, embed(target.after)])[None]
            roles = victim.role_ids(len(soft))[:, : whole.shape[1]]
            output = model.generate(
                inputs_embeds=whole,
                attention_mask=torch.ones_like(roles),
                max_new_tokens=max_new_tokens,
                do_sample=False,
                use_cache=True,
                eos_token_id=ends or None,
                pad_token_id=padding_id(tokenizer),
                **({"role_ids": roles} if victim.patched else {}),
            )
        ids = output[0].tolist()
        ids = ids[: next((k for k, i in enumerate(ids) if i in ends), len(ids))]
        text: str = tokenizer.decode(ids, skip_special_tokens=True)
        return text.strip()

    return ask


def _project(shift: Tensor, norm: str, radius: float) -> Tensor:
    """The nearest point to `shift` (L, d) in the ball."""
    if norm == "linf":
        return shift.clamp(-radius, radius)
    if norm == "l2":
        return shift * (radius / shift.norm(dim=-1, keepdim=True).clamp_min(1e-12)).clamp_max(1)
    return shift
