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

from rolesafe.attention import Problem
from rolesafe.attention.api import run
from rolesafe.attention.backends import resolve_problem
from rolesafe.attention.sdpa import added
from rolesafe.patching.families import SCORES_IN_MASK, cache_layer
from rolesafe.patching.inputs import RoleInputs
from rolesafe.patching.masks import bool_mask, padding_of, role_mask, split_mask
from rolesafe.patching.repeats import keep, repeat

NAME = "rolesafe"
"""Value of ``config._attn_implementation`` in a patched model."""

UNSUPPORTED = ("head_mask", "cache", "block_table")
"""Arguments that would change the result and that role-aware attention does not compute."""
_UNSUPPORTED = frozenset(UNSUPPORTED)


def register() -> None:
    """Register the attention function and its masks in transformers. Models that are not patched do not use them."""
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
    position_bias: Tensor | None = None,
    role_inputs: RoleInputs | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Compute role-aware attention, in the signature of transformers' attention interface.

    Args:
        module: An attention module with role heads.
        query: (B, H, T, D). `key`, `value`: (B, G, S, D).
        attention_mask: None (causal), bool (B, S) (causal with padding) or (B, 1 | H, T, S), see `role_mask`; or the
            numbers (B, 1 | H, T, S) that the module adds to its scores (Doge).
        s_aux: Sink logits (H,), gpt-oss.
        position_bias: (B, H, T, S) added to the scores (Inkling).
        role_inputs: Roles of this forward pass.

    Returns:
        ((B, T, H, D), None).

    Raises:
        ValueError: The roles did not arrive, or the module asks for attention that is not computed here.
        RuntimeError: The module has no role heads, or has another number of heads.
    """
    tables: Any = None
    given = (is_causal, scaling, softcap, dropout)
    if role_inputs is not None and role_inputs.repeats and position_bias is None and not torch.compiler.is_compiling():
        if not _UNSUPPORTED.isdisjoint(kwargs):
            _check_arguments(module, kwargs)
        tokens = (query, key, value)
        repeated, tables = repeat(role_inputs, module, tokens, attention_mask, s_aux, given)
        if repeated is not None:
            return repeated, None
    name = type(module).__name__
    heads: Any = module._modules.get("rolesafe_heads")
    if not hasattr(heads, "reserved_share"):  # duck typing: libraries wrap modules that they train or move
        raise RuntimeError(
            f"{name} has attn_implementation='{NAME}' and no role layer: the model was not patched. Call "
            "rolesafe.patch(model, RoleConfig(...)) instead of setting the attention implementation."
        )
    if role_inputs is None:
        raise ValueError(
            f"`role_ids` did not reach {name}: expected a role id for every token, got none. Call the patched model "
            "itself (not its inner `model.model`) with `role_ids`; `rolesafe.encode` returns them."
        )
    _check_arguments(module, kwargs)
    more: Any = module._modules.get("rolesafe_added")
    count = 0 if more is None else more.heads
    if query.shape[1] != heads.heads + count:
        raise RuntimeError(
            f"{name} has {query.shape[1]} heads, its role layer {heads.heads} and {count} added: patch the model again"
        )
    if more is not None:
        own = (query[:, heads.heads :], key[:, -count:], value[:, -count:])
        query, key, value = query[:, : heads.heads], key[:, :-count], value[:, :-count]
    bias, share = heads(query.device) if tables is None else tables
    # (1 - s) plain + s ((1 - w) plain + w privileged) is a share of s w: one call instead of two
    scaled = share is not None and 0 < heads.strength < 1 and heads.changes_share_only
    if scaled:
        share = share * heads.strength
    role_inputs.took_part(heads)
    is_causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    dropout = dropout if module.training else 0.0
    layer = cache_layer(module)
    length = query.shape[2]
    full_key, full_value = key, value
    padding = attention_mask if attention_mask is not None and attention_mask.ndim == 2 else None
    if padding is not None and not is_causal:
        raise ValueError(f"`attention_mask`: {name} is not causal but was given a causal mask as padding (B, S)")
    real = padding  # as `padding`, also where the base model needs a mask of pairs
    if real is None and attention_mask is not None and is_causal:
        real = padding_of(attention_mask)
    causal = bool(is_causal) and (attention_mask is None or real is not None) and length > 1
    # prefill of a static cache: keys after the new tokens are unused
    scores = position_bias
    if causal and real is None and key.shape[2] > length:
        key, value = key[:, :, :length], value[:, :, :length]
        scores = None if scores is None else scores[..., :length]
    mask = None if real is not None else attention_mask
    config: Any = module.config
    if mask is not None and config.model_type in SCORES_IN_MASK:
        mask, numbers = split_mask(mask)
        scores = numbers if scores is None else scores + numbers
    problem = Problem(
        q=query,
        k=key,
        v=value,
        roles=role_inputs.index(layer, key.shape[2], key.device, real),
        bias=bias,
        share=share,
        dedicated=heads.dedicated,
        integrity=heads.integrity,
        mass_target=heads.mass_target,
        causal=causal,
        mask=bool_mask(mask, name),
        scale=query.shape[-1] ** -0.5 if scaling is None else scaling,
        softcap=softcap,
        sinks=s_aux,
        dropout=dropout,
        scores=scores,
    )
    if role_inputs.see is not None:
        role_inputs.see(module, problem)
    impl = resolve_problem(problem, role_inputs.impl)
    # The base model's own attention is `sdpa` unless the backend of its role layer says otherwise.
    by_base = padding is None and (impl == "sdpa" or (scores is not None and role_inputs.impl != "reference"))

    if more is not None:  # dedicated to the last
        if scores is not None:
            raise ValueError(f"`added_heads`: {name} adds scores of its own by head. Use added_heads=0.")
        only = replace(
            problem.without_roles(), q=own[0], k=own[1][:, :, : key.shape[2]], v=own[2][:, :, : key.shape[2]],
            dedicated=count, sinks=None,
        )  # fmt: skip
        role_inputs.added[more.name] = run(only, impl).transpose(1, 2).flatten(2)

    def plain() -> Tensor:
        """Compute attention without roles; with `sdpa` by the base model's own call, bit for bit."""
        if not by_base:
            return run(problem.without_roles(), impl).transpose(1, 2).contiguous()
        mask = attention_mask if scores is not None else added(problem.roles, attention_mask, query.dtype)
        rest = (mask, problem.dropout, scaling, is_causal, position_bias)
        own, _ = sdpa_attention_forward(module, query, full_key, full_value, *rest)
        return own

    if heads.strength == 0:
        return plain(), None
    # The base's own call cannot replace the role-aware one with dropout (each call draws its own numbers), nor where
    # padding and causal order are separate masks.
    if not by_base or not _at_rest(heads, bias) or (problem.dropout and bias is not None):
        whole = scaled or heads.strength == 1
        repeats: list[Any] | None = (
            [] if whole and more is None and scores is None and role_inputs.see is None else None
        )
        output = run(problem, impl, repeats).transpose(1, 2).contiguous()
        for call in repeats or ():
            keep(role_inputs, module, attention_mask, given, query.device.type, call)
        return output if whole else torch.lerp(plain(), output, heads.strength), None
    # The role layer is still at rest: the same result at any strength.
    base = plain()
    if bias is None or not (bias.requires_grad and torch.is_grad_enabled()):
        return base, None
    # The first training step: the value of the plain call with the gradient of the role-aware one.
    carrier = run(problem, impl).transpose(1, 2).contiguous()
    value_of: Tensor = _ValueOf.apply(base.detach(), carrier)  # type: ignore[no-untyped-call]
    return value_of, None


def _check_arguments(module: nn.Module, arguments: dict[str, Any]) -> None:
    for argument in _UNSUPPORTED.intersection(arguments):
        if arguments[argument] is not None:
            raise ValueError(
                f"`{argument}`: {type(module).__name__} passes it to its attention, role-aware attention does not "
                "compute it"
            )


def _at_rest(heads: Any, bias: Tensor | None) -> bool:
    """Return True for a layer known to be plain attention. Always False on a GPU with a bias, to avoid a sync."""
    if not heads.changes_scores_only:
        return False
    if bias is None:
        return True
    return bias.device.type == "cpu" and not torch.compiler.is_compiling() and not bool(bias.any())


def keep_all_queries(*args: Any, **kwargs: Any) -> tuple[Any, ...]:
    """Return all arguments but the last (the queries to keep): replaces Gemma 4's method that drops queries.

    It drops queries where layers share keys, so roles would not line up with them.
    """
    return args[:-1]


class _ValueOf(torch.autograd.Function):
    """Return `value`, and pass the gradient to `carrier`: the same number with other rounding."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, carrier: Tensor) -> Tensor:
        return value

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, Tensor]:
        return None, grads[0]
