"""Soft prompts by projected gradient descent (Schwinn et al., arXiv 2402.09063): an upper bound of text attacks.

The slot holds embeddings instead of tokens, which a user cannot type. A model that fails here may still resist text.
One that resists here is not proven to resist text: descent from one start may miss.

Legend: L tokens of the slot, d hidden size.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from rolesafe.attacks.gradient.session import Ask, session
from rolesafe.attacks.gradient.victim import Victim
from rolesafe.attacks.replies import end_ids
from rolesafe.attacks.search import Found, SearchContext
from rolesafe.roles.encoding import padding_id

if TYPE_CHECKING:
    from rolesafe.attacks.gradient.config import SoftPromptConfig

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def pgd(context: SearchContext, config: SoftPromptConfig) -> Found:
    """Move the embeddings of the slot down the gradient of the loss, and return the reply to the best ones.

    Returns:
        A result with ``typed=False``. Its messages hold the tokens that the slot started from.

    Raises:
        ValueError: As :func:`rolesafe.attacks.gradient.session.session`.
    """
    with session(context, config, ask=ask_in_embeddings) as run:
        victim, target = run.victim, run.target
        embed = victim.model.get_input_embeddings()
        with torch.no_grad():
            table = embed(target.allowed).float()
            unit = float(table.square().mean().sqrt())
            radius = config.eps * (float(table.norm(dim=-1).mean()) if config.norm == "l2" else unit)
            start = embed(target.start).float()
        soft = start.clone().requires_grad_()
        adam = torch.optim.Adam([soft], lr=config.step_size * unit)
        best, least, steps = start.to(embed.weight.dtype), math.inf, 0
        curve: list[float] = []
        while True:
            here = soft.detach().to(embed.weight.dtype, copy=True)
            with torch.enable_grad(), victim.reading(here):
                value = run.loss(victim, soft[None].to(embed.weight.dtype))[0]
                (soft.grad,) = torch.autograd.grad(value, soft)
            if float(value.detach()) < least:
                best, least = here, float(value.detach())
            curve.append(least)
            if run.watch.gives_in(best, steps) or steps == config.num_steps:
                break
            steps += 1
            if config.method == "adam":
                adam.step()
            with torch.no_grad():
                if config.method == "sign":
                    soft -= config.step_size * unit * soft.grad.sign()
                soft.copy_(start + _project(soft - start, config.norm, radius))
            run.log(steps, config.num_steps, least)
        reply = run.ask(best)
    return Found(
        messages=target.messages(target.start.tolist()),
        reply=reply,
        n_queries=run.n_queries + 1,
        n_steps=steps,
        losses=tuple(curve),
        typed=False,
    )


def ask_in_embeddings(victim: Victim, tokenizer: PreTrainedTokenizerBase, max_new_tokens: int) -> Ask:
    """Return a function that returns the greedy reply to a slot of embeddings (L, d)."""
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
    """Return the point of the ball nearest to `shift` (L, d)."""
    if norm == "linf":
        return shift.clamp(-radius, radius)
    if norm == "l2":
        return shift * (radius / shift.norm(dim=-1, keepdim=True).clamp_min(1e-12)).clamp_max(1)
    return shift
