"""Saving and loading: a checkpoint that only loads together with its role layer, or not at all. safetensors only."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.utils import CONFIG_NAME, cached_file

from rolesafe.config import FORMAT_VERSION, RoleConfig
from rolesafe.mechanisms import get_strength, set_strength
from rolesafe.patching.apply import patch, role_parameters
from rolesafe.patching.model import RoleAwareMixin, role_aware_class

MODEL_TYPE = "rolesafe"
ROLE_CONFIG_NAME = "role_config.json"
ROLE_WEIGHTS_NAME = "role_layer.safetensors"
_SEAL = "This checkpoint has a role layer. Load it with rolesafe.from_pretrained."


def seal_config(directory: Any, base_class: str) -> None:
    """Rewrite the `config.json` that transformers saved, so that no plain loader makes a model without roles of it.

    The `model_type` becomes one that `AutoModel` does not know, the base configuration moves one level down, and in its
    place stands a text where a loader for a fixed class expects a number: each of them raises.
    """
    path = Path(directory) / CONFIG_NAME
    base = json.loads(path.read_text(encoding="utf-8"))
    role_config = base.pop("rolesafe")
    base.pop("rolesafe_base_attention", None)
    strength = base.pop("rolesafe_strength")
    base["architectures"] = [base_class]
    # Transformers would pick a nested configuration by its `model_type`.
    base["base_model_type"] = base.pop("model_type")
    sealed = {
        "model_type": MODEL_TYPE,
        "format_version": FORMAT_VERSION,
        "rolesafe": role_config,
        "strength": strength,
        "vocab_size": _SEAL,
        "hidden_size": _SEAL,
        "transformers_version": base.get("transformers_version"),
        "base_config": base,
    }
    path.write_text(json.dumps(sealed, indent=2) + "\n", encoding="utf-8")


def save_role_layer(model: Any, directory: str | Path, *, base_model: str | None = None) -> None:
    """See :func:`rolesafe.patching.save_role_layer`."""
    if not isinstance(model, RoleAwareMixin):
        raise ValueError(f"`model`: expected a model patched by rolesafe, got {type(model).__name__}")
    base_model = base_model or model.config.name_or_path
    if not base_model:
        raise ValueError(
            "`base_model`: expected the hub id or path of the base model; this one was not loaded from any. "
            "Pass it, or save everything with model.save_pretrained(directory)."
        )
    sealed = read_config(base_model) if Path(base_model).is_dir() else None
    if sealed is not None and sealed.get("model_type") == MODEL_TYPE:
        raise ValueError(
            f"`base_model`: expected a plain base model, got {str(base_model)!r}, which has a role layer; pass "
            "the base model it was made from, or save everything with model.save_pretrained(directory)"
        )
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    tensors = {name: p.detach().cpu().contiguous() for name, p in role_parameters(cast(nn.Module, model))}
    save_file(tensors, directory / ROLE_WEIGHTS_NAME, metadata={"format": "pt"})
    about = {
        "format_version": FORMAT_VERSION,
        "base_model_name_or_path": str(base_model),
        "base_model_type": model.config.model_type,
        "rolesafe": model.rolesafe_config.to_dict(),
        "strength": get_strength(model),
    }
    (directory / ROLE_CONFIG_NAME).write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")


def from_pretrained(
    path: str | Path, *, base_model: Any = None, strength: float | None = None, **kwargs: Any
) -> PreTrainedModel:
    """See :func:`rolesafe.patching.from_pretrained`."""
    if kwargs.pop("trust_remote_code", False):
        raise ValueError("`trust_remote_code`: rolesafe never runs code from a checkpoint; expected False, got True")
    for name in ("ignore_mismatched_sizes", "output_loading_info"):
        if kwargs.pop(name, False):
            raise ValueError(f"`{name}`: expected False, got True; a role layer that does not fit is never skipped")
    alone = _read_json(path, ROLE_CONFIG_NAME, kwargs)
    if alone is not None:
        return _load_role_layer(path, alone, base_model, strength, kwargs)
    if base_model is not None:
        raise ValueError(
            f"`base_model`: is only for a role layer saved alone, but {str(path)!r} has no {ROLE_CONFIG_NAME}"
        )
    about = _read_json(path, CONFIG_NAME, kwargs)
    if about is None or about.get("model_type") != MODEL_TYPE:
        what = "no config.json" if about is None else f"a plain {about.get('model_type')!r} model"
        raise ValueError(
            f"`path`: expected a checkpoint with a role layer at {str(path)!r}, found {what}. "
            "To add a role layer: rolesafe.patch(AutoModelForCausalLM.from_pretrained(path), RoleConfig(...))."
        )
    _check_version(about)
    base = about["base_config"]
    base_class = getattr(transformers, base["architectures"][0], None)
    if base_class is None or not issubclass(base_class, PreTrainedModel):
        raise ValueError(f"`path`: transformers {transformers.__version__} has no class {base['architectures'][0]!r}")
    base["model_type"] = base.pop("base_model_type")
    config = base_class.config_class.from_dict(base)
    config.rolesafe = RoleConfig.from_dict(about["rolesafe"]).to_dict()
    config.rolesafe_strength = _strength(path, about, strength)
    model, info = role_aware_class(base_class).from_pretrained(
        path, config=config, output_loading_info=True, trust_remote_code=False, use_safetensors=True, **kwargs
    )
    _check_loaded(path, model, info)
    return model


def _check_loaded(path: Any, model: Any, info: dict[str, Any]) -> None:
    """Transformers only logs tensors that it did not find or had no place for: a role layer must be whole."""
    parameters = dict(role_parameters(model))
    missing = sorted(set(parameters) & set(info["missing_keys"]))
    if missing:
        raise ValueError(f"`path`: role parameters are missing in {str(path)!r}: {', '.join(missing[:3])}, ...")
    # Names of role modules are ours alone.
    extra = sorted(name for name in info["unexpected_keys"] if "rolesafe_" in name)
    if extra:
        raise ValueError(
            f"`path`: the weights in {str(path)!r} hold role parameters that its config.json does not mention, they "
            f"would be dropped: {', '.join(extra[:3])}, ..."
        )
    for name, parameter in parameters.items():
        _check_table(path, name, parameter)


def _check_table(path: Any, name: str, table: torch.Tensor) -> None:
    """Raise where a role parameter holds NaN, or infinity where it is no bias."""
    if table.is_meta:
        return
    table = table.detach()
    hidden = torch.isneginf(table) if name.endswith(".bias") else torch.zeros_like(table, dtype=torch.bool)
    if not bool((torch.isfinite(table) | hidden).all()):
        raise ValueError(f"`path`: {name} in {str(path)!r} holds NaN or infinite numbers; expected finite ones")


def _load_role_layer(
    path: Any, about: dict[str, Any], base_model: Any, strength: float | None, kwargs: dict[str, Any]
) -> PreTrainedModel:
    _check_version(about)
    strength = _strength(path, about, strength)
    base = base_model if base_model is not None else about["base_model_name_or_path"]
    hub = _hub_options(kwargs)
    model = base
    if not isinstance(base, PreTrainedModel):
        if base_model is None:  # revision and the like belong to `path`
            kwargs = {k: v for k, v in kwargs.items() if k not in ("revision", "subfolder")}
        model = AutoModelForCausalLM.from_pretrained(base, trust_remote_code=False, **kwargs)
    if model.config.model_type != about["base_model_type"]:
        raise ValueError(
            f"`base_model`: expected a {about['base_model_type']!r} model, got {model.config.model_type!r}"
        )
    model = patch(model, RoleConfig.from_dict(about["rolesafe"]), allow_untested=True)
    set_strength(model, strength)
    saved = load_file(cached_file(path, ROLE_WEIGHTS_NAME, **hub))
    parameters = dict(role_parameters(model))
    if saved.keys() != parameters.keys():
        odd = sorted(saved.keys() ^ parameters.keys())
        raise ValueError(f"`path`: the role layer does not fit the base model; only on one side: {', '.join(odd[:3])}")
    with torch.no_grad():
        for name, parameter in parameters.items():
            if saved[name].shape != parameter.shape:
                raise ValueError(
                    f"`path`: {name} has shape {tuple(saved[name].shape)}, expected {tuple(parameter.shape)}"
                )
            _check_table(path, name, saved[name])
            parameter.copy_(saved[name])
    return model.eval()


def _check_version(about: dict[str, Any]) -> None:
    if about.get("format_version", 0) > FORMAT_VERSION:
        raise ValueError(
            f"`path`: was written by a newer rolesafe (format {about['format_version']}, this one reads "
            f"{FORMAT_VERSION}); upgrade rolesafe"
        )


def _strength(path: Any, about: dict[str, Any], wanted: float | None) -> float:
    """How much of the role layer is to be in force. What was saved with less than all of it loads on demand only: a
    model whose role layer is off, or half off, must not come back as if it were whole.

    Checkpoints of format 1 know full strength only.
    """
    value = about.get("strength", 1.0 if about.get("format_version", 0) < 2 else None)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0.0 <= value <= 1.0:
        raise ValueError(f"`path`: expected `strength`, a number in [0, 1], in {str(path)!r}, got {value!r}")
    if wanted is not None:
        return wanted
    if value != 1.0:
        raise ValueError(
            f"`strength`: the role layer in {str(path)!r} was saved with strength {value} of 1, where its guarantees "
            f"do not hold; pass strength={value} to have it like that, or strength=1.0 for all of it"
        )
    return 1.0


def read_config(path: Any) -> dict[str, Any] | None:
    """The `config.json` at `path`, as it is; None where there is none."""
    return _read_json(path, CONFIG_NAME, {})


def _hub_options(kwargs: dict[str, Any]) -> dict[str, Any]:
    names = ("cache_dir", "force_download", "local_files_only", "revision", "subfolder", "token")
    return {name: kwargs[name] for name in names if name in kwargs}


def _read_json(path: Any, name: str, kwargs: dict[str, Any]) -> dict[str, Any] | None:
    """The file `name` of a directory or hub repository, or None where there is no such file."""
    if Path(path).is_dir():
        file: Any = Path(path) / kwargs.get("subfolder", "") / name
        if not file.is_file():
            return None
    else:
        options = _hub_options(kwargs)
        file = cached_file(str(path), name, _raise_exceptions_for_missing_entries=False, **options)
        if file is None:
            return None
    read: dict[str, Any] = json.loads(Path(file).read_text(encoding="utf-8"))
    return read
