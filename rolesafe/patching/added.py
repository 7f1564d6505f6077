"""Heads added to a model: hooks that widen the projections of an attention module and add the output of the heads.

Queries, keys and values of the added heads follow those of the base in one tensor, so they get the positions, norms and
cache of the base. :func:`rolesafe.patching.attention.role_attention_forward` splits them again.

Legend: B batch, T tokens, H query heads, G key/value heads, D head dim, A added heads.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn

from rolesafe.mechanisms import AddedHeads
from rolesafe.patching.families import SCORES_IN_MASK
from rolesafe.patching.inputs import RoleInputs

NAME = "rolesafe_added"
PROJECTIONS = ("q_proj", "k_proj", "v_proj")

_COUNTED = {"num_heads", "n_heads", "num_attention_heads", "chunk"}
"""Names in the code of a forward function that is written for a fixed number of heads."""


def check_added(module: nn.Module, heads: int) -> None:
    """Raise a ValueError unless heads can be added to an attention module with `heads` query heads."""
    name = type(module).__name__
    linear = [module._modules.get(projection) for projection in PROJECTIONS]
    weights = [getattr(one, "weight", None) for one in linear]
    if not all(isinstance(w, Tensor) and w.ndim == 2 and w.is_floating_point() for w in weights):
        raise ValueError(
            f"`added_heads`: expected an attention with the projections {', '.join(PROJECTIONS)} and floating weights "
            f"to copy, got {name}. Use added_heads=0."
        )
    q, k, _ = (weight for weight in weights if weight is not None)
    norm = getattr(getattr(module, "q_norm", None), "weight", None)
    dim = _head_dim(module, q, heads)
    fixed = _COUNTED & set(inspect.unwrap(type(module).forward).__code__.co_names)
    over_all = norm is not None and norm.numel() == q.shape[0]
    # parameters of its own by head, numbers that it adds to the scores by head, or another width out than in
    over_all |= any(own is not None and own.numel() == q.shape[0] for own in module._parameters.values())
    over_all |= getattr(getattr(module, "config", None), "model_type", None) in SCORES_IN_MASK
    out = getattr(module._modules.get("o_proj"), "weight", None)
    over_all |= isinstance(out, Tensor) and out.shape[0] != q.shape[1]
    if fixed or over_all or q.shape[0] != heads * dim or k.shape[0] % dim:
        raise ValueError(
            f"`added_heads`: expected an attention that takes any number of heads, got {name}, which is written for "
            f"{heads}. Use added_heads=0."
        )


def make_added(module: nn.Module, count: int, heads: int, dtype: torch.dtype, device: torch.device) -> AddedHeads:
    """Return `count` added heads for an attention module with `heads` query heads, copied from these."""
    linear: list[Any] = [module._modules[projection] for projection in PROJECTIONS]
    q, k, v = (one.weight for one in linear)
    dim = _head_dim(module, q, heads)
    value_dim = v.shape[0] // (k.shape[0] // dim)
    biased = (linear[0].bias is not None, linear[1].bias is not None, linear[2].bias is not None)
    part = AddedHeads(count, q.shape[1], dim, value_dim, biased, dtype=dtype, device=device)
    if not q.is_meta:
        part.copy_heads(*linear, heads=heads)
    return part


def _head_dim(module: nn.Module, q: Tensor, heads: int) -> int:
    return getattr(module, "head_dim", None) or q.shape[0] // heads


def enter_attention(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Forward pre-hook of an attention module: widen its projections, or the wrappers that replaced them since."""
    part = module._modules[NAME]
    for name in PROJECTIONS:
        projection = module._modules[name]
        assert projection is not None
        found = projection.__dict__.get(NAME)
        if found is None or found[0] is not part:
            for inner in projection.modules():  # PEFT wraps a projection that was widened before
                remove_hook(inner)
            projection.__dict__[NAME] = (part, name[0])
            projection.register_forward_hook(widen)


def remove_hook(module: nn.Module) -> None:
    """Undo the change of :func:`enter_attention` to a projection."""
    module.__dict__.pop(NAME, None)
    for key, hook in list(module._forward_hooks.items()):
        if hook is widen:
            del module._forward_hooks[key]


def widen(projection: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
    """Forward hook of a projection: append the projection to the added heads to its output, (B, T, (H + A) D)."""
    part, which = projection.__dict__[NAME]
    return torch.cat([output, part(which, args[0]).to(output.dtype)], dim=-1)


def leave_attention(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
    """Forward hook of an attention module: add the output of its added heads to its own (B, T, d)."""
    inputs: RoleInputs = kwargs["role_inputs"]
    part: Any = module._modules[NAME]
    read = inputs.added.pop(part.name)
    inputs.took_part(part)
    if part.strength == 0:
        return None
    more = part("o", read) * part.strength
    if isinstance(output, tuple):
        return (output[0] + more.to(output[0].dtype), *output[1:])
    return output + more.to(output.dtype)
