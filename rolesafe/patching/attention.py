"""The function that transformers' attention modules call in a patched model.

Legend: B batch, H query heads, G key/value heads, T queries, S keys, D head dim.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from rolesafe.attention import Problem, resolve_impl
from rolesafe.attention.api import compute
from rolesafe.attention.sdpa import added
from rolesafe.patching.families import cache_layer
from rolesafe.patching.inputs import RoleInputs
from rolesafe.patching.masks import role_mask

NAME = "rolesafe"
"""What ``config._attn_implementation`` of a patched model says."""

UNSUPPORTED = ("position_bias", "head_mask", "cache", "block_table")
"""Arguments of attention functions that would change the result and that role-aware attention does not compute."""


def register() -> None:
    """Make the function and its masks known to transformers. Nothing changes for models that are not patched."""
    AttentionInterface.register(NAME, role_attention_forward)
    # Without a mask function of the same name transformers passes no mask at all: padding would be dropped.
    AttentionMaskInterface.register(NAME, role_mask)


def role_attention_forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    is_causal: bool | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    role_inputs: RoleInputs | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Role-aware attention in the signature of transformers' attention interface.

    Args:
        query: (B, H, T, D). `key`, `value`: (B, G, S, D).
        attention_mask: None (causal), bool (B, S) (causal with padding) or (B, 1 | H, T, S), see `role_mask`.
        s_aux: Sink logits (H,), gpt-oss.

    Returns:
        ((B, T, H, D), None).
    """
    name = type(module).__name__
    heads: Any = getattr(module, "rolesafe_heads", None)
    if not hasattr(heads, "reserved_share"):  # by what it does: libraries wrap modules that they train or move
        raise RuntimeError(
            f"{name} runs with attn_implementation='{NAME}' but carries no role layer: the model was not patched. "
            "Call rolesafe.patch(model, RoleConfig(...)) instead of setting the attention implementation."
        )
    if role_inputs is None:
        raise ValueError(
            f"`role_ids` did not reach {name}: expected role ids beside the tokens, got none. Call the patched model "
            "itself (not its inner `model.model`) with `role_ids`; `rolesafe.encode` returns them."
        )
    for argument in UNSUPPORTED:
        if kwargs.get(argument) is not None:
            raise ValueError(f"`{argument}`: {name} passes it to its attention, and rolesafe would drop it")
    more: Any = module._modules.get("rolesafe_added")
    count = 0 if more is None else more.heads
    if more is not None and query.shape[1] == heads.heads + count:
        own = (query[:, heads.heads :], key[:, -count:], value[:, -count:])
        query, key, value = query[:, : heads.heads], key[:, :-count], value[:, :-count]
    elif query.shape[1] != heads.heads:
        raise RuntimeError(f"{name} has {query.shape[1]} heads, its role layer {heads.heads}: patch the model again")
    bias, share = heads(query.device)
    role_inputs.took_part(heads)
    is_causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    length = query.shape[2]
    full_key, full_value = key, value
    padding = attention_mask if attention_mask is not None and attention_mask.ndim == 2 else None
    if padding is not None and not is_causal:
        raise ValueError(f"`attention_mask`: {name} is not causal but was given a causal mask as padding (B, S)")
    causal = bool(is_causal) and (attention_mask is None or padding is not None) and length > 1
    # an empty static cache was filled: what follows the new tokens is not there
    if causal and padding is None and key.shape[2] > length:
        key, value = key[:, :, :length], value[:, :, :length]
    problem = Problem(
        q=query,
        k=key,
        v=value,
        roles=role_inputs.index(cache_layer(module), key.shape[2], key.device, padding),
        bias=bias,
        share=share,
        dedicated=heads.dedicated,
        integrity=heads.integrity,
        mass_target=heads.mass_target,
        causal=causal,
        mask=None if padding is not None else _bool_mask(attention_mask, name),
        scale=query.shape[-1] ** -0.5 if scaling is None else scaling,
        softcap=softcap,
        sinks=s_aux,
        dropout=dropout if module.training else 0.0,
    )
    if role_inputs.see is not None:
        role_inputs.see(module, problem)
    impl = resolve_impl(
        role_inputs.impl,
        softcap=softcap is not None,
        sinks=s_aux is not None,
        dropout=problem.dropout > 0,
        mass_target=problem.mass_target > 0,
        device=query.device,
        dtype=query.dtype,
        dim=max(query.shape[3], value.shape[3]),
    )

    if more is not None:
        # dedicated to the last: the privileged channel alone
        added_problem = replace(
            problem.without_roles(), q=own[0], k=own[1][:, :, : key.shape[2]], v=own[2][:, :, : key.shape[2]],
            dedicated=count, sinks=None,
        )  # fmt: skip
        role_inputs.added[more.name] = compute(added_problem, impl).transpose(1, 2).flatten(2)

    def plain() -> Tensor:
        """Attention without roles. On the fused path of PyTorch the base model's own call, bit for bit."""
        if impl != "sdpa" or padding is not None:
            return compute(problem.without_roles(), impl).transpose(1, 2).contiguous()
        mask = added(problem.roles, attention_mask, query.dtype)
        own, _ = sdpa_attention_forward(module, query, full_key, full_value, mask, problem.dropout, scaling, is_causal)
        return own

    if heads.strength == 0:
        return plain(), None
    # Dropout draws its own numbers in each call: two calls cannot stand for one.
    # So it is where the padding comes apart from the order: the base's own call takes them together.
    if impl != "sdpa" or padding is not None or not _at_rest(heads, bias) or (problem.dropout and bias is not None):
        output = compute(problem, impl).transpose(1, 2).contiguous()
        return output if heads.strength == 1 else torch.lerp(plain(), output, heads.strength), None
    # Nothing is switched on yet, at any strength.
    base = plain()
    if bias is None or not (bias.requires_grad and torch.is_grad_enabled()):
        return base, None
    # The first training step: the value of the plain call with the gradient of the role-aware one.
    carrier = compute(problem, impl).transpose(1, 2).contiguous()
    value_of: Tensor = _ValueOf.apply(base.detach(), carrier)  # type: ignore[no-untyped-call]
    return value_of, None


def _at_rest(heads: Any, bias: Tensor | None) -> bool:
    """Whether the layer is known to be plain attention. On a GPU the table is not read: that would wait for it."""
    if not heads.changes_scores_only:
        return False
    if bias is None:
        return True
    return bias.device.type == "cpu" and not torch.compiler.is_compiling() and not bool(bias.any())


def keep_all_queries(*args: Any, **kwargs: Any) -> tuple[Any, ...]:
    """In place of Gemma 4's method of dropping queries where layers share keys: roles would not line up with them.

    The last argument by position says which queries to keep; the others are what that method returns.
    """
    return args[:-1]


class _ValueOf(torch.autograd.Function):
    """`value` forward, the gradient to `carrier`: two computations of one number that differ in rounding."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, carrier: Tensor) -> Tensor:
        return value

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, Tensor]:
        return None, grads[0]


def _bool_mask(mask: Tensor | None, name: str) -> Tensor | None:
    if mask is None or (mask.dtype == torch.bool and mask.ndim == 4):
        return mask
    raise ValueError(
        f"`attention_mask`: {name} passes its attention a {mask.dtype} mask of shape {tuple(mask.shape)}; expected a "
        "bool mask (B, 1, T, S), True where a key is seen. Pass the model a (B, S) mask of zeros and ones."
    )
