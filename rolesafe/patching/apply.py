"""Put the role layer into a model and take it out again: what the functions of this package's `__init__` do."""

from __future__ import annotations

import copy
import inspect
import uuid
from collections.abc import Iterator
from typing import Any, TypeVar, cast

import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from rolesafe.attention import resolve_impl
from rolesafe.config import RoleConfig
from rolesafe.mechanisms import DataTransform, RoleEmbedding, RoleHeads, RolePart
from rolesafe.patching import families
from rolesafe.patching.added import enter_attention, leave_attention, make_added, remove_hook
from rolesafe.patching.attention import NAME, keep_all_queries, register
from rolesafe.patching.guards import accept_roles, check_whole, refuse_roles
from rolesafe.patching.layers import PARTS, RoleLayers, enter_layer, leave_layer
from rolesafe.patching.model import RoleAwareMixin, enter_model, leave_model, role_aware_class
from rolesafe.patching.positions import check_positions
from rolesafe.patching.seal import seal, unseal

Model = TypeVar("Model", bound=PreTrainedModel)


def patch(model: Model, config: RoleConfig, *, allow_untested: bool = False) -> Model:
    """See :func:`rolesafe.patching.patch`."""
    if not isinstance(model, PreTrainedModel):
        raise TypeError(
            f"`model`: expected a transformers PreTrainedModel, got {type(model).__name__}. "
            "Patch the base model before you wrap it (PEFT, DDP, ...)."
        )
    if not isinstance(config, RoleConfig):
        raise TypeError(f"`config`: expected a RoleConfig, got {type(config).__name__}")
    if isinstance(model, RoleAwareMixin):
        if model.rolesafe_config == config:
            return model
        raise ValueError(
            "`model`: is patched already, with another configuration; call rolesafe.unpatch(model) first "
            "(its role parameters are lost)"
        )
    check_whole(model)
    if not allow_untested:
        families.check_family(model)
    _check_fits(model, config)
    base = type(model)
    _own_config(model)
    model.config.rolesafe = config.to_dict()
    model.__class__ = cast(Any, role_aware_class)(base)
    try:
        install(model, config)
    except BaseException:
        unseal(cast(nn.Module, model))
        model.__class__ = base
        del model.config.rolesafe
        raise
    accept_roles(model)
    return model


def unpatch(model: Model) -> Model:
    """See :func:`rolesafe.patching.unpatch`."""
    if not isinstance(model, RoleAwareMixin):
        raise ValueError(f"`model`: expected a model patched by rolesafe, got {type(model).__name__}")
    for module in cast(nn.Module, model).modules():
        for name in PARTS:
            if name in module._modules:
                del module._modules[name]
        remove_hook(module)
        module.__dict__.pop("_maybe_slice_kv_shared_inputs", None)
        for name in ("rolesafe_layer", "rolesafe_layers"):
            module.__dict__.pop(name, None)
        enter, leave = (enter_layer, enter_model, enter_attention), (leave_layer, leave_model, leave_attention)
        for hooks, flags, ours in (
            (module._forward_pre_hooks, module._forward_pre_hooks_with_kwargs, enter),
            (module._forward_hooks, module._forward_hooks_with_kwargs, leave),
        ):
            for key, hook in list(hooks.items()):
                if hook in ours:
                    del hooks[key]
                    flags.pop(key, None)
    base_attention = model.config.rolesafe_base_attention
    _own_config(model)
    unseal(cast(nn.Module, model))
    for name in ("rolesafe", "rolesafe_base_attention", "rolesafe_strength"):
        if hasattr(model.config, name):
            delattr(model.config, name)
    _set_attention(model, base_attention)
    model.__class__ = model.rolesafe_base
    refuse_roles(cast(nn.Module, model))
    return model


def is_patched(model: Any) -> bool:
    """See :func:`rolesafe.patching.is_patched`."""
    return isinstance(model, RoleAwareMixin)


def role_parameters(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """See :func:`rolesafe.patching.role_parameters`."""
    for prefix, module in model.named_modules():
        if isinstance(module, RolePart):
            for name, parameter in module.named_parameters(recurse=False):
                yield f"{prefix}.{name}", parameter


def install(model: Any, config: RoleConfig) -> None:
    """Hang the role modules into `model`, whose class is role-aware already, and switch its attention over."""
    register()
    layers = families.decoder_layers(model)
    names: list[tuple[str, ...]] = []
    cache_layers: set[int] = set()
    hidden = model.config.get_text_config().hidden_size
    for i, layer in enumerate(layers):
        dtype, device = _place(layer.module)
        found: dict[str, RolePart] = {}
        if i == 0 and (config.rotation or config.shift):
            found["rolesafe_data"] = DataTransform(
                config.data_ids, hidden, rotation=config.rotation, shift=config.shift, dtype=dtype, device=device
            )
        vectors = ["rolesafe_embedding"] if i == 0 or config.embedding != "input" else []
        vectors += ["rolesafe_last"] if i == len(layers) - 1 and config.embedding == "all" else []
        for name in vectors if config.embedding != "none" else []:
            found[name] = RoleEmbedding(len(config.roles), hidden, std=config.embedding_std, dtype=dtype, device=device)
        for name, part in found.items():
            setattr(layer.module, name, part)
            part.name = f"{layer.name}.{name}"
        if "rolesafe_last" in found:
            layer.module.register_forward_hook(leave_layer, with_kwargs=True)
        parts = list(found.values())
        for nth, module in enumerate(layer.attention):
            dtype, device = _place(module, layer.module, model)
            active = config.layers is None or i in config.layers
            heads = RoleHeads(config, families.count_heads(module), active=active, layer=i, dtype=dtype, device=device)
            heads.name = f"{layer.name}.{type(module).__name__}.{nth}"
            module.rolesafe_heads = heads
            parts.append(heads)
            if config.added_heads and active:
                more = make_added(module, config.count_added(heads.heads), heads.heads, dtype, device)
                more.name = f"{layer.name}.{type(module).__name__}.{nth}.added"
                module.rolesafe_added = more
                module.register_forward_pre_hook(enter_attention, with_kwargs=True)
                module.register_forward_hook(leave_attention, with_kwargs=True)
                parts.append(more)
            if hasattr(module, "layer_idx"):
                cache_layers.add(families.cache_layer(module))
        layer.module.__dict__["rolesafe_layer"] = i
        if parts:
            layer.module.register_forward_pre_hook(enter_layer, with_kwargs=True)
        names.append(tuple(part.name for part in parts))
    for module in model.modules():  # Gemma 4 drops queries of layers with shared keys; their roles would be off
        if hasattr(module, "_maybe_slice_kv_shared_inputs"):
            module._maybe_slice_kv_shared_inputs = keep_all_queries
    base_attention = getattr(model.config, "rolesafe_base_attention", None) or model.config._attn_implementation
    if base_attention == NAME:
        base_attention = "sdpa"
    model.config.rolesafe_base_attention = base_attention
    _set_attention(model, NAME)
    seal(model, layers[0].module)
    # What the user chose for the base model: eager attention is the reference, anything else the fused one.
    impl = "reference" if config.impl == "auto" and base_attention == "eager" else config.impl
    stack = layers[0].name.rpartition(".")[0]
    entry = families.entry_path(model, stack)
    module = model.get_submodule(entry)
    about = RoleLayers(
        config=config,
        entry=entry,
        stack=stack[len(entry) + 1 :] if entry else stack,
        parts=tuple(names),
        arguments=tuple(inspect.signature(_kind(module).forward).parameters)[1:],  # without `self`
        cache_layers=tuple(sorted(cache_layers)),
        impl=impl,
        patch=uuid.uuid4().hex,
    )
    for holder in (model, module):
        holder.__dict__["rolesafe_layers"] = about  # beside its modules, not one of them
    module.register_forward_pre_hook(enter_model, with_kwargs=True)
    module.register_forward_hook(leave_model, with_kwargs=True)


def _kind(module: nn.Module) -> type[nn.Module]:
    """Class of `module` with the signature of the base model's forward."""
    return module.rolesafe_base if isinstance(module, RoleAwareMixin) else type(module)


def _check_fits(model: PreTrainedModel, config: RoleConfig) -> None:
    """Everything that can be wrong between a model and a configuration, before anything is changed."""
    layers, kinds = families.decoder_layers(model), families.model_types(model)
    if config.impl != "auto":
        resolve_impl(config.impl, mass_target=config.mass_target > 0)
    check_positions(model, config)
    active = range(len(layers)) if config.layers is None else config.layers
    for i in active:
        if i >= len(layers):
            raise ValueError(f"`layers`: expected indices below {len(layers)} (the model's layers), got {i}")
    for layer in layers:
        for module in layer.attention:
            config.count_dedicated(families.count_heads(module))
            config.count_added(families.count_heads(module))
    for i, head in config.steered_heads or ():
        count = max((families.count_heads(m) for m in layers[i].attention), default=0) if i < len(layers) else 0
        if head >= count:
            what = f"layer {i} has {count} heads" if i < len(layers) else f"the model has {len(layers)} layers"
            raise ValueError(f"`steered_heads`: got the pair {(i, head)}, but {what}; expected indices below that")
    if config.integrity:
        other = [layer.name for i, layer in enumerate(layers) if not layer.attention or i not in active]
        if other:
            raise ValueError(
                f"`integrity`: {other[0]} mixes tokens without role-aware attention ({type(model).__name__} has "
                f"{len(other)} such layers), so the privileged channel could not be kept apart; use integrity=False"
            )
        for known, what in (
            (families.MIXES_BESIDE_ATTENTION, "mixes tokens beside its attention (Mamba)"),
            (families.CHOOSES_KEYS, "chooses keys before its attention, among all tokens"),
        ):
            if kinds & known:
                raise ValueError(
                    f"`integrity`: every layer of {type(model).__name__} {what}, where role-aware attention does not "
                    "reach, so the privileged channel could not be kept apart; use integrity=False"
                )
    if kinds & families.STREAMS:
        for name, at_rest in (("embedding", "none"), ("rotation", 0.0), ("shift", False)):
            if getattr(config, name) != at_rest:
                raise ValueError(
                    f"`{name}`: expected {at_rest!r}, got {getattr(config, name)!r}; the layers of "
                    f"{type(model).__name__} pass on several streams per token, so there is no one input to change"
                )
    width = model.config.get_text_config().hidden_size
    if config.rotation and width % 2:
        raise ValueError(f"`rotation`: turns pairs of dimensions; expected an even hidden size, the model has {width}")


def _place(*modules: nn.Module) -> tuple[torch.dtype, torch.device]:
    """Dtype of the role parameters of the first of `modules`, and the device on which it runs.

    fp32, or fp64 where the module has that. The others are asked in order where a module has no tensors. Tensors of any
    dtype count, and buffers: quantised weights are integers. Where weights are offloaded, it is the device that
    accelerate brings them to.
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
    """Device that a hook of accelerate brings the parameters of `module` to; None: there is no such hook."""
    for part in module.modules():
        hook = getattr(part, "_hf_hook", None)
        for one in getattr(hook, "hooks", (hook,)):
            device = getattr(one, "execution_device", None)
            if device is not None:
                return torch.device(device)
    return None


def _own_config(model: PreTrainedModel) -> None:
    """Give `model` and all its modules configurations of their own: others may share the ones they have."""
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
