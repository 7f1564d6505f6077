"""Format of checkpoints: file names, keys and digests. Only safetensors and JSON are written and read.

A whole model is `config.json` (sealed), `generation_config.json`, the weights, and `rolesafe_seal.json` with digests of
the others. A role layer alone is `role_config.json` and `role_layer.safetensors`, each with a digest of the other. The
digests find edited, mixed up or half written files, and any change to one file alone. They are no signature: rewriting
all files can make them fit. Of the base weights they cover names, types and shapes, not values.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers.utils import CONFIG_NAME, GENERATION_CONFIG_NAME

from rolesafe.arguments import is_number
from rolesafe.config import RoleConfig
from rolesafe.patching.checkpoint_files import Source, Tensors, check_keys, digest, field_of, model_tensors
from rolesafe.patching.seal import CHECKPOINT_VERSION, is_sealed

ROLE_CONFIG_NAME = "role_config.json"
ROLE_WEIGHTS_NAME = "role_layer.safetensors"
SEAL_NAME = "rolesafe_seal.json"

CONFIG_KEYS = (
    "model_type", "format_version", "rolesafe", "strength", "vocab_size", "hidden_size", "transformers_version",
    "base_config",
)  # fmt: skip
SEAL_KEYS = ("format_version", CONFIG_NAME, GENERATION_CONFIG_NAME, "tensors", "role_tensors")
ROLE_KEYS = (
    "format_version",
    "base_model_name_or_path",
    "base_model_type",
    "rolesafe",
    "strength",
    "tensors",
    "locked",
)

UNVERIFIED = (
    "Pass verify=False to load it without these checks (only for your own files), and save it again to have them."
)


def json_digests(source: Source) -> dict[str, Any]:
    """Return the version and the digests of the JSON files of a whole model."""
    generation = source.read_json(GENERATION_CONFIG_NAME)
    return {
        "format_version": CHECKPOINT_VERSION,
        CONFIG_NAME: digest(source.read_json(CONFIG_NAME)),
        GENERATION_CONFIG_NAME: None if generation is None else digest(generation),
    }


def tensor_digests(tensors: Tensors) -> dict[str, Any]:
    """Return the digests of the weights of a whole model."""
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
            f"model.save_pretrained, so its configuration and role layer cannot be checked. {UNVERIFIED}"
        )
    check_version(seal, SEAL_NAME)
    check_keys(seal, SEAL_KEYS, SEAL_NAME)
    _compare(seal, json_digests(source), where)
    tensors = model_tensors(source, variant)
    _compare(seal, tensor_digests(tensors), where)
    return tensors


def _compare(seal: Mapping[str, Any], found: Mapping[str, Any], where: str) -> None:
    for name, value in found.items():
        if name not in seal or seal[name] != value:
            names = {"tensors": "the names, types or shapes of its weights", "role_tensors": "its role layer"}
            raise ValueError(
                f"`path`: {names.get(name, name)} in {where} differs from its digest in {SEAL_NAME}: it was changed "
                f"after the model was saved, or comes from another save. {UNVERIFIED}"
            )


def check_checkpoint(directory: Any, model: Any) -> None:
    """Raise where the whole model in `directory` was changed, or has another role configuration than `model`."""
    source = Source(directory)
    about = source.read_json(CONFIG_NAME)
    if about is None or not is_sealed(about):
        raise ValueError(f"`path`: expected a checkpoint with a role layer in {str(directory)!r}, found none")
    check_seal(source)
    if role_config(about, CONFIG_NAME) != model.rolesafe_config:
        raise ValueError(
            f"`path`: the checkpoint in {str(directory)!r} has another role configuration than the model. Patch the "
            "model with the configuration that the checkpoint was trained with."
        )


def write_json(file: Path, about: Mapping[str, Any]) -> None:
    """Write `about` to `file`, indented."""
    file.write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")


def role_config(about: Mapping[str, Any], where: str) -> RoleConfig:
    """Return the role configuration in `about`, the content of the file `where`."""
    values = field_of(about, "rolesafe", dict, where)
    try:
        return RoleConfig.from_dict(values)
    except (TypeError, ValueError) as error:
        raise ValueError(f"`path`: `rolesafe` in {where} is no role configuration: {error}") from error


def check_table(path: Any, name: str, table: Tensor) -> None:
    """Raise where a role parameter holds NaN, or infinity where it is no bias."""
    hidden = torch.isneginf(table) if name.endswith(".bias") else torch.zeros_like(table, dtype=torch.bool)
    if not bool((torch.isfinite(table) | hidden).all()):
        raise ValueError(f"`path`: {name} in {str(path)!r} holds NaN or infinite numbers; expected finite ones")


def check_version(about: Mapping[str, Any], where: str) -> None:
    """Raise where `about`, the content of the file `where`, has a format that this version does not read."""
    version = field_of(about, "format_version", int, where)
    if version > CHECKPOINT_VERSION:
        raise ValueError(
            f"`path`: {where} was written by a newer rolesafe (format {version}, this one reads {CHECKPOINT_VERSION}). "
            "Upgrade rolesafe."
        )
    if version < 1:
        raise ValueError(f"`path`: expected `format_version` of 1 to {CHECKPOINT_VERSION} in {where}, got {version}")


def saved_strength(path: Any, about: Mapping[str, Any], wanted: float | None) -> float:
    """Return the strength to load the role layer with.

    A checkpoint saved with less than full strength loads only where `wanted` is given: its guarantees do not hold.
    Checkpoints of format 1 have full strength; a configuration saved without its model has none.
    """
    value = about.get("strength", 1.0 if about.get("format_version", 0) < 2 else None)
    if value is None and wanted is not None and "strength" in about:
        return wanted
    if not is_number(value) or not 0.0 <= value <= 1.0:
        way_out = ". A configuration saved without its model has none. Pass strength=1.0." if value is None else ""
        raise ValueError(
            f"`path`: expected `strength`, a number in [0, 1], in {str(path)!r}, got {value!r:.100}{way_out}"
        )
    if wanted is not None:
        return wanted
    if value != 1.0:
        floor = about.get("rolesafe", {}).get("share_floor", 0.0)
        reached = f" (its reserved share has reached {value * floor:.3g} of {floor:g})" if floor else ""
        raise ValueError(
            f"`strength`: the role layer in {str(path)!r} was saved with strength {value} of 1, where its guarantees "
            f"do not hold{reached}. Pass strength={value} to keep it, or strength=1.0 for full strength."
        )
    return 1.0


def read_config(path: Any) -> dict[str, Any] | None:
    """Return the content of `config.json` at `path`; None where there is none."""
    return Source(path).read_json(CONFIG_NAME)
