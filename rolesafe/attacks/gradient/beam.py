"""BEAST (Sadasivan et al., arXiv 2402.15570): beam search over the model's own predictions.

Legend: L tokens of the slot, V' allowed tokens, k beams.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from rolesafe.attacks.gradient.session import session
from rolesafe.attacks.gradient.victim import Victim
from rolesafe.attacks.search import CannotSearch, Found, SearchContext

if TYPE_CHECKING:
    from rolesafe.attacks.gradient.config import BeastConfig


def beast(context: SearchContext, config: BeastConfig) -> Found:
    """Grow the slot token by token and return the best slot of any length.

    Raises:
        ValueError: No slot of one token can be typed, or as :func:`rolesafe.attacks.gradient.session.session`.
    """
    with session(context, config) as run:
        target = run.target
        # The first step has no slots to branch from: it draws as many tokens as later steps look at.
        held = target.start.new_empty(1, 0)
        best: tuple[float, Tensor] | None = None
        curve: list[float] = []
        for step in range(1, config.length + 1):
            count = config.beams * config.branches if step == 1 else config.branches
            grown = _grow(run.victim, held, count, config.temperature, run.generator)
            if target.sieving:
                grown = target.sieve(grown)
            # "role-shift" needs the whole slot
            like = held if held.shape[1] and config.objective != "role-shift" else None
            kept = target.survivors(grown, run.losses(grown, like), config.beams)
            if not kept:
                if best is None:
                    raise CannotSearch(
                        "`tokenizer`: expected a drawn token that encodes to itself at this place, got none. Try "
                        "another `place`, or ascii_only=False."
                    )
                break
            held = torch.stack([ids for _, ids in kept])
            if best is None or kept[0][0] < best[0]:
                best = kept[0]
            curve.append(best[0])
            run.log(step, config.length, best[0])
            if run.watch.gives_in(best[1], step):
                break
        assert best is not None
    return Found(
        messages=target.messages(best[1].tolist()),
        reply=None,
        n_queries=run.n_queries,
        n_steps=len(curve),
        losses=tuple(curve),
    )


def _grow(victim: Victim, held: Tensor, count: int, temperature: float, generator: torch.Generator) -> Tensor:
    """Return (k * count, L + 1): the slots `held` (k, L), each with `count` next tokens that the model predicts."""
    target = victim.target
    with torch.inference_mode(), victim.reading(held):
        logits = victim.next_logits(held)[:, target.allowed].float()
    chances = torch.softmax(logits / temperature, dim=-1).cpu()
    # A probability of 0 in fp32 could not be drawn at all.
    drawn = torch.multinomial(chances.clamp_min(1e-30), min(count, chances.shape[1]), generator=generator)
    tokens = target.allowed[drawn.to(held.device)]  # (k, count)
    stems = held[:, None].expand(-1, tokens.shape[1], -1)
    return torch.cat([stems, tokens[:, :, None]], dim=2).flatten(0, 1)
