"""Put the role layer into a model and take it out again: what the functions of this package's `__init__` do."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from rolesafe.attention import resolve_impl
from rolesafe.config import RoleConfig
from rolesafe.mechanisms import RoleEmbedding, RoleHeads
from rolesafe.patching import families
from rolesafe.patching.attention import NAME, keep_all_queries, register
from rolesafe.patching.model import ROLE_MODULES, RoleAwareMixin, add_role_embedding, role_aware_class

Model = TypeVar("Model", bound=PreTrainedModel)


@dataclass(frozen=True)
class RoleLayers:
    """Where a patched model carries its role layer: `modules` by name, each must take part in every forward pass."""

    config: RoleConfig
    modules: dict[str, nn.Module]
    cache_layers: tuple[int, ...]
    impl: str


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
        model.__class__ = base
        del model.config.rolesafe
        raise
    return model


def unpatch(model: Model) -> Model:
    """See :func:`rolesafe.patching.unpatch`."""
    if not isinstance(model, RoleAwareMixin):
        raise ValueError(f"`model`: expected a model patched by rolesafe, got {type(model).__name__}")
    for module in cast(nn.Module, model).modules():
        for name in ("rolesafe_heads", "rolesafe_embedding"):
            if name in module._modules:
                del module._modules[name]
        module.__dict__.pop("_maybe_slice_kv_shared_inputs", None)
        for key, hook in list(module._forward_pre_hooks.items()):
            if hook is add_role_embedding:
                del module._forward_pre_hooks[key]
                module._forward_pre_hooks_with_kwargs.pop(key, None)
    base_attention = model.config.rolesafe_base_attention
    _own_config(model)
    for name in ("rolesafe", "rolesafe_base_attention"):
        delattr(model.config, name)
    _set_attention(model, base_attention)
    del model.__dict__["rolesafe_layers"]
    model.__class__ = model.rolesafe_base
    return model


def is_patched(model: Any) -> bool:
    """See :func:`rolesafe.patching.is_patched`."""
    return isinstance(model, RoleAwareMixin)


def role_parameters(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """See :func:`rolesafe.patching.role_parameters`."""
    for prefix, module in model.named_modules():
        if isinstance(module, ROLE_MODULES):
            for name, parameter in module.named_parameters(recurse=False):
                yield f"{prefix}.{name}", parameter


def install(model: Any, config: RoleConfig) -> None:
    """Hang the role modules into `model`, whose class is role-aware already, and switch its attention over."""
    register()
    layers = families.decoder_layers(model)
    modules: dict[str, nn.Module] = {}
    cache_layers: set[int] = set()
    for i, layer in enumerate(layers):
        if config.embedding == "layers" or (config.embedding == "input" and i == 0):
            dtype, device = _place(layer.module)
            layer.module.rolesafe_embedding = RoleEmbedding(
                len(config.roles), model.config.get_text_config().hidden_size, std=config.embedding_std,
                dtype=dtype, device=device,
            )  # fmt: skip
            layer.module.register_forward_pre_hook(add_role_embedding, with_kwargs=True)
            modules[layer.name] = layer.module
        for nth, module in enumerate(layer.attention):
            dtype, device = _place(module)
            active = config.layers is None or i in config.layers
            module.rolesafe_heads = RoleHeads(
                config, families.count_heads(module), active=active, dtype=dtype, device=device
            )
            modules[f"{layer.name}.{type(module).__name__}.{nth}"] = module
            if hasattr(module, "layer_idx"):
                cache_layers.add(families.cache_layer(module))
    for module in model.modules():  # Gemma 4 drops queries of layers with shared keys; their roles would be off
        if hasattr(module, "_maybe_slice_kv_shared_inputs"):
            module._maybe_slice_kv_shared_inputs = keep_all_queries
    base_attention = getattr(model.config, "rolesafe_base_attention", None) or model.config._attn_implementation
    if base_attention == NAME:
        base_attention = "sdpa"
    model.config.rolesafe_base_attention = base_attention
    _set_attention(model, NAME)
    # What the user chose for the base model: eager attention is the reference, anything else the fused one.
    impl = "reference" if config.impl == "auto" and base_attention == "eager" else config.impl
    # Beside the modules, not one of them.
    model.__dict__["rolesafe_layers"] = RoleLayers(config, modules, tuple(sorted(cache_layers)), impl)


def _check_fits(model: PreTrainedModel, config: RoleConfig) -> None:
    """Everything that can be wrong between a model and a configuration, before anything is changed."""
    layers, kinds = families.decoder_layers(model), families.model_types(model)
    if config.impl != "auto":
        resolve_impl(config.impl)
    active = range(len(layers)) if config.layers is None else config.layers
    for i in active:
        if i >= len(layers):
            raise ValueError(f"`layers`: expected indices below {len(layers)} (the model's layers), got {i}")
    for layer in layers:
        for module in layer.attention:
            config.count_dedicated(families.count_heads(module))
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
    if config.embedding != "none" and kinds & families.STREAMS:
        raise ValueError(
            f"`embedding`: expected 'none', got {config.embedding!r}; the layers of {type(model).__name__} pass on "
            "several streams per token, so there is no one input to add a role embedding to"
        )


def _place(module: nn.Module) -> tuple[torch.dtype, torch.device]:
    """Dtype and device of a layer's floating parameters (integers hold quantised weights)."""
    parameter = next((p for p in module.parameters() if p.is_floating_point()), None)
    if parameter is None:
        return torch.get_default_dtype(), torch.device("cpu")
    return parameter.dtype, parameter.device


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
