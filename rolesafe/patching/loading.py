"""Load models: patched ones with their role layer, or any causal language model, plain or patched."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.utils import CONFIG_NAME

from rolesafe.config import RoleConfig
from rolesafe.mechanisms import set_strength
from rolesafe.patching.apply import patch
from rolesafe.patching.base_model import is_gguf, load_gguf, load_model, load_plain, split_options
from rolesafe.patching.checkpoint import (
    CONFIG_KEYS,
    ROLE_CONFIG_NAME,
    ROLE_KEYS,
    ROLE_WEIGHTS_NAME,
    UNVERIFIED,
    check_seal,
    check_table,
    check_version,
    read_config,
    role_config,
    saved_strength,
)
from rolesafe.patching.checkpoint_files import (
    Source,
    Tensors,
    check_keys,
    digest,
    field_of,
    model_tensors,
    open_tensors,
    read_metadata,
)
from rolesafe.patching.locked import LOCKED, check_lock, check_names, locked
from rolesafe.patching.patched import named_role_parameters
from rolesafe.patching.seal import is_sealed, unseal_config, unseal_tensor
from rolesafe.terminal import first_line

UNREADABLE = (
    *(ArithmeticError, AssertionError, AttributeError, ImportError, LookupError, MemoryError, OSError),
    *(RuntimeError, SafetensorError, StrictDataclassError, TypeError, ValueError),
)
"""Errors of transformers for a checkpoint with missing or truncated files, or with values of the wrong type."""


@contextmanager
def reading(path: str) -> Iterator[None]:
    """Turn any error of reading the checkpoint at `path` into a ValueError that names it."""
    try:
        yield
    except UNREADABLE as error:
        reason = f"{type(error).__name__}: {first_line(error)}"
        raise ValueError(
            f"`model`: expected a directory or hub id of a causal language model in transformers, "
            f"got {path!r}: {reason}"
        ) from error


def read_model(path: str, dtype: str = "auto") -> PreTrainedModel:
    """Return the model at `path`, patched if it was saved so, in eval mode. Never runs code of a checkpoint.

    Args:
        path: A directory or hub id.
        dtype: As for `AutoModelForCausalLM.from_pretrained`.

    Raises:
        ValueError: There is no such model, or its role layer does not load.
    """
    with reading(path):
        if is_alone(path) or is_sealed(read_config(path)):
            return from_pretrained(path, dtype=dtype)
        return AutoModelForCausalLM.from_pretrained(path, trust_remote_code=False, use_safetensors=True, dtype=dtype)


def is_alone(path: str) -> bool:
    """Return True for a directory that holds a role layer without its model."""
    return (Path(path) / ROLE_CONFIG_NAME).is_file()


def from_pretrained(
    path: str | Path,
    *,
    base_model: PreTrainedModel | str | Path | None = None,
    strength: float | None = None,
    verify: bool = True,
    **kwargs: Any,
) -> PreTrainedModel:
    """Load a model with its role layer.

    >>> import rolesafe, tempfile
    >>> from rolesafe.training.tiny import tiny_llama
    >>> model = rolesafe.patch(tiny_llama(vocab_size=64, seed=0), rolesafe.RoleConfig(share=0.5))
    >>> with tempfile.TemporaryDirectory() as directory:
    ...     model.save_pretrained(directory)
    ...     loaded = rolesafe.from_pretrained(directory)
    >>> loaded.rolesafe_config.share
    0.5

    Args:
        path: A directory or hub id, written by `model.save_pretrained` or :func:`save_role_layer`.
        base_model: Only for a role layer saved alone: a model, hub id, path or GGUF file in place of the recorded one.
        strength: Strength of the role layer, in [0, 1], see :func:`rolesafe.mechanisms.set_strength`. Required for a
            checkpoint saved with less than 1, for example in the middle of annealing.
        verify: Check the files against their digests. ``False``: for checkpoints of formats 1 and 2, which have none,
            and for files that you changed yourself.
        **kwargs: Options of `AutoModelForCausalLM.from_pretrained` for the place and way of loading: `dtype`,
            `device_map`, `attn_implementation`, `quantization_config`, `revision`, ...

    Returns:
        The patched model, in eval mode.

    Raises:
        ValueError: There is no role layer at `path`, a file was changed after it was saved, weights are missing or
            unexpected, the role layer does not fit the base model, a locked parameter moved, `strength` is required and
            not given, or an argument is not supported.
    """
    hub, options = split_options(kwargs)
    source = Source(path, hub)
    alone = source.read_json(ROLE_CONFIG_NAME)
    about = source.read_json(CONFIG_NAME)
    adapter = source.find("adapter_config.json")
    if sum((alone is not None, about is not None, adapter is not None)) > 1:
        raise ValueError(
            f"`path`: expected one checkpoint in {str(path)!r}, found several of {ROLE_CONFIG_NAME}, {CONFIG_NAME} and "
            "adapter_config.json. Move them into folders of their own."
        )
    if alone is not None:
        return _load_role_layer(source, alone, base_model, strength, verify, options)
    if base_model is not None:
        raise ValueError(
            f"`base_model`: expected None for a whole model (there is no {ROLE_CONFIG_NAME} in {str(path)!r})"
        )
    if about is None or not is_sealed(about):
        found = "no config.json" if about is None else f"a plain {about.get('model_type')!r:.100} model"
        if adapter is not None:
            found = "an adapter: load the model it belongs to, then PeftModel.from_pretrained(model, path)"
        raise ValueError(
            f"`path`: expected a checkpoint with a role layer at {str(path)!r}, found {found}. "
            "To add a role layer: rolesafe.patch(AutoModelForCausalLM.from_pretrained(path), RoleConfig(...))."
        )
    return _load_whole(source, about, strength, verify, options)


def _load_whole(
    source: Source, about: dict[str, Any], strength: float | None, verify: bool, options: dict[str, Any]
) -> PreTrainedModel:
    check_version(about, CONFIG_NAME)
    check_keys(about, CONFIG_KEYS, CONFIG_NAME)
    if "base_model_type" not in field_of(about, "base_config", dict, CONFIG_NAME):
        raise ValueError(f"`path`: expected `base_model_type` in `base_config` of {CONFIG_NAME}, found none")
    config = role_config(about, CONFIG_NAME)
    variant = options.get("variant")
    strength = saved_strength(source.path, about, strength)
    tensors = check_seal(source, variant) if verify else model_tensors(source, variant)
    base = unseal_config(about)
    model = load_model(source, base, tensors, options, f"{CONFIG_NAME} in {str(source.path)!r}")
    return _unmoved(_add(model, config, strength, source.path, tensors), verify)


def _add(model: PreTrainedModel, config: RoleConfig, strength: float, path: Any, saved: Tensors) -> PreTrainedModel:
    """Patch `model` and copy the role parameters in `saved` into it."""
    model = patch(model, config, allow_untested=True)
    set_strength(model, strength)
    parameters = dict(named_role_parameters(model))
    if missing := sorted(parameters.keys() - saved.shapes.keys()):
        raise ValueError(
            f"`path`: role parameters are missing in {str(path)!r}: {', '.join(missing[:3])}, ...: the role layer does "
            "not fit the base model"
        )
    if extra := sorted(set(saved.role_names) - parameters.keys()):
        raise ValueError(
            f"`path`: the weights in {str(path)!r} hold role parameters that its {CONFIG_NAME} does not mention: "
            f"{', '.join(extra[:3])}, ...: the role layer does not fit the base model"
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
            check_table(path, name, tensor)
            parameter.copy_(tensor)
    return model.eval()


def _load_role_layer(
    source: Source,
    about: dict[str, Any],
    base_model: Any,
    strength: float | None,
    verify: bool,
    options: dict[str, Any],
) -> PreTrainedModel:
    check_version(about, ROLE_CONFIG_NAME)
    check_keys(about, ROLE_KEYS, ROLE_CONFIG_NAME)
    for name in ("base_model_name_or_path", "base_model_type"):
        field_of(about, name, str, ROLE_CONFIG_NAME)
    config = role_config(about, ROLE_CONFIG_NAME)
    file = source.find(ROLE_WEIGHTS_NAME)
    if file is None:
        raise ValueError(f"`path`: {ROLE_WEIGHTS_NAME} is missing in {str(source.path)!r}")
    saved = open_tensors([file])
    if verify and (
        read_metadata(file).get(ROLE_CONFIG_NAME) != digest(about) or saved.role_digest() != about.get("tensors")
    ):
        raise ValueError(
            f"`path`: {ROLE_CONFIG_NAME} and {ROLE_WEIGHTS_NAME} in {str(source.path)!r} do not belong together: one "
            f"was changed, or comes from another save, or both from an older rolesafe. {UNVERIFIED}"
        )
    strength = saved_strength(source.path, about, strength)
    model = about["base_model_name_or_path"] if base_model is None else base_model
    if not isinstance(model, PreTrainedModel) and is_gguf(str(model)):
        model = load_gguf(str(model), options)
    elif not isinstance(model, PreTrainedModel):
        own = {} if base_model is None else {k: v for k, v in source.options.items() if k in ("revision", "subfolder")}
        shared = {k: v for k, v in source.options.items() if k not in ("revision", "subfolder")}
        model = load_plain(Source(model, {**shared, **own}), options)
    if model.config.model_type != about["base_model_type"]:
        raise ValueError(
            f"`base_model`: expected a {about['base_model_type']!r} model, got {model.config.model_type!r}"
        )
    model = _add(model, config, strength, source.path, saved)
    if "locked" in about:
        setattr(model.config, LOCKED, check_names(about["locked"], ROLE_CONFIG_NAME))
    return _unmoved(model, verify)


def _unmoved(model: PreTrainedModel, verify: bool) -> PreTrainedModel:
    """Return the model with its locked parameters frozen; a ValueError where one moved."""
    if verify:
        check_lock(model)
    digests = locked(model)
    for name, parameter in model.named_parameters():
        if name in digests:
            parameter.requires_grad_(False)
    return model
