"""Build a base model from a configuration and tensors: complete, of a known class and within limits, or an error."""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import (
    CONFIG_MAPPING,
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoModelForCausalLM,
    GenerationConfig,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.utils import CONFIG_NAME, GENERATION_CONFIG_NAME

from rolesafe.patching.checkpoint_files import HUB_OPTIONS, Source, Tensors, model_tensors
from rolesafe.patching.patched import is_role_name
from rolesafe.patching.seal import is_sealed, unseal_tensor

ATTENTION = ("eager", "sdpa", "flash_attention_2", "flash_attention_3", "flash_attention_4", "flex_attention")
"""Attention implementations to load a base model with. Others, such as "org/kernel", load code from the hub."""

OPTIONS = (
    "attn_implementation",
    "device_map",
    "disable_mmap",
    "dtype",
    "experts_implementation",
    "generation_config",
    "low_cpu_mem_usage",
    "max_memory",
    "offload_buffers",
    "offload_folder",
    "quantization_config",
    "torch_dtype",
    "variant",
)
"""Arguments of transformers' `from_pretrained` that are passed on."""

_FIXED = {
    "ignore_mismatched_sizes": "a role layer that does not fit is never skipped",
    "output_loading_info": "missing or unexpected weights raise",
    "trust_remote_code": "rolesafe never runs code from a checkpoint",
}

_FAULTS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    ImportError,
    LookupError,
    MemoryError,
    OSError,
    RuntimeError,
    StrictDataclassError,
    TypeError,
    ValueError,
    struct.error,
)
"""Errors of transformers for invalid configurations."""

_SCALARS_PER_BYTE = 8
"""Upper bound over all quantisation formats."""

_COUNTS = re.compile(r"(^|_)(n|num)_(\w+_)?(layer|block|expert|head|group|codebook)s?$|(^|_)layers?$")
"""Names of configuration values that count modules, blocks or heads."""


def split_options(kwargs: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Split the arguments of `from_pretrained` into those of the hub and those of loading.

    Raises:
        ValueError: An argument is unknown, or would skip a check.
    """
    kwargs = dict(kwargs)
    for name, reason in _FIXED.items():
        if kwargs.pop(name, False):
            raise ValueError(f"`{name}`: expected False, got True: {reason}")
    if kwargs.pop("use_safetensors", True) is False:
        raise ValueError("`use_safetensors`: expected True, got False: other formats run code when they are read")
    known = {*OPTIONS, *HUB_OPTIONS}
    if unknown := sorted(set(kwargs) - known):
        raise ValueError(
            f"`{unknown[0]}`: expected some of {sorted(known)}, got this one. For other options load the base model "
            "yourself and call rolesafe.patch."
        )
    for name in ("attn_implementation", "experts_implementation"):
        _check_implementation(kwargs.get(name), name, f"`{name}`")
    hub = {name: kwargs.pop(name) for name in HUB_OPTIONS if name in kwargs}
    return hub, kwargs


def causal_class(model_type: Any) -> type[PreTrainedModel]:
    """Return transformers' causal language model of the family `model_type`.

    Raises:
        ValueError: There is none.
    """
    kinds: Any = None
    if isinstance(model_type, str) and model_type in CONFIG_MAPPING:
        kinds = MODEL_FOR_CAUSAL_LM_MAPPING.get(CONFIG_MAPPING[model_type], None)
    if kinds is None:
        raise ValueError(f"`path`: transformers has no causal language model of the type {model_type!r:.100}")
    return kinds[0] if isinstance(kinds, tuple) else kinds


def check_class(model_type: Any, base: type[PreTrainedModel]) -> None:
    """Raise a ValueError where a saved model of the class `base` could not be loaded again."""
    if causal_class(model_type) is not base:
        raise ValueError(
            f"`model`: expected a {causal_class(model_type).__name__} of transformers to save as a whole, got a "
            f"{base.__module__}.{base.__qualname__}. Save the role layer with rolesafe.save_role_layer, and load it "
            "with from_pretrained(directory, base_model=your_model)."
        )


def is_gguf(path: str) -> bool:
    """Return True where `path` names a GGUF file."""
    return path.lower().endswith(".gguf")


def load_gguf(path: str, options: Mapping[str, Any]) -> PreTrainedModel:
    """Load a base model from a GGUF file. transformers converts its weights; they are not compared with a digest.

    Raises:
        ValueError: There is no such file, or it holds no causal language model that transformers converts.
    """
    file = Path(path)
    if not file.is_file():
        raise ValueError(f"`base_model`: expected a GGUF file, found none at {path!r}. Check the path.")
    with _named(f"`base_model`: {path!r} does not load as a GGUF file"):
        model = AutoModelForCausalLM.from_pretrained(
            str(file.parent), gguf_file=file.name, trust_remote_code=False, **options
        )
    model.config.name_or_path = model.name_or_path = path
    return model


def load_plain(source: Source, options: Mapping[str, Any]) -> PreTrainedModel:
    """Load a base model from its own checkpoint.

    Raises:
        ValueError: There is no plain causal language model in `source`, or it is incomplete.
    """
    where = f"{CONFIG_NAME} in {str(source.path)!r}"
    about = source.read_json(CONFIG_NAME)
    if about is None:
        raise ValueError(f"`base_model`: expected a causal language model, found no {where}")
    if is_sealed(about):
        raise ValueError(
            f"`base_model`: expected a plain base model, got {str(source.path)!r}, which has a role layer itself"
        )
    tensors = model_tensors(source, options.get("variant"))
    return load_model(source, about, tensors, options, where)


def load_model(
    source: Source, about: dict[str, Any], tensors: Tensors, options: Mapping[str, Any], where: str
) -> PreTrainedModel:
    """Build the model of the plain configuration `about`, without a role layer.

    Args:
        source: Directory or repository with the generation configuration.
        about: Content of a plain `config.json`.
        tensors: The weights; role tensors among them are skipped.
        options: Those of :data:`OPTIONS`.
        where: Name of `about` in errors.

    Raises:
        ValueError: `about` is malformed or too large for `tensors`, or weights are missing, unexpected or of other
            shapes.
    """
    kind = causal_class(about.get("model_type"))
    named = about.get("architectures") or [kind.__name__]
    if named != [kind.__name__]:
        raise ValueError(f"`path`: expected `architectures` [{kind.__name__!r}] in {where}, got {named!r:.200}")
    _check_values(about, tensors, where)
    names = [name for name in tensors.shapes if not is_role_name(name)]
    with _named(f"`path`: {where} makes no {kind.__name__}"):
        config: Any = kind.config_class.from_dict(_decoded(about))
        _check_size(kind, config, tensors, where)
    options = {name: value for name, value in options.items() if name != "variant"}
    with _named(f"`path`: {kind.__name__} in {str(source.path)!r} does not load"):
        model, info = kind.from_pretrained(
            None,
            config=config,
            state_dict={name: unseal_tensor(tensor) for name, tensor in tensors.read(names).items()},
            output_loading_info=True,
            trust_remote_code=False,
            **options,
        )
    for fault, found in (("missing", "missing_keys"), ("left over", "unexpected_keys"), ("wrong", "mismatched_keys")):
        if odd := sorted(str(name) for name in info[found]):
            raise ValueError(
                f"`path`: weights of {kind.__name__} in {str(source.path)!r} are {fault}: {', '.join(odd[:3])}, ...; "
                "expected all of them and no others. If this is intended, load the base model yourself and pass "
                "base_model=model, or call rolesafe.patch."
            )
    model.config.name_or_path = model.name_or_path = str(source.path)
    if options.get("generation_config") is None:
        generation = source.read_json(GENERATION_CONFIG_NAME)
        if generation is not None:
            with _named(f"`path`: {GENERATION_CONFIG_NAME} in {str(source.path)!r} is no generation configuration"):
                model.generation_config = GenerationConfig.from_dict(generation)
    return model


@contextmanager
def _named(fault: str) -> Iterator[None]:
    """Turn errors of transformers into a ValueError that begins with `fault`."""
    try:
        yield
    except _FAULTS as error:
        if str(error).startswith("`"):
            raise
        raise ValueError(f"{fault}: {type(error).__name__}: {error}") from error


def _check_values(about: Mapping[str, Any], tensors: Tensors, where: str) -> None:
    """Raise on values that load code, or that take long to build a model from before the weights are checked."""
    count = len(tensors.shapes)
    widest = max((n for _, shape in tensors.shapes.values() for n in shape), default=0)
    for name, value in _walk(about):
        if name.endswith("_implementation") or name == "_attn_implementation_internal":
            _check_implementation(value, name, f"`path`: `{name}` in {where}")
        if name == "fusion_config" and value is not None:
            raise ValueError(f"`path`: expected no `{name}` in {where}: it patches classes of transformers")
        if isinstance(value, int) and _COUNTS.search(name):
            most = count if "layer" in name or "block" in name else max(count, widest)
            if value > most:
                raise ValueError(
                    f"`path`: expected `{name}` of at most {most} in {where}, as its {count} tensors allow, got {value}"
                )


def _decoded(value: Any) -> Any:
    """Return a JSON value with the infinities that transformers writes as objects."""
    if isinstance(value, Mapping):
        if value.keys() == {"__float__"}:
            return float(value["__float__"])
        return {key: _decoded(inner) for key, inner in value.items()}
    return [_decoded(inner) for inner in value] if isinstance(value, list) else value


def _walk(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Iterate over the leaves of a JSON value, each with its key."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _walk(inner, str(key))
    elif isinstance(value, list):
        for inner in value:
            yield from _walk(inner, name)
    else:
        yield name, value


def _check_implementation(value: Any, name: str, argument: str) -> None:
    if isinstance(value, Mapping):
        for inner in value.values():
            _check_implementation(inner, name, argument)
        return
    if value is None or (name.startswith("experts") and isinstance(value, str) and "/" not in value):
        return
    if value not in ATTENTION:
        raise ValueError(
            f"{argument}: expected one of {ATTENTION}, got {value!r:.100}: others may load code from the hub"
        )


def _check_size(kind: Any, config: PretrainedConfig, tensors: Tensors, where: str) -> None:
    """Raise where a model is far larger than its weights, before memory for it is allocated."""
    with torch.device("meta"):
        empty = kind(config)
    needed, most = sum(p.numel() for p in empty.parameters()), _SCALARS_PER_BYTE * tensors.size
    if needed > most:
        raise ValueError(f"`path`: {where} asks for {needed} parameters, the weights have {tensors.size} bytes")
