"""Added heads in a model: hooks that widen the projections of an attention module and add what its added heads read.

Queries, keys and values of the added heads follow those of the base in one tensor. So they get the positions, norms and
cache of the base; :func:`rolesafe.patching.attention.role_attention_forward` takes them apart again.

Legend: B batch, T tokens, H query heads, G key/value heads, D head dim, A added heads.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn

from rolesafe.mechanisms import AddedHeads
from rolesafe.patching.inputs import RoleInputs

NAME = "rolesafe_added"
PROJECTIONS = ("q_proj", "k_proj", "v_proj")


def make_added(module: nn.Module, count: int, heads: int, dtype: torch.dtype, device: torch.device) -> AddedHeads:
    """Return `count` added heads for an attention module with `heads` query heads, copied from these.

    Raises:
        ValueError: The module has no separate projections with floating weights.
    """
    name = type(module).__name__
    linear = [module._modules.get(projection) for projection in PROJECTIONS]
    weights = [getattr(one, "weight", None) for one in linear]
    if not all(isinstance(w, Tensor) and w.ndim == 2 and w.is_floating_point() for w in weights):
        raise ValueError(
            f"`added_heads`: {name} has no projections {', '.join(PROJECTIONS)} with floating weights to copy; use "
            "added_heads=0"
        )
    q, k, v = (weight for weight in weights if weight is not None)
    names = inspect.unwrap(type(module).forward).__code__.co_names
    norm = getattr(getattr(module, "q_norm", None), "weight", None)
    if {"num_heads", "n_heads", "num_attention_heads", "chunk"} & set(names) or (
        norm is not None and norm.numel() == q.shape[0]
    ):
        raise ValueError(
            f"`added_heads`: {name} works on a fixed number of heads, so none can be added; use added_heads=0"
        )
    dim = getattr(module, "head_dim", None) or q.shape[0] // heads
    if q.shape[0] != heads * dim or k.shape[0] % dim:
        raise ValueError(f"`added_heads`: the queries of {name} hold more than {heads} heads of {dim}; use 0")
    value_dim = v.shape[0] // (k.shape[0] // dim)
    biased = tuple(getattr(one, "bias", None) is not None for one in linear)
    part = AddedHeads(count, q.shape[1], dim, value_dim, biased, dtype=dtype, device=device)  # type: ignore[arg-type]
    if not q.is_meta:
        part.copy_heads(*linear, heads=heads)  # type: ignore[arg-type]
    return part


def enter_attention(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Forward pre-hook of an attention module: see to it that its projections, or wrappers of them, are widened."""
    part = module._modules[NAME]
    for name in PROJECTIONS:
        projection = module._modules[name]
        assert projection is not None
        found = projection.__dict__.get(NAME)
        if found is None or found[0] is not part:
            _connect(projection, part, name[0])


def _connect(projection: nn.Module, part: Any, which: str) -> None:
    for inner in projection.modules():  # PEFT wraps a projection that was widened before
        remove_hook(inner)
    projection.__dict__[NAME] = (part, which)
    projection.register_forward_hook(widen)


def remove_hook(module: nn.Module) -> None:
    """Undo what :func:`enter_attention` did to a projection."""
    module.__dict__.pop(NAME, None)
    for key, hook in list(module._forward_hooks.items()):
        if hook is widen:
            del module._forward_hooks[key]


def widen(projection: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
    """Forward hook of a projection: append those of the added heads to its output, (B, T, (H + A) D)."""
    part, which = projection.__dict__[NAME]
    return torch.cat([output, part(which, args[0]).to(output.dtype)], dim=-1)


def leave_attention(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
    """Forward hook of an attention module: add the projection of what its added heads read to its output (B, T, d)."""
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
