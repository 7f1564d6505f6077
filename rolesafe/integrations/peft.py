"""PEFT with role layers: a LoRA configuration that trains and saves the role layer, and a loader of its adapters.

Adapters of a patched model are sealed (:mod:`rolesafe.patching.seal`): they hold a digest of their role layer and load
on that base only.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from rolesafe.extras import require
from rolesafe.patching import from_pretrained, is_patched, role_modules
from rolesafe.training.rates import RoleRates

__all__ = ["load_adapter", "role_lora_config"]

ROLE_LAYERS = r".*rolesafe_.*"
"""Regular expression of the modules of a role layer, for `exclude_modules`: they are trained whole."""


def role_lora_config(model: nn.Module, **options: Any) -> Any:
    """Return a `peft.LoraConfig` that trains the role layer of `model` and saves it with the adapter.

    LoRA, DoRA (``use_dora=True``) and QLoRA (a quantised base) alike. The role layer is in `modules_to_save`, so it is
    trained whole, and left out of the matrices of LoRA.

    >>> import rolesafe
    >>> from rolesafe.integrations.peft import role_lora_config
    >>> from rolesafe.training.tiny import tiny_llama
    >>> model = rolesafe.patch(tiny_llama(vocab_size=64, seed=0), rolesafe.RoleConfig(embedding="input"))
    >>> role_lora_config(model, r=8, target_modules="all-linear").modules_to_save
    ['rolesafe_embedding', 'rolesafe_heads']

    Args:
        model: A patched model, before `get_peft_model`.
        **options: See `peft.LoraConfig`. `modules_to_save` is added to.

    Raises:
        ImportError: `peft` is not installed.
        ValueError: `model` is not patched.
    """
    peft = require("peft", "peft")
    names = {*(options.pop("modules_to_save", None) or ()), *role_modules(model)}
    defaults = {"task_type": "CAUSAL_LM", "exclude_modules": ROLE_LAYERS}
    return peft.LoraConfig(**{**defaults, **options}, modules_to_save=sorted(names) or None)


def load_adapter(
    path: str | Path, base: nn.Module | str | Path | None = None, *, is_trainable: bool = False, **options: Any
) -> Any:
    """Load an adapter of a patched model on its role-aware base: `AutoPeftModelForCausalLM` for role layers.

    Args:
        path: Directory or hub id of the adapter.
        base: The base, or its path; default: the path that the adapter names.
        is_trainable: Train it further.
        **options: See :func:`rolesafe.from_pretrained`, for a base that is loaded.

    Returns:
        A `peft.PeftModel`.

    Raises:
        ImportError: `peft` is not installed.
        ValueError: The base has no role layer, or none is named.
        RuntimeError: The adapter was trained with another role layer.
    """
    peft = require("peft", "peft")
    if base is None:
        base = peft.PeftConfig.from_pretrained(str(path)).base_model_name_or_path
        if not base:
            raise ValueError(f"`base`: expected a model, got None, and the adapter in {str(path)!r} names none")
    model: Any = base
    if isinstance(base, (str, Path)):
        model = from_pretrained(base, **options)
    elif options:
        raise ValueError(f"`{next(iter(options))}`: expected nothing with a loaded `base`, got an option to load it")
    if not is_patched(model):
        raise ValueError(
            f"`base`: expected a model patched by rolesafe, got {type(model).__name__}. The adapter in {str(path)!r} "
            "was trained on a role-aware base: load that with rolesafe.from_pretrained."
        )
    return peft.PeftModel.from_pretrained(model, str(path), is_trainable=is_trainable)


def check_peft(model: nn.Module, config: Any, rate: RoleRates | None) -> None:
    """Raise a ValueError where PEFT with `config` would freeze the role layer of `model`, which trains at `rate`."""
    names = role_modules(model)
    given = getattr(config, "modules_to_save", None)
    if rate != 0 and (missing := sorted(set(names) - set(given or ()))):
        raise ValueError(
            f"`peft_config`: expected modules_to_save with {missing}, got {given}: PEFT would freeze the role layer. "
            "Use rolesafe.integrations.peft.role_lora_config(model, ...), or pass role_learning_rate=0."
        )
