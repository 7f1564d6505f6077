"""Install the role layer in a model, and take it out: modules, hooks, attention implementation, seal."""

from __future__ import annotations

import copy
import inspect
import uuid
from typing import Any

import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from rolesafe.attention import resolve_impl
from rolesafe.config import RoleConfig
from rolesafe.mechanisms import DataTransform, RoleEmbedding, RoleHeads, RolePart
from rolesafe.patching import families
from rolesafe.patching.added import check_added, enter_attention, leave_attention, make_added, remove_hook
from rolesafe.patching.attention import NAME, keep_all_queries, register
from rolesafe.patching.hooks import (
    PARTS,
    RoleLayers,
    enter_layer,
    enter_model,
    leave_layer,
    leave_model,
    receive_roles,
    watch_layer,
)
from rolesafe.patching.moved import MARK, check_moved
from rolesafe.patching.positions import check_positions
from rolesafe.patching.seal import seal, unseal


def install(model: Any, config: RoleConfig) -> None:
    """Add role modules and hooks to `model`, whose class is role-aware already, and switch its attention."""
    register()
    layers = families.decoder_layers(model)
    names: list[tuple[str, ...]] = []
    cache_layers: set[int] = set()
    for i, layer in enumerate(layers):
        own, drops = _layer_parts(model, config, layers, i), False
        parts = [*own, *_attention_parts(model, config, layer, i)]
        cache_layers |= {families.cache_layer(module) for module in layer.attention if hasattr(module, "layer_idx")}
        layer.module.__dict__["rolesafe_layer"] = i
        if layer.attention and families.drops_arguments(layer.module):
            drops = layer.module.__dict__["rolesafe_drops"] = True
            for module in layer.attention:
                module.register_forward_pre_hook(receive_roles, with_kwargs=True)
        if own or drops:
            watch_layer(layer.module)
        names.append(tuple(part.name for part in parts))
    for module in model.modules():  # Gemma 4 drops queries of layers with shared keys; their roles would not line up
        if hasattr(module, "_maybe_slice_kv_shared_inputs"):
            module._maybe_slice_kv_shared_inputs = keep_all_queries
    base_attention = getattr(model.config, "rolesafe_base_attention", None) or model.config._attn_implementation
    if base_attention == NAME:
        base_attention = "sdpa"
    model.config.rolesafe_base_attention = base_attention
    _set_attention(model, NAME)
    seal(model, layers[0].module)
    # "auto" follows the base model: eager attention becomes the reference, anything else the fused backends.
    impl = "reference" if config.impl == "auto" and base_attention == "eager" else config.impl
    stack = layers[0].name.rpartition(".")[0]
    entry = families.entry_path(model, stack)
    module = model.get_submodule(entry)
    forward = getattr(module, "rolesafe_base", type(module)).forward  # the base model's signature
    about = RoleLayers(
        config=config,
        entry=entry,
        stack=stack[len(entry) + 1 :] if entry else stack,
        parts=tuple(names),
        all_parts=frozenset(name for own in names for name in own),
        first=_path_of_part(module),
        arguments=tuple(inspect.signature(forward).parameters)[1:],  # without `self`
        cache_layers=tuple(sorted(cache_layers)),
        impl=impl,
        patch=uuid.uuid4().hex,
        depth=_name_of_depth(module.config),
    )
    for holder in (model, module):
        holder.__dict__["rolesafe_layers"] = about  # a plain attribute, not a submodule
    module.register_forward_pre_hook(enter_model, with_kwargs=True)
    module.register_forward_hook(leave_model, with_kwargs=True)


def _name_of_depth(config: Any) -> str | None:
    """Return the name of the number of layers in `config`; None where it has a configuration of text of its own."""
    name: str = config.attribute_map.get("num_hidden_layers", "num_hidden_layers")
    return name if config.get_text_config() is config and name in config.__dict__ else None


def _path_of_part(module: Any) -> tuple[str, ...]:
    """Return the path in `module` of its first part."""
    return next((tuple(name.split(".")) for name, part in module.named_modules() if isinstance(part, RolePart)), ())


def _layer_parts(model: Any, config: RoleConfig, layers: list[families.Layer], i: int) -> list[RolePart]:
    """Add the parts at the input of decoder layer `i`, and after the last layer; return them in order."""
    layer = layers[i]
    dtype, device = _dtype_and_device(layer.module)
    hidden = model.config.get_text_config().hidden_size
    found: dict[str, RolePart] = {}
    if i == 0 and (config.rotation or config.shift):
        found["rolesafe_data"] = DataTransform(
            config.data_ids, hidden, rotation=config.rotation, shift=config.shift, dtype=dtype, device=device
        )
    vectors = ["rolesafe_embedding"] if i == 0 or config.embedding != "input" else []
    vectors += ["rolesafe_last"] if i == len(layers) - 1 and config.embedding == "all" else []
    for name in vectors if config.embedding != "none" else []:
        found[name] = RoleEmbedding(
            len(config.roles), hidden, roles=config.embedding_ids, std=config.embedding_std, dtype=dtype, device=device
        )
    for name, part in found.items():
        setattr(layer.module, name, part)
        part.name = f"{layer.name}.{name}"
    if "rolesafe_last" in found:
        layer.module.register_forward_hook(leave_layer, with_kwargs=True)
    return list(found.values())


def _attention_parts(model: Any, config: RoleConfig, layer: families.Layer, i: int) -> list[RolePart]:
    """Add the parts of the attention modules of decoder layer `i`; return them in order."""
    parts: list[RolePart] = []
    for nth, module in enumerate(layer.attention):
        dtype, device = _dtype_and_device(module, layer.module, model)
        active = config.layers is None or i in config.layers
        heads = RoleHeads(config, families.count_heads(module), active=active, layer=i, dtype=dtype, device=device)
        heads.name = f"{layer.name}.{type(module).__name__}.{nth}"
        module.rolesafe_heads = heads
        parts.append(heads)
        if config.added_heads and active:
            added = make_added(module, config.count_added(heads.heads), heads.heads, dtype, device)
            added.name = f"{heads.name}.added"
            module.rolesafe_added = added
            module.register_forward_pre_hook(enter_attention, with_kwargs=True)
            module.register_forward_hook(leave_attention, with_kwargs=True)
            parts.append(added)
    return parts


def uninstall(model: Any) -> None:
    """Undo :func:`install`; the class of `model` stays role-aware."""
    for module in model.modules():
        for name in PARTS:
            if name in module._modules:
                del module._modules[name]
        for name in ("_maybe_slice_kv_shared_inputs", "rolesafe_drops", "rolesafe_layer", "rolesafe_layers"):
            module.__dict__.pop(name, None)
        remove_hook(module)
        enter = (enter_layer, enter_model, enter_attention, receive_roles)
        leave = (leave_layer, leave_model, leave_attention)
        for hooks, flags, ours in (
            (module._forward_pre_hooks, module._forward_pre_hooks_with_kwargs, enter),
            (module._forward_hooks, module._forward_hooks_with_kwargs, leave),
        ):
            for key, hook in list(hooks.items()):
                if hook in ours:
                    del hooks[key]
                    flags.pop(key, None)
    base_attention = model.config.rolesafe_base_attention
    own_config(model)
    unseal(model)
    for name in ("rolesafe", "rolesafe_base_attention", "rolesafe_strength"):
        if hasattr(model.config, name):
            delattr(model.config, name)
    _set_attention(model, base_attention)


def own_config(model: PreTrainedModel) -> None:
    """Give `model` and all its modules copies of their configurations, which other models may share."""
    memo: dict[int, Any] = {}
    for module in model.modules():
        config = module.__dict__.get("config")
        if isinstance(config, PretrainedConfig):
            module.config = copy.deepcopy(config, memo)


def _set_attention(model: PreTrainedModel, name: str) -> None:
    for module in model.modules():
        config = module.__dict__.get("config")
        if isinstance(config, PretrainedConfig):
            config._attn_implementation = name


# -------------------------------------------------------------------------------------------------------------- checks


def check_fits(model: PreTrainedModel, config: RoleConfig) -> None:
    """Raise a ValueError where `config` does not fit `model`, before anything is changed."""
    layers = families.decoder_layers(model)
    if config.impl != "auto":
        resolve_impl(config.impl, mass_target=config.mass_target > 0)
    check_positions(model, config)
    _check_heads(config, layers, moved=getattr(model.config, MARK, False))
    if config.integrity:
        _check_integrity(model, config, layers)
    if families.model_types(model) & families.STREAMS:
        for name, at_rest in (("embedding", "none"), ("rotation", 0.0), ("shift", False)):
            if getattr(config, name) != at_rest:
                raise ValueError(
                    f"`{name}`: expected {at_rest!r}, got {getattr(config, name)!r}. The layers of "
                    f"{type(model).__name__} pass on several streams per token, so no one input can be changed."
                )
    width = model.config.get_text_config().hidden_size
    if config.rotation and width % 2:
        raise ValueError(f"`rotation`: expected a model of even hidden size (it turns pairs), got {width}")


def _check_heads(config: RoleConfig, layers: list[families.Layer], moved: bool) -> None:
    """Raise where the configuration names layers or heads that the model does not have, or that cannot move."""
    for i in config.layers or ():
        if i >= len(layers):
            raise ValueError(f"`layers`: expected indices below {len(layers)} (the model's layers), got {i}")
    listed = config.dedicated_heads if isinstance(config.dedicated_heads, tuple) else ()
    for i, head in listed:
        if i >= len(layers) or len(layers[i].attention) != 1:
            why = "an attention layer" if i < len(layers) else f"a layer below {len(layers)}"
            raise ValueError(f"`dedicated_heads`: expected {why}, got the pair {(i, head)}")
    for i, layer in enumerate(layers):
        for module in layer.attention:
            heads = families.count_heads(module)
            config.count_dedicated(heads, i)
            if not moved:
                check_moved(module, heads, config.listed_heads(i))
            if config.count_added(heads) and (config.layers is None or i in config.layers):
                check_added(module, heads)
    for i, head in config.steered_heads or ():
        count = max((families.count_heads(m) for m in layers[i].attention), default=0) if i < len(layers) else 0
        if head >= count:
            limit = f"head below {count} in layer {i}" if i < len(layers) else f"layer below {len(layers)}"
            raise ValueError(f"`steered_heads`: expected a {limit}, got the pair {(i, head)}")


def _check_integrity(model: PreTrainedModel, config: RoleConfig, layers: list[families.Layer]) -> None:
    """Raise where tokens mix outside of role-aware attention, which the integrity mask does not reach."""
    name, kinds = type(model).__name__, families.model_types(model)
    active = range(len(layers)) if config.layers is None else config.layers
    other = [layer.name for i, layer in enumerate(layers) if not layer.attention or i not in active]
    if other:
        raise ValueError(
            f"`integrity`: {other[0]} mixes tokens without role-aware attention ({name} has {len(other)} such layers), "
            "so unprivileged text would reach the privileged channel. Use integrity=False."
        )
    for known, reason in (
        (families.MIXES_OUTSIDE_ATTENTION, "mixes tokens outside of its attention (Mamba, convolution)"),
        (families.CHOOSES_KEYS, "chooses keys before its attention, among all tokens"),
    ):
        if kinds & known:
            raise ValueError(
                f"`integrity`: every layer of {name} {reason}, so unprivileged text would reach the privileged "
                "channel. Use integrity=False."
            )


def _dtype_and_device(*modules: nn.Module) -> tuple[torch.dtype, torch.device]:
    """Return the dtype for role parameters of the first of `modules`, and the device that it runs on.

    The dtype is fp32, or fp64 for a module in fp64. The other modules are asked for the device in order where a module
    has no tensors. Buffers and integers count too (quantised weights are integers). For offloaded weights, return the
    device that accelerate moves them to.
    """
    double = any(p.dtype == torch.float64 for p in modules[0].parameters())
    dtype = torch.float64 if double else torch.float32
    for module in modules:
        tensor = next((x for some in (module.parameters(), module.buffers()) for x in some), None)
        if tensor is not None:
            device = _execution_device(module) if tensor.is_meta else None
            return dtype, tensor.device if device is None else device
    return dtype, torch.device("cpu")


def _execution_device(module: nn.Module) -> torch.device | None:
    """Return the device that a hook of accelerate moves the parameters of `module` to; None without such a hook."""
    for part in module.modules():
        hook = getattr(part, "_hf_hook", None)
        for one in getattr(hook, "hooks", (hook,)):
            device = getattr(one, "execution_device", None)
            if device is not None:
                return torch.device(device)
    return None
