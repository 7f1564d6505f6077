"""Saving and loading: a checkpoint that only loads together with its role layer, or not at all. safetensors only.

A whole model is `config.json` (sealed), `generation_config.json`, the weights, and `rolesafe_seal.json` with digests of
the others. A role layer alone is `role_config.json` and `role_layer.safetensors`, each with a digest of the other. The
digests find what was edited, mixed up or half written, and whatever was changed in one file alone. Someone who rewrites
all files can make them fit: they are no signature. Of the base weights they hold names, types and shapes, no values.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.utils import CONFIG_NAME, GENERATION_CONFIG_NAME

from rolesafe.config import RoleConfig
from rolesafe.mechanisms import get_strength, set_strength
from rolesafe.patching.apply import is_patched, patch, role_parameters
from rolesafe.patching.files import (
    Source,
    Tensors,
    check_keys,
    digest,
    field_of,
    model_tensors,
    open_tensors,
    read_metadata,
    tensor_digest,
    weight_names,
)
from rolesafe.patching.loading import check_class, load_model, load_plain, split_options
from rolesafe.patching.seal import CHECKPOINT_VERSION, is_sealed, seal_gathered, unseal_config, unseal_tensor

ROLE_CONFIG_NAME = "role_config.json"
ROLE_WEIGHTS_NAME = "role_layer.safetensors"
SEAL_NAME = "rolesafe_seal.json"

_OTHERS = re.compile(r"role_config\.json|role_layer\.safetensors|adapter_(config\.json|model\..*)")
_PICKLED = re.compile(r"(pytorch_model(-\d+-of-\d+)?\.bin|tf_model\.h5|flax_model\.msgpack)(\.index\.json)?")
"""Files of other savers, which would decide what a folder loads as."""

_CONFIG_KEYS = (
    "model_type", "format_version", "rolesafe", "strength", "vocab_size", "hidden_size", "transformers_version",
    "base_config",
)  # fmt: skip
_SEAL_KEYS = ("format_version", CONFIG_NAME, GENERATION_CONFIG_NAME, "tensors", "role_tensors")
_ROLE_KEYS = ("format_version", "base_model_name_or_path", "base_model_type", "rolesafe", "strength", "tensors")

_UNVERIFIED = (
    "pass verify=False to load it without these checks (only what you saved yourself), and save it again to have them"
)


# --------------------------------------------------------------------------------------------------------- whole models


def before_saving(model: Any, directory: Any, options: Mapping[str, Any]) -> dict[str, Any]:
    """Refuse to save a whole model where it could not be loaded again, and remove the weights of an earlier save.

    Returns:
        `options`, the arguments of `save_pretrained`, with a `state_dict` that is sealed.
    """
    if options.get("push_to_hub"):
        raise ValueError(
            "`push_to_hub`: would upload the files before their digests are written; call model.push_to_hub(repo_id)"
        )
    if options.get("distributed_checkpoint"):
        raise ValueError(
            "`distributed_checkpoint`: expected False, got True; its files cannot be sealed. The default gathers the "
            "weights of a sharded model"
        )
    check_class(model.config.model_type, model.rolesafe_base)
    if options.get("state_dict"):
        options = {**options, "state_dict": seal_gathered(model, options["state_dict"])}
    folder = Path(directory)
    if not folder.is_dir() or not options.get("is_main_process", True):
        return dict(options)
    found = sorted(f.name for f in folder.iterdir() if _OTHERS.fullmatch(f.name) or _PICKLED.fullmatch(f.name))
    if found:
        raise ValueError(
            f"`save_directory`: expected a folder without another checkpoint, {str(directory)!r} holds {found[0]}; "
            "what loads from there would not be decided. Save into an empty folder, or delete that file first"
        )
    for name in (
        *weight_names(options.get("variant")),
        SEAL_NAME,
    ):  # or a stale one would count
        (folder / name).unlink(missing_ok=True)
    return dict(options)


def after_saving(model: Any, directory: Any, options: Mapping[str, Any]) -> None:
    """Write the digests of a whole model that was just saved.

    Raises:
        ValueError: Not all role parameters were saved.
    """
    source = Source(directory)
    tensors = model_tensors(source, options.get("variant"))
    lost = sorted({name for name, _ in role_parameters(model)} - tensors.shapes.keys())
    if lost:
        raise ValueError(
            f"`state_dict`: expected all role parameters, got none for {', '.join(lost[:3])}, ...; what was saved in "
            f"{str(directory)!r} will not load"
        )
    _write_json(Path(directory) / SEAL_NAME, {**_json_digests(source), **_tensor_digests(tensors)})


def _json_digests(source: Source) -> dict[str, Any]:
    generation = source.read_json(GENERATION_CONFIG_NAME)
    return {
        "format_version": CHECKPOINT_VERSION,
        CONFIG_NAME: digest(source.read_json(CONFIG_NAME)),
        GENERATION_CONFIG_NAME: None if generation is None else digest(generation),
    }


def _tensor_digests(tensors: Tensors) -> dict[str, Any]:
    return {"tensors": tensors.layout_digest(), "role_tensors": tensors.role_digest()}


def check_seal(source: Source, variant: str | None = None) -> Tensors:
    """Check the files of a whole model against their digests, and return its tensors.

    Raises:
        ValueError: A file was changed, or is missing.
    """
    where = f"{str(source.path)!r}"
    seal = source.read_json(SEAL_NAME)
    if seal is None:
        raise ValueError(
            f"`path`: found no {SEAL_NAME} in {where}: it was saved by an older rolesafe, or not with "
            f"model.save_pretrained, so that its configuration and role layer cannot be checked; {_UNVERIFIED}"
        )
    _check_version(seal, SEAL_NAME)
    check_keys(seal, _SEAL_KEYS, SEAL_NAME)
    _compare(seal, _json_digests(source), where)
    tensors = model_tensors(source, variant)
    _compare(seal, _tensor_digests(tensors), where)
    return tensors


def _compare(seal: Mapping[str, Any], found: Mapping[str, Any], where: str) -> None:
    for name, value in found.items():
        if name not in seal or seal[name] != value:
            names = {"tensors": "the names, types or shapes of its weights", "role_tensors": "its role layer"}
            raise ValueError(
                f"`path`: {names.get(name, name)} in {where} differs from what {SEAL_NAME} has of it: it was changed "
                f"after the model was saved, or comes from another save; {_UNVERIFIED}"
            )


def check_checkpoint(directory: Any, model: Any) -> None:
    """Raise where the whole model in `directory` was changed, or has another role configuration than `model`."""
    source = Source(directory)
    about = source.read_json(CONFIG_NAME)
    if about is None or not is_sealed(about):
        raise ValueError(f"`path`: expected a checkpoint with a role layer in {str(directory)!r}, found none")
    check_seal(source)
    if _role_config(about, CONFIG_NAME) != model.rolesafe_config:
        raise ValueError(
            f"`path`: the checkpoint in {str(directory)!r} has another role configuration than the model; patch the "
            "model with the configuration that the checkpoint was trained with"
        )


def from_pretrained(
    path: str | Path,
    *,
    base_model: Any = None,
    strength: float | None = None,
    verify: bool = True,
    **kwargs: Any,
) -> PreTrainedModel:
    """See :func:`rolesafe.patching.from_pretrained`."""
    hub, options = split_options(kwargs)
    source = Source(path, hub)
    alone = source.read_json(ROLE_CONFIG_NAME)
    about = source.read_json(CONFIG_NAME)
    adapter = source.find("adapter_config.json")
    if sum((alone is not None, about is not None, adapter is not None)) > 1:
        raise ValueError(
            f"`path`: expected one checkpoint in {str(path)!r}, found several of {ROLE_CONFIG_NAME}, {CONFIG_NAME} and "
            "adapter_config.json: it is not decided what loads from there. Move them into folders of their own"
        )
    if alone is not None:
        return _load_role_layer(source, alone, base_model, strength, verify, options)
    if base_model is not None:
        raise ValueError(
            f"`base_model`: is only for a role layer saved alone, but {str(path)!r} has no {ROLE_CONFIG_NAME}"
        )
    if about is None or not is_sealed(about):
        what = "no config.json" if about is None else f"a plain {about.get('model_type')!r:.100} model"
        if adapter is not None:
            what = "an adapter: load the model it belongs to, then PeftModel.from_pretrained(model, path)"
        raise ValueError(
            f"`path`: expected a checkpoint with a role layer at {str(path)!r}, found {what}. "
            "To add a role layer: rolesafe.patch(AutoModelForCausalLM.from_pretrained(path), RoleConfig(...))."
        )
    return _load_whole(source, about, strength, verify, options)


def _load_whole(
    source: Source, about: dict[str, Any], strength: float | None, verify: bool, options: dict[str, Any]
) -> PreTrainedModel:
    _check_version(about, CONFIG_NAME)
    check_keys(about, _CONFIG_KEYS, CONFIG_NAME)
    if "base_model_type" not in field_of(about, "base_config", dict, CONFIG_NAME):
        raise ValueError(f"`path`: expected `base_model_type` in `base_config` of {CONFIG_NAME}, found none")
    config = _role_config(about, CONFIG_NAME)
    variant = options.get("variant")
    strength = _strength(source.path, about, strength)
    tensors = check_seal(source, variant) if verify else model_tensors(source, variant)
    base = unseal_config(about)
    model = load_model(source, base, tensors, options, f"{CONFIG_NAME} in {str(source.path)!r}")
    return _add(model, config, strength, source.path, tensors)


def _add(model: PreTrainedModel, config: RoleConfig, strength: float, path: Any, saved: Tensors) -> PreTrainedModel:
    """Give `model` the role layer whose tensors are `saved`."""
    model = patch(model, config, allow_untested=True)
    set_strength(model, strength)
    parameters = dict(role_parameters(model))
    if missing := sorted(parameters.keys() - saved.shapes.keys()):
        raise ValueError(
            f"`path`: role parameters are missing in {str(path)!r}: {', '.join(missing[:3])}, ...: the role layer does "
            "not fit the base model"
        )
    if extra := sorted(set(saved.role_names) - parameters.keys()):
        raise ValueError(
            f"`path`: the weights in {str(path)!r} hold role parameters that its {CONFIG_NAME} does not mention, they "
            f"would be dropped: {', '.join(extra[:3])}, ...: the role layer does not fit the base model"
        )
    tensors = saved.read(parameters)
    with torch.no_grad():
        for name, parameter in parameters.items():
            tensor = unseal_tensor(tensors[name])
            if tensor.shape != parameter.shape or not tensor.is_floating_point():
                raise ValueError(
                    f"`path`: {name} has shape {tuple(tensor.shape)} and type {tensor.dtype}, expected floating-point "
                    f"numbers of shape {tuple(parameter.shape)}"
                )
            _check_table(path, name, tensor)
            parameter.copy_(tensor)
    return model.eval()


# ----------------------------------------------------------------------------------------------------- role layer alone


def save_role_layer(model: Any, directory: str | Path, *, base_model: str | None = None) -> None:
    """See :func:`rolesafe.patching.save_role_layer`."""
    if not is_patched(model):
        raise ValueError(f"`model`: expected a model patched by rolesafe, got {type(model).__name__}")
    base_model = base_model or model.config.name_or_path
    if not base_model:
        raise ValueError(
            "`base_model`: expected the hub id or path of the base model; this one was not loaded from any. "
            "Pass it, or save everything with model.save_pretrained(directory)."
        )
    if Path(base_model).is_dir() and is_sealed(read_config(base_model)):
        raise ValueError(
            f"`base_model`: expected a plain base model, got {str(base_model)!r}, which has a role layer; pass "
            "the base model it was made from, or save everything with model.save_pretrained(directory)"
        )
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    ours = (ROLE_CONFIG_NAME, ROLE_WEIGHTS_NAME)
    names = [f.name for f in directory.iterdir() if f.name not in ours]
    if found := sorted(n for n in names if n.endswith(".safetensors") or n == CONFIG_NAME or _PICKLED.fullmatch(n)):
        raise ValueError(
            f"`directory`: expected a folder without a model, {str(directory)!r} holds {found[0]}; what loads from "
            "there would not be decided. Save the role layer into a folder of its own"
        )
    tensors = {name: p.detach().cpu().contiguous() for name, p in role_parameters(cast(nn.Module, model))}
    about = {
        "format_version": CHECKPOINT_VERSION,
        "base_model_name_or_path": str(base_model),
        "base_model_type": model.config.model_type,
        "rolesafe": model.rolesafe_config.to_dict(),
        "strength": get_strength(model),
        "tensors": tensor_digest(tensors),
    }
    save_file(tensors, directory / ROLE_WEIGHTS_NAME, metadata={"format": "pt", ROLE_CONFIG_NAME: digest(about)})
    _write_json(directory / ROLE_CONFIG_NAME, about)


def _load_role_layer(
    source: Source,
    about: dict[str, Any],
    base_model: Any,
    strength: float | None,
    verify: bool,
    options: dict[str, Any],
) -> PreTrainedModel:
    _check_version(about, ROLE_CONFIG_NAME)
    check_keys(about, _ROLE_KEYS, ROLE_CONFIG_NAME)
    for name in ("base_model_name_or_path", "base_model_type"):
        field_of(about, name, str, ROLE_CONFIG_NAME)
    config = _role_config(about, ROLE_CONFIG_NAME)
    file = source.find(ROLE_WEIGHTS_NAME)
    if file is None:
        raise ValueError(f"`path`: {ROLE_WEIGHTS_NAME} is missing in {str(source.path)!r}")
    saved = open_tensors([file])
    if verify and (
        read_metadata(file).get(ROLE_CONFIG_NAME) != digest(about) or saved.role_digest() != about.get("tensors")
    ):
        raise ValueError(
            f"`path`: {ROLE_CONFIG_NAME} and {ROLE_WEIGHTS_NAME} in {str(source.path)!r} do not belong together: one "
            f"was changed, or comes from another save, or both from an older rolesafe; {_UNVERIFIED}"
        )
    strength = _strength(source.path, about, strength)
    model = about["base_model_name_or_path"] if base_model is None else base_model
    if not isinstance(model, PreTrainedModel):
        own = {} if base_model is None else {k: v for k, v in source.options.items() if k in ("revision", "subfolder")}
        shared = {k: v for k, v in source.options.items() if k not in ("revision", "subfolder")}
        model = load_plain(Source(model, {**shared, **own}), options)
    if model.config.model_type != about["base_model_type"]:
        raise ValueError(
            f"`base_model`: expected a {about['base_model_type']!r} model, got {model.config.model_type!r}"
        )
    return _add(model, config, strength, source.path, saved)


# --------------------------------------------------------------------------------------------------------------- values


def _write_json(file: Path, about: Mapping[str, Any]) -> None:
    file.write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")


def _role_config(about: Mapping[str, Any], where: str) -> RoleConfig:
    values = field_of(about, "rolesafe", dict, where)
    try:
        return RoleConfig.from_dict(values)
    except (TypeError, ValueError) as error:
        raise ValueError(f"`path`: `rolesafe` in {where} is no role configuration: {error}") from error


def _check_table(path: Any, name: str, table: Tensor) -> None:
    """Raise where a role parameter holds NaN, or infinity where it is no bias."""
    hidden = torch.isneginf(table) if name.endswith(".bias") else torch.zeros_like(table, dtype=torch.bool)
    if not bool((torch.isfinite(table) | hidden).all()):
        raise ValueError(f"`path`: {name} in {str(path)!r} holds NaN or infinite numbers; expected finite ones")


def _check_version(about: Mapping[str, Any], where: str) -> None:
    version = field_of(about, "format_version", int, where)
    if version > CHECKPOINT_VERSION:
        raise ValueError(
            f"`path`: {where} was written by a newer rolesafe (format {version}, this one reads {CHECKPOINT_VERSION}); "
            "upgrade rolesafe"
        )
    if version < 1:
        raise ValueError(f"`path`: expected `format_version` of 1 to {CHECKPOINT_VERSION} in {where}, got {version}")


def _strength(path: Any, about: Mapping[str, Any], wanted: float | None) -> float:
    """Return how much of the role layer is to be in force.

    What was saved with less than all of it loads on demand only: a model whose role layer is off, or half off, must not
    come back as if it were whole. Checkpoints of format 1 know full strength only; a configuration that was saved
    without its model knows none.
    """
    value = about.get("strength", 1.0 if about.get("format_version", 0) < 2 else None)
    if value is None and wanted is not None and "strength" in about:
        return wanted
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0.0 <= value <= 1.0:
        way_out = "; a configuration saved without its model has none, pass strength=1.0" if value is None else ""
        raise ValueError(
            f"`path`: expected `strength`, a number in [0, 1], in {str(path)!r}, got {value!r:.100}{way_out}"
        )
    if wanted is not None:
        return wanted
    if value != 1.0:
        raise ValueError(
            f"`strength`: the role layer in {str(path)!r} was saved with strength {value} of 1, where its guarantees "
            f"do not hold; pass strength={value} to have it like that, or strength=1.0 for all of it"
        )
    return 1.0


def read_config(path: Any) -> dict[str, Any] | None:
    """Return the `config.json` at `path`, as it is; None where there is none."""
    return Source(path).read_json(CONFIG_NAME)
