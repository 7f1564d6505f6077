"""Seal the configuration and the state dict of a patched model against loaders that would drop its role layer.

Every library saves a model as its configuration and its state dict. Both are sealed at their source:

- the configuration object is of a subclass whose JSON has no model type and no sizes that a plain loader accepts;
- the state dict gives one tensor of the first decoder layer, and every tensor that was added after the patch
  (adapters), leading dimensions of size 1. A plain model rejects the shape, a patched one removes them on loading.
  Adapters also hold a digest of their role layer, and load on no other. One that was saved below full strength holds
  the strength too, and loads into a model of that strength only.
"""

from __future__ import annotations

import functools
import hashlib
import json
import sys
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from rolesafe.mechanisms import get_strength
from rolesafe.patching.patched import is_role_name

SEAL = "This checkpoint has a role layer. Load it with rolesafe.from_pretrained."
MODEL_TYPE = f"rolesafe: {SEAL}"
"""Value of `model_type` in `config.json`: plain loaders print it in their error."""

CHECKPOINT_VERSION = 3
"""Version of the checkpoint format. 1 had no strength, 2 no digests."""

PREFIX = "RoleAware"
"""Prefix of the names of patched classes."""

_ONES = (1, 1, 1, 1)


def is_sealed(about: Any) -> bool:
    """Return True for the content of the `config.json` of a role-aware model, of any version."""
    return isinstance(about, dict) and str(about.get("model_type", "")).split(":")[0] == "rolesafe"


# ------------------------------------------------------------------------------------------------------- configuration


class RoleAwareConfig:
    """Mixed into the class of a patched model's configuration, in front of its base class."""

    rolesafe_config_base: type[PretrainedConfig]

    def to_json_string(self, use_diff: bool = True) -> str:
        """Return the sealed JSON, which `save_pretrained` writes too."""
        plain = super().to_json_string(use_diff)  # type: ignore[misc]
        return json.dumps(seal_config(json.loads(plain)), indent=2) + "\n"

    @classmethod
    def get_config_dict(cls, *args: Any, **kwargs: Any) -> Any:
        """Read a `config.json`, sealed or not."""
        values, unused = super().get_config_dict(*args, **kwargs)  # type: ignore[misc]
        return (unseal_config(values) if is_sealed(values) else values), unused

    def __reduce__(self) -> Any:
        return _rebuild, (self.rolesafe_config_base, self.__dict__)


def _rebuild(base: type[PretrainedConfig], values: dict[str, Any]) -> Any:
    kind: Any = cast(Any, config_class)(base)
    config = kind.__new__(kind)
    config.__dict__.update(values)
    return config


@functools.cache
def config_class(base: type[PretrainedConfig]) -> type[PretrainedConfig]:
    """Return the subclass of `base` that seals itself; one per base class.

    It keeps the name of `base`, by which the auto classes of transformers look up a configuration.
    """
    kind = type(
        base.__name__,
        (RoleAwareConfig, base),
        {"__init__": base.__init__, "__module__": base.__module__, "rolesafe_config_base": base},
    )
    return cast("type[PretrainedConfig]", kind)


def seal_config(base: dict[str, Any]) -> dict[str, Any]:
    """Return the sealed form of the JSON of a patched model's configuration."""
    role_config, strength = base.pop("rolesafe", None), base.pop("rolesafe_strength", None)
    base.pop("rolesafe_base_attention", None)
    if base.get("architectures"):
        base["architectures"] = [name.removeprefix(PREFIX) for name in base["architectures"]]
    # Transformers would pick a nested configuration by its `model_type`.
    base["base_model_type"] = base.pop("model_type", None)
    return {
        "model_type": MODEL_TYPE,
        "format_version": CHECKPOINT_VERSION,
        "rolesafe": role_config,
        "strength": strength,
        "vocab_size": SEAL,
        "hidden_size": SEAL,
        "transformers_version": base.get("transformers_version"),
        "base_config": base,
    }


def unseal_config(about: dict[str, Any]) -> dict[str, Any]:
    """Return the JSON of the base model's configuration inside the sealed `about`."""
    base = dict(about["base_config"])
    base["model_type"] = base.pop("base_model_type")
    return base


# ---------------------------------------------------------------------------------------------------------- state dict


def seal_tensor(tensor: Tensor) -> Tensor:
    """Return `tensor` with leading dimensions of size 1, a shape that no model has."""
    return tensor if is_sealed_shape(tuple(tensor.shape)) else tensor.reshape(*_ONES, *tensor.shape)


def unseal_tensor(tensor: Tensor) -> Tensor:
    """Return `tensor` in the shape of its model."""
    return tensor.reshape(tensor.shape[len(_ONES) :]) if is_sealed_shape(tuple(tensor.shape)) else tensor


def is_sealed_shape(shape: tuple[int, ...]) -> bool:
    """Return True for the shape of a sealed tensor."""
    return len(shape) > len(_ONES) and shape[: len(_ONES)] == _ONES


def seal(model: PreTrainedModel, layer: nn.Module) -> None:
    """Seal the configurations and state dicts of the patched `model`; `layer` is its first decoder layer.

    The hook is on the module that holds the tensor, so state dicts of inner modules are sealed too.

    Raises:
        ValueError: The layer has no floating-point parameter.
    """
    floating = [(n, p) for n, p in layer.named_parameters() if p.is_floating_point() and not is_role_name(n)]
    # a vector where there is one: quantisation leaves those alone
    name = next((n for n, p in floating if p.ndim == 1), next((n for n, _ in floating), None))
    if name is None:
        raise ValueError(
            f"`model`: expected a floating-point parameter in the first decoder layer of {type(model).__name__}, found "
            "none, so its state dict could not be sealed"
        )
    path, _, name = name.rpartition(".")
    holder = layer.get_submodule(path)
    holder.__dict__["rolesafe_sealed"] = name
    model.__dict__["rolesafe_base_names"] = frozenset(n for n, _ in model.named_parameters() if not is_role_name(n))
    for module, hook in ((holder, _seal_own), (model, _seal_added)):
        cast(Any, module).register_state_dict_post_hook(hook)
        module.register_load_state_dict_pre_hook(_unseal)
    for module in model.modules():
        config: Any = module.__dict__.get("config")
        if isinstance(config, PretrainedConfig) and not isinstance(config, RoleAwareConfig):
            config.__class__ = cast(Any, config_class)(type(config))


def unseal(model: nn.Module) -> None:
    """Undo :func:`seal`."""
    for module in model.modules():
        for name in ("rolesafe_sealed", "rolesafe_base_names"):
            module.__dict__.pop(name, None)
        for key, hook in list(module._state_dict_hooks.items()):
            if hook in (_seal_own, _seal_added):
                del module._state_dict_hooks[key]
        for key, wrapped in list(module._load_state_dict_pre_hooks.items()):
            if getattr(wrapped, "hook", None) is _unseal:
                del module._load_state_dict_pre_hooks[key]
        config: Any = module.__dict__.get("config")
        if isinstance(config, RoleAwareConfig):
            config.__class__ = config.rolesafe_config_base


def added_names(model: nn.Module) -> list[str]:
    """Return the names of parameters that were added after the patch (adapters)."""
    base = model.__dict__.get("rolesafe_base_names")
    if base is None:  # an inner module
        return []
    return [n for n, _ in model.named_parameters() if not is_role_name(n) and _at_patch(n) not in base]


def _at_patch(name: str) -> str:
    return name.replace(".base_layer.", ".").replace(".original_module.", ".")  # PEFT's wrappers


def seal_gathered(model: nn.Module, states: dict[str, Any]) -> dict[str, Any]:
    """Return `states`, a state dict of `model` gathered without its hooks (DeepSpeed), sealed."""
    states = dict(states)
    for path, module in model.named_modules():
        if "rolesafe_sealed" in module.__dict__:
            _seal_own(module, states, f"{path}.", None)
    return states


def _seal_own(module: nn.Module, state_dict: Any, prefix: str, local_metadata: Any) -> None:
    key = prefix + module.__dict__["rolesafe_sealed"]
    if key in state_dict and not _is_offloading():
        state_dict[key] = seal_tensor(state_dict[key])


def _is_offloading() -> bool:
    """Return True inside accelerate, which puts the tensors of a state dict into modules by name."""
    frame = sys._getframe()
    while frame is not None and frame.f_globals.get("__name__") != "accelerate.big_modeling":
        frame = frame.f_back  # type: ignore[assignment]
    return frame is not None


def _seal_added(module: nn.Module, state_dict: Any, prefix: str, local_metadata: Any) -> None:
    """Seal adapters, and append to each the mark of the role layer that it was trained with."""
    names = [name for name in added_names(module) if prefix + name in state_dict]
    if not names:
        return
    if lost := unsaved_names(module):
        raise ValueError(UNSAVED.format(lost[0]))
    mark = role_mark(module)
    if mark is not None and (strength := get_strength(module)) < 1:
        mark = torch.cat([mark, torch.tensor([_whole(strength)])])
    for name in names:
        tensor = state_dict[prefix + name]
        if mark is not None and not hasattr(tensor, "placements"):
            tensor = torch.cat([tensor.flatten(), mark.to(tensor)])
        state_dict[prefix + name] = seal_tensor(tensor)


def _unseal(
    module: nn.Module,
    state_dict: Any,
    prefix: str,
    local_metadata: Any,
    strict: bool,
    missing_keys: Any,
    unexpected_keys: Any,
    error_msgs: list[str],
) -> None:
    names = {key[len(prefix) :] for key in state_dict if key.startswith(prefix)}
    base = module.__dict__.get("rolesafe_base_names")
    added = {name: module.get_parameter(name) for name in added_names(module)}
    mark = None
    for name in sorted(names):
        tensor = state_dict[prefix + name]
        if not isinstance(tensor, Tensor) or not is_sealed_shape(tuple(tensor.shape)):
            continue
        tensor = unseal_tensor(tensor)
        own = added.get(name)
        if own is not None and tensor.numel() - own.numel() in (_MARK, _MARK + 1):
            mark = role_mark(module) if mark is None else mark
            marks = tensor[own.numel() :].cpu().float()
            if mark is not None and not torch.equal(marks[:_MARK], mark):
                error_msgs.append(
                    f"{name} was trained with another role layer than this model has. Load it into its own base: "
                    "rolesafe.from_pretrained(path) of the model saved with model.save_pretrained."
                )
            if marks.numel() > _MARK and _whole(now := get_strength(module)) != (saved := marks[_MARK].item()):
                error_msgs.append(
                    f"{name} was saved with strength {saved / _STRENGTHS:.3g} of 1, where the guarantees of its role "
                    f"layer do not hold; the model has {now:.3g}. Train it to the end, or call "
                    f"rolesafe.mechanisms.set_strength(model, {saved / _STRENGTHS:.3g}) before loading."
                )
            tensor = tensor[: own.numel()].reshape(own.shape)
        state_dict[prefix + name] = tensor
    if base is None or not base <= names:
        return  # a shard, an adapter, or an inner module: incomplete by design
    lost = [n for n, _ in module.named_parameters() if is_role_name(n) and n not in names]
    if lost:
        error_msgs.append(
            f"the state dict holds the base model and no role layer ({', '.join(lost[:3])}, ...). Load it before "
            "rolesafe.patch, or pass the state dict of a patched model."
        )


# ------------------------------------------------------------------------------------------------------------- adapters

_SAVED = ".modules_to_save."
_MARK = 16
_STRENGTHS = 255

UNSAVED = (
    "`model`: expected all trainable role parameters in `modules_to_save` of the PEFT configuration, got {} outside "
    "of it, which PEFT would not save. Pass modules_to_save=rolesafe.patching.role_modules(model)."
)


def unsaved_names(model: nn.Module) -> list[str]:
    """Return the names of trainable role parameters that PEFT would not save."""
    if not any(type(module).__module__.startswith("peft.") for module in model.modules()):
        return []
    return [n for n, p in model.named_parameters() if is_role_name(n) and p.requires_grad and _SAVED not in n]


def _whole(strength: float) -> float:
    """Return a strength as a whole number below 256, exact in every dtype; below 255 for a strength below 1."""
    return float(_STRENGTHS) if strength == 1 else float(min(round(strength * _STRENGTHS), _STRENGTHS - 1))


def role_mark(model: Any) -> Tensor | None:
    """Return a digest of the role parameters outside of adapters, (16,) whole numbers below 256, exact in every dtype.

    None where the role layer is sharded or offloaded.
    """
    parameters = [(n, p.detach()) for n, p in model.named_parameters() if is_role_name(n)]
    parameters = [(n, p) for n, p in parameters if _SAVED not in n and ".original_module." not in n]
    if any(p.is_meta or hasattr(p, "placements") for _, p in parameters):
        return None
    total = hashlib.sha256(json.dumps(model.rolesafe_config.to_dict(), sort_keys=True).encode())
    for _, parameter in parameters:
        total.update(parameter.float().cpu().contiguous().numpy().tobytes())
    return torch.tensor(list(total.digest()[:_MARK]), dtype=torch.float32)
