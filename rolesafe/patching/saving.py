"""Save patched models: whole, or the role layer alone. The format is in :mod:`rolesafe.patching.checkpoint`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from transformers import PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion
from transformers.utils import CONFIG_NAME

from rolesafe.mechanisms import get_strength
from rolesafe.patching.base_model import check_class
from rolesafe.patching.checkpoint import (
    ROLE_CONFIG_NAME,
    ROLE_WEIGHTS_NAME,
    SEAL_NAME,
    json_digests,
    read_config,
    tensor_digests,
    write_json,
)
from rolesafe.patching.checkpoint_files import Source, digest, model_tensors, tensor_digest, weight_names
from rolesafe.patching.locked import check_lock, locked
from rolesafe.patching.patched import check_patched, named_role_parameters
from rolesafe.patching.seal import CHECKPOINT_VERSION, is_sealed, seal_gathered

_OTHERS = re.compile(r"role_config\.json|role_layer\.safetensors|adapter_(config\.json|model\..*)")
_PICKLED = re.compile(r"(pytorch_model(-\d+-of-\d+)?\.bin|tf_model\.h5|flax_model\.msgpack)(\.index\.json)?")
"""Files of other savers, which would decide what a folder loads as."""


def before_saving(model: Any, directory: Any, options: Mapping[str, Any]) -> dict[str, Any]:
    """Raise where a whole model could not be loaded again, and remove the weights of an earlier save.

    Returns:
        `options`, the arguments of `save_pretrained`, with a `state_dict` that is sealed. In families whose original
        format names the modules around role parameters otherwise, the weights keep the names of transformers.
    """
    if options.get("push_to_hub"):
        raise ValueError(
            "`push_to_hub`: expected False, got True: files would be uploaded before their digests are written. Call "
            "model.push_to_hub(repo_id)."
        )
    if options.get("distributed_checkpoint"):
        raise ValueError(
            "`distributed_checkpoint`: expected False, got True: its files cannot be sealed. The default gathers the "
            "weights of a sharded model."
        )
    check_class(model.config.model_type, model.rolesafe_base)
    check_lock(model)
    if _renames_roles(model):
        options = {**options, "save_original_format": False}
    if options.get("state_dict"):
        options = {**options, "state_dict": seal_gathered(model, options["state_dict"])}
    folder = Path(directory)
    if not folder.is_dir() or not options.get("is_main_process", True):
        return dict(options)
    found = sorted(f.name for f in folder.iterdir() if _OTHERS.fullmatch(f.name) or _PICKLED.fullmatch(f.name))
    if found:
        raise ValueError(
            f"`save_directory`: expected a folder without another checkpoint, {str(directory)!r} holds {found[0]}. "
            "Save into an empty folder, or delete that file first."
        )
    for name in (*weight_names(options.get("variant")), SEAL_NAME):  # stale ones would be read
        (folder / name).unlink(missing_ok=True)
    return dict(options)


def _renames_roles(model: Any) -> bool:
    """Return True where transformers would save role parameters under the names of the family's original format."""
    ours = dict(named_role_parameters(model))
    return revert_weight_conversion(model, ours).keys() != ours.keys()


def after_saving(model: Any, directory: Any, options: Mapping[str, Any]) -> None:
    """Write the digests of a whole model right after it was saved.

    Raises:
        ValueError: Not all role parameters were saved.
    """
    source = Source(directory)
    tensors = model_tensors(source, options.get("variant"))
    lost = sorted({name for name, _ in named_role_parameters(model)} - tensors.shapes.keys())
    if lost:
        raise ValueError(
            f"`state_dict`: expected all role parameters, got none for {', '.join(lost[:3])}, ...: the checkpoint in "
            f"{str(directory)!r} will not load"
        )
    write_json(Path(directory) / SEAL_NAME, {**json_digests(source), **tensor_digests(tensors)})


def save_role_layer(model: PreTrainedModel, directory: str | Path, *, base_model: str | None = None) -> None:
    """Save the role parameters and the role configuration alone, to load with an unchanged base model.

    Base parameters are not saved. Where they were trained too, use `model.save_pretrained`.

    Args:
        model: A patched model.
        directory: Gets `role_layer.safetensors` and `role_config.json`, a few hundred KB.
        base_model: Hub id or path of the base model, or a GGUF file; default: where `model` was loaded from. Pass it
            for a model from a GGUF file: transformers keeps its directory only.

    Raises:
        ValueError: `model` is not patched, its origin is unknown, or the base model has a role layer itself.
    """
    check_patched(model)
    base_model = base_model or model.config.name_or_path
    if not base_model:
        raise ValueError(
            "`base_model`: expected the hub id or path of the base model, got None, and this one was not loaded from "
            "any. Pass it, or save everything with model.save_pretrained(directory)."
        )
    if Path(base_model).is_dir() and is_sealed(read_config(base_model)):
        raise ValueError(
            f"`base_model`: expected a plain base model, got {str(base_model)!r}, which has a role layer. Pass "
            "the base model it was made from, or save everything with model.save_pretrained(directory)."
        )
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    ours = (ROLE_CONFIG_NAME, ROLE_WEIGHTS_NAME)
    names = [f.name for f in directory.iterdir() if f.name not in ours]
    if found := sorted(n for n in names if n.endswith(".safetensors") or n == CONFIG_NAME or _PICKLED.fullmatch(n)):
        raise ValueError(
            f"`directory`: expected a folder without a model, {str(directory)!r} holds {found[0]}. Save the "
            "role layer into a folder of its own."
        )
    check_lock(model)
    tensors = {name: p.detach().cpu().contiguous() for name, p in named_role_parameters(model)}
    about = {
        "format_version": CHECKPOINT_VERSION,
        "base_model_name_or_path": str(base_model),
        "base_model_type": model.config.model_type,
        "rolesafe": model.rolesafe_config.to_dict(),
        "strength": get_strength(model),
        "tensors": tensor_digest(tensors),
    }
    if digests := locked(model):
        about["locked"] = digests
    save_file(tensors, directory / ROLE_WEIGHTS_NAME, metadata={"format": "pt", ROLE_CONFIG_NAME: digest(about)})
    write_json(directory / ROLE_CONFIG_NAME, about)
