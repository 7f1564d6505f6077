"""BEAST (Sadasivan et al., arXiv 2402.15570): a text that the model itself would write, chosen by beam search.

Legend: L tokens of the slot, V' tokens that it may hold, k beams.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from rolesafe.attacks.gradient.losses import losses, make_loss, readable_attention
from rolesafe.attacks.gradient.session import Watch, ask_in_text, evaluating, generator_of
from rolesafe.attacks.gradient.target import Target, check_count, check_number
from rolesafe.attacks.gradient.victim import Victim
from rolesafe.attacks.search import CannotSearch, Found
from rolesafe.tasks import Example


def beast(
    model: Any,
    tokenizer: Any,
    example: Example,
    *,
    wanted: str,
    success: str,
    seed: int | str,
    max_new_tokens: int = 16,
    batch_size: int = 128,
    length: int = 20,
    beams: int = 15,
    branches: int = 15,
    temperature: float = 1.0,
    objective: str = "ce",
    weight: float = 1.0,
    mellowmax_alpha: float = 1.0,
    place: str = "suffix",
    carrier: str = "request",
    ascii_only: bool = True,
    early_stop: bool = True,
    check_every: int = 5,
) -> Found:
    """Grow the slot token by token, without gradients.

    Each step draws `branches` next tokens for each of the `beams` slots, without replacement, from what the model
    itself expects there, and keeps the `beams` with the lowest loss. The best slot of any length is returned.

    Args:
        model, tokenizer, example, wanted, success, seed, max_new_tokens, batch_size: As in
            :class:`rolesafe.attacks.search.Search`.
        length: Tokens of the longest slot: the number of steps.
        beams: Slots kept (k1 in the paper).
        branches: Next tokens drawn for each (k2).
        temperature: Of the model's distribution; above 1 it draws more unlikely tokens.
        objective, weight, mellowmax_alpha: The loss, see :func:`rolesafe.attacks.gradient.losses.make_loss`.
        place, carrier, ascii_only: The slot, see :class:`rolesafe.attacks.gradient.target.Target`.
        early_stop, check_every: As in :func:`rolesafe.attacks.gradient.gcg.gcg`.

    Returns:
        The messages with the lowest loss; ``losses[0]`` is the best of the first step's.

    Raises:
        ValueError: A parameter is not as described, or no slot of one token can be typed.
    """
    counts = {
        "length": length, "beams": beams, "branches": branches, "batch_size": batch_size,
        "max_new_tokens": max_new_tokens, "check_every": check_every,
    }  # fmt: skip
    for name, value in counts.items():
        check_count(name, value)
    check_number("temperature", temperature)
    loss = make_loss(objective, weight=weight, alpha=mellowmax_alpha)
    generator = generator_of(seed)
    with evaluating(model), readable_attention(model, objective):
        target = Target(
            model, tokenizer, example, wanted=wanted, success=success, length=length, generator=generator, place=place,
            carrier=carrier, ascii_only=ascii_only, room=max_new_tokens,
        )  # fmt: skip
        victim = Victim(model, target)
        watch = Watch(
            victim, ask_in_text(victim, tokenizer, max_new_tokens), success, check_every if early_stop else None
        )
        # The first step has no slot yet to branch from: as many first tokens are drawn as later steps look at.
        held = target.start.new_empty(1, 0)
        best: tuple[float, Tensor] | None = None
        curve: list[float] = []
        for step in range(1, length + 1):
            count = beams * branches if step == 1 else branches
            grown = _grow(victim, held, count, temperature, generator)
            if target.sieving:
                grown = target.sieve(grown)
            # the loss "role-shift" looks at the whole slot
            like = held if held.shape[1] and objective != "role-shift" else None
            kept = target.survivors(grown, losses(victim, loss, grown, batch_size, like), beams)
            if not kept:
                if best is None:
                    raise CannotSearch(
                        "`tokenizer`: no single token that was drawn is the same after writing and reading it at this "
                        "place; try another `place`, or ascii_only=False"
                    )
                break
            held = torch.stack([ids for _, ids in kept])
            if best is None or kept[0][0] < best[0]:
                best = kept[0]
            curve.append(best[0])
            if watch.gives_in(best[1], step):
                break
        assert best is not None
    return Found(
        messages=target.messages(best[1].tolist()),
        reply=None,
        n_queries=victim.n_queries + watch.n_replies,
        n_steps=len(curve),
        losses=tuple(curve),
    )


def _grow(victim: Victim, held: Tensor, count: int, temperature: float, generator: torch.Generator) -> Tensor:
    """(k * count, L + 1): the slots `held` (k, L), each with `count` next tokens drawn from the model's own."""
    target = victim.target
    with torch.inference_mode(), victim.reading(held):
        logits = victim.next_logits(held)[:, target.allowed].float()
    chances = torch.softmax(logits / temperature, dim=-1).cpu()
    # A token whose chance is 0 in fp32 could not be drawn at all.
    drawn = torch.multinomial(chances.clamp_min(1e-30), min(count, chances.shape[1]), generator=generator)
    tokens = target.allowed[drawn.to(held.device)]  # (k, count)
    stems = held[:, None].expand(-1, tokens.shape[1], -1)
    return torch.cat([stems, tokens[:, :, None]], dim=2).flatten(0, 1)
