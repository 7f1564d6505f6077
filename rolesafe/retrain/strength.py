"""Whether a role layer changes what an untrained model computes, and so has to be annealed in."""

from __future__ import annotations

from typing import Any

from rolesafe.config import RoleConfig
from rolesafe.mechanisms import get_strength, set_strength
from rolesafe.patching.modes import evaluating

_PROBE = (
    {"role": "system", "content": "Name the color of the sky."},
    {"role": "user", "content": "The sky is blue today. It was grey yesterday, and nobody saw the sun."},
    {"role": "assistant", "content": "Blue."},
)
AUTO_SHARE = 0.5
"""Share of the steps that ``anneal: auto`` spends on raising the strength where it is needed."""


def changes_outputs(model: Any, tokenizer: Any) -> bool:
    """Return whether the role layer of `model` at full strength gives other logits than at strength 0.

    Measured on one short conversation, bit for bit, so it holds for every mechanism: zero tables and zero output
    projections give False; dedicated heads, a reserved share, integrity and moved positions give True. Call it with the
    model on the CPU, where a role layer at rest is bit-exact.

    Args:
        model: A patched model.
        tokenizer: Its tokenizer.
    """
    import torch

    from rolesafe.roles.encoding import encode

    config: RoleConfig = model.rolesafe_config
    batch = encode(tokenizer, list(_PROBE), config=config).to(model.device)
    before = get_strength(model)
    found = []
    try:
        with evaluating(model), torch.no_grad():
            for strength in (0.0, 1.0):
                set_strength(model, strength)
                found.append(model(**batch).logits)
    finally:
        set_strength(model, before)
    return not torch.equal(*found)
