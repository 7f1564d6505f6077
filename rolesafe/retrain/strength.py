"""Check for role layers that change the outputs of an untrained model and need annealing."""

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
"""Share of the steps with rising strength for ``anneal: auto``, where annealing is needed."""


def changes_outputs(model: Any, tokenizer: Any) -> bool:
    """Return True where the role layer of `model` gives other logits at strength 1 than at strength 0.

    Logits are compared bit for bit on one short conversation. Zero tables and zero output projections give False;
    dedicated heads, a reserved share, integrity and moved positions give True. Requires the model on the CPU, where a
    role layer at strength 0 is bit-exact.

    Args:
        model: Patched model.
        tokenizer: Tokenizer of the model.
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
