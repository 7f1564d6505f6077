"""Names of the parts of a role layer, and the forward hooks that pass roles to them and check that all used them.

Roles enter by hooks of the module that reads the tokens, so they are passed on whatever replaces the model's `forward`
or calls that module directly: device hooks of accelerate, chunked losses of TRL, replicas of DataParallel. Modules are
found by name, never by identity or type: copies, replicas and wrappers keep the names.

Legend: B batch, N tokens from the first one, T of them new, d hidden size.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from rolesafe.config import RoleConfig
from rolesafe.mechanisms import RolePart
from rolesafe.patching.caches import check_cache, given_cache, output_cache, record_roles
from rolesafe.patching.inputs import RoleInputs
from rolesafe.patching.masks import bool_mask
from rolesafe.patching.positions import with_positions

MISSING = (
    "`role_ids`: expected the role of every token, got none. This model is role-aware and does not run without roles. "
    "Pass the result of `rolesafe.encode(tokenizer, messages)`, or remove the role layer with rolesafe.unpatch(model)."
)

ENTRY_PARTS = ("rolesafe_data", "rolesafe_embedding")
"""Names of the parts at the input of a decoder layer, in the order in which they act."""

PARTS = ("rolesafe_heads", "rolesafe_added", *ENTRY_PARTS, "rolesafe_last")
"""Names of all parts, as attributes of attention modules and decoder layers."""

INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)
"""Dtypes of role ids."""


@dataclass(frozen=True)
class RoleLayers:
    """Description of a model's role layer, kept in the model and in its entry module. Holds names, no modules.

    Attributes:
        entry: Path in the model of the module that reads the tokens.
        stack: Path in the entry module of the list of decoder layers.
        parts: Names of the parts of every decoder layer; each must take part in every forward pass.
        all_parts: All of them.
        first: Path in the entry module of one of them.
        arguments: Names of the arguments of the entry module's forward, in order.
        cache_layers: See :class:`RoleInputs`.
        impl: Attention backend.
        patch: Random name of this patch, which binds caches to it.
        depth: Name in the entry module's configuration of the number of layers; None: it is in another one.
    """

    config: RoleConfig
    entry: str
    stack: str
    parts: tuple[tuple[str, ...], ...]
    all_parts: frozenset[str]
    first: tuple[str, ...]
    arguments: tuple[str, ...]
    cache_layers: tuple[int, ...]
    impl: str
    patch: str
    depth: str | None = None


def check_roles(role_ids: Any) -> None:
    """Raise a ValueError unless `role_ids` is an integer tensor (B, N)."""
    if role_ids is None:
        raise ValueError(MISSING)
    if isinstance(role_ids, Tensor):
        if role_ids.ndim == 2 and role_ids.dtype in INTEGERS:
            return
        got = f"{role_ids.dtype} of shape {tuple(role_ids.shape)}"
    else:
        got = repr(role_ids)
    raise ValueError(f"`role_ids`: expected an integer tensor of shape (B, T), got {got}")


def strength_of(module: nn.Module, path: tuple[str, ...] = ()) -> float:
    """Return the strength of the part at `path` in `module`, or of the first part where a wrapper changed the path.

    `leave_model` checks that all parts have the same.
    """
    found: nn.Module | None = module
    for name in path:
        found = None if found is None else found._modules.get(name)
    if path and isinstance(found, RolePart):
        return found.strength
    return next(part.strength for part in module.modules() if isinstance(part, RolePart))


# ------------------------------------------------------------------------------------------------- the decoder layers


class _Carrier(tuple[Any, ...]):
    """Position embeddings (cos, sin) with the roles of a decoder layer that passes only those to its attention."""

    role_inputs: RoleInputs


def enter_layer(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Forward pre-hook of a decoder layer: apply its parts to the input hidden states (B, T, d)."""
    inputs = _inputs(layer, kwargs)
    inputs.entered.add(layer.rolesafe_layer)  # type: ignore[arg-type]
    if layer.__dict__.get("rolesafe_drops") and "position_embeddings" in kwargs:
        kwargs = {**kwargs, "position_embeddings": _Carrier(kwargs["position_embeddings"])}
        kwargs["position_embeddings"].role_inputs = inputs
    own = layer._modules
    parts = [own[name] for name in ENTRY_PARTS if own.get(name) is not None]
    if not parts:
        return args, kwargs
    hidden = args[0] if args else kwargs["hidden_states"]
    for part in parts:
        hidden = _apply(part, hidden, inputs)
    return ((hidden, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": hidden})


def watch_layer(layer: nn.Module) -> None:
    """Make a decoder layer call :func:`enter_layer` from now on."""
    if enter_layer not in layer._forward_pre_hooks.values():
        layer.register_forward_pre_hook(enter_layer, with_kwargs=True)


def receive_roles(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Forward pre-hook of an attention module in a layer that drops arguments: add `role_inputs` again."""
    carrier = next((value for value in (*args, *kwargs.values()) if isinstance(value, _Carrier)), None)
    return args, {**kwargs, "role_inputs": getattr(carrier, "role_inputs", None)}


def leave_layer(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
    """Forward hook of the last decoder layer: add a role embedding to its output hidden states (B, T, d)."""
    inputs = _inputs(layer, kwargs)
    hidden = output[0] if isinstance(output, tuple) else output
    hidden = _apply(layer.rolesafe_last, hidden, inputs)
    return (hidden, *output[1:]) if isinstance(output, tuple) else hidden


def _inputs(layer: nn.Module, kwargs: dict[str, Any]) -> RoleInputs:
    inputs = kwargs.get("role_inputs")
    if not isinstance(inputs, RoleInputs):
        raise ValueError(f"`role_ids` did not reach {type(layer).__name__}. {MISSING}")
    return inputs


def _apply(part: Any, hidden: Tensor, inputs: RoleInputs) -> Tensor:
    changed: Tensor = part(hidden, inputs.q_roles_on(hidden.device))
    inputs.took_part(part)
    return changed


# --------------------------------------------------------------------------------------------------- the entry module


def enter_model(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Forward pre-hook of the module that reads the tokens: replace `role_ids` by `role_inputs` for the layers."""
    if torch.jit.is_tracing():  # type: ignore[attr-defined, no-untyped-call]
        raise RuntimeError(
            "`torch.jit.trace`: would record the roles of the example as constants, so every later text would get "
            "them. Use torch.export.export or torch.compile."
        )
    layers: RoleLayers = module.rolesafe_layers  # type: ignore[assignment]
    given = {**dict(zip(layers.arguments, args, strict=False)), **kwargs}
    role_ids, positions = given.pop("role_ids", None), given.pop("role_positions", None)
    if role_ids is None:
        raise ValueError(f"`role_ids` did not reach {type(module).__name__}. {MISSING}")
    check_roles(role_ids)
    if given.get("output_attentions"):
        raise ValueError(
            "`output_attentions`: expected False, got True; role-aware attention does not keep its weights. "
            "rolesafe.attention.reference computes them for one layer."
        )
    if any(given.get(name) is not None for name in ("encoder_hidden_states", "encoder_outputs")):
        raise ValueError(
            "`encoder_hidden_states`: expected None, got the output of an encoder; cross-attention has no roles. "
            "Patch a model without an encoder."
        )
    if isinstance(mask := given.get("attention_mask"), Tensor) and mask.ndim == 4:
        bool_mask(mask, type(module).__name__)
    tokens = given.get("input_ids")
    tokens = given.get("inputs_embeds") if tokens is None else tokens
    if tokens is None:
        raise ValueError("`input_ids`: expected input_ids or inputs_embeds together with `role_ids`, got neither")
    if role_ids.shape[0] != tokens.shape[0]:
        raise ValueError(f"`role_ids`: expected {tokens.shape[0]} rows like the tokens, got {role_ids.shape[0]}")
    stack = _check_stack(module, layers)
    if _depth(module, layers) < len(layers.parts):
        _watch_layers(stack)
    cache = given_cache(given)
    inputs = RoleInputs(
        role_ids.to(tokens.device),
        tokens.shape[1],
        cache,
        layers.cache_layers,
        layers.config,
        impl=layers.impl,
        owner=(layers.patch, strength_of(module, layers.first)),
        see=module.__dict__.get("rolesafe_see"),
    )
    if cache is not None:
        check_cache(cache, inputs.role_ids, inputs.past, inputs.owner)
    if layers.config.moves_positions and inputs.owner[1] > 0:
        given = with_positions(layers.config, inputs.owner[1], inputs.role_ids, tokens, given, positions)
    given["role_inputs"] = inputs
    return (), given


def leave_model(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
    """Forward hook of the same module: check that all parts took part, and bind the cache to the roles it holds."""
    inputs, layers = kwargs["role_inputs"], module.rolesafe_layers
    _check_all_took_part(module, layers, inputs)  # type: ignore[arg-type]
    cache = given_cache(kwargs)
    cache = output_cache(output) if cache is None else cache
    if cache is not None:
        record_roles(cache, inputs)


def _check_stack(module: nn.Module, layers: RoleLayers) -> Any:
    """Return the list of decoder layers; raise where they are not those that were patched, in their order."""
    stack: Any = module.get_submodule(layers.stack)
    found = [getattr(layer, "rolesafe_layer", None) for layer in stack]
    if found != list(range(len(layers.parts))):
        raise RuntimeError(
            f"`model`: expected the {len(layers.parts)} decoder layers that were patched, in their order, got "
            f"{['new' if i is None else i for i in found]}: layers were added, removed, replaced or moved after the "
            "patch. Call rolesafe.unpatch(model), change its layers, then patch it."
        )
    return stack


def _depth(module: nn.Module, layers: RoleLayers) -> int:
    """Return the number of layers that run: early exit (a model that drafts for itself) lowers it."""
    config: Any = module.config
    depth: int | None = None if layers.depth is None else config.__dict__.get(layers.depth)
    return getattr(config.get_text_config(), "num_hidden_layers", len(layers.parts)) if depth is None else depth


@torch.compiler.disable  # type: ignore[untyped-decorator]
def _watch_layers(stack: Any) -> None:
    """Watch which layers run: families differ in whether those beyond the depth of the configuration do."""
    for layer in stack:
        watch_layer(layer)


def _check_all_took_part(module: nn.Module, layers: RoleLayers, inputs: RoleInputs) -> None:
    """Raise where a part did not use the roles: no change to the model may disable the role layer silently."""
    if not inputs.strengths.keys() >= layers.all_parts:
        _check_missing(module, layers, inputs)
    _check_strengths(inputs.strengths.values())


def _check_missing(module: nn.Module, layers: RoleLayers, inputs: RoleInputs) -> None:
    depth = _depth(module, layers)
    missing = [
        name
        for i, names in enumerate(layers.parts)
        if i < depth or i in inputs.entered
        for name in names
        if name not in inputs.strengths
    ]
    if missing:
        raise RuntimeError(
            f"{len(missing)} layers ran without roles ({', '.join(missing[:3])}, ...): the model's attention "
            "implementation was changed after the patch, or this family does not pass `role_inputs` on to its "
            "attention. Patch the model again after changing it, or use a family that rolesafe is tested with."
        )


def _check_strengths(strengths: Iterable[float]) -> None:
    """Raise where the parts of a role layer have several strengths."""
    different = set(strengths)
    if len(different) > 1:
        raise RuntimeError(
            f"`strength`: expected one strength of all parts of the role layer, got {sorted(different)}. "
            "Set it with rolesafe.mechanisms.set_strength(model, strength)."
        )
