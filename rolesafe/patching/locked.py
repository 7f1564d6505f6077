"""Locked parameters: a role layer and chosen parameters that later training may not move, checked by digest.

The digests are kept in the model's configuration, so they are saved with the model and with its role layer. They are
checked when the model is saved and loaded, and by :class:`rolesafe.training.KeepLocked` while it trains.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from rolesafe.patching.checkpoint_files import tensor_digest
from rolesafe.patching.patched import is_patched, is_role_name

LOCKED = "rolesafe_locked"
"""Entry of a model's configuration: digest of each locked parameter, by name."""

ROLE_LAYER = "role_layer"
"""Stands for all role parameters among the parameters to lock."""

_ADAPTED = re.compile(r"\.(base_layer|original_module)\.")


def lock(model: nn.Module, parameters: Sequence[str] = (ROLE_LAYER,)) -> list[str]:
    """Lock parameters of a patched model at their values of now, and freeze them. Earlier locks stay.

    >>> import rolesafe
    >>> from rolesafe.patching import check_lock, lock
    >>> from rolesafe.training.tiny import tiny_llama
    >>> model = rolesafe.patch(tiny_llama(vocab_size=64, seed=0, layers=1), rolesafe.RoleConfig())
    >>> lock(model, ["role_layer", "model.norm"])
    ['model.layers.0.self_attn.rolesafe_heads.bias', 'model.norm.weight']
    >>> model.model.norm.weight.data += 1
    >>> check_lock(model)
    Traceback (most recent call last):
    ValueError: `model`: expected locked parameters at their values, got 1 that moved: model.norm.weight. ...

    Args:
        model: A patched model, without adapters.
        parameters: ``"role_layer"``, and names of parameters or of modules with all of theirs.

    Returns:
        Names of the parameters that this call locks.

    Raises:
        ValueError: `model` is not patched or has adapters, a name has no parameter, or an earlier lock is broken.
    """
    patched = _patched(model)
    if (adapted := next((n for n, _ in patched.named_parameters() if _is_adapter(n)), None)) is not None:
        raise ValueError(
            f"`model`: expected a model without adapters to lock, got {adapted}. Lock it before get_peft_model, or "
            "after merge_and_unload."
        )
    check_lock(patched)
    own = dict(patched.named_parameters())
    chosen: list[str] = []
    for wanted in (parameters,) if isinstance(parameters, str) else parameters:
        found = [n for n in own if (is_role_name(n) if wanted == ROLE_LAYER else f"{n}.".startswith(f"{wanted}."))]
        if not found:
            raise ValueError(
                f"`parameters`: expected '{ROLE_LAYER}', or names of parameters or modules of the model, got {wanted!r}"
                ". See model.named_parameters()."
            )
        chosen += found
    chosen = list(dict.fromkeys(chosen))
    digests = {name: _digest(own[name]) for name in chosen}
    setattr(patched.config, LOCKED, {**locked(patched), **digests})
    for name in chosen:
        own[name].requires_grad_(False)
    return sorted(chosen)


def unlock(model: nn.Module) -> None:
    """Remove all locks of a patched model. Its parameters stay frozen until `requires_grad_(True)`."""
    patched = _patched(model)
    if hasattr(patched.config, LOCKED):
        delattr(patched.config, LOCKED)


def locked(model: nn.Module) -> dict[str, str]:
    """Return the digests of the locked parameters of a patched model, by name; empty without a lock."""
    return dict(getattr(_patched(model).config, LOCKED, None) or {})


def check_lock(model: nn.Module) -> None:
    """Raise where a locked parameter moved, is gone, or has an adapter. Works through PEFT, DDP and FSDP.

    Raises:
        ValueError: As said; or `model` is not patched.
    """
    digests = locked(model)
    if not digests:
        return
    own = dict(_patched(model).named_parameters())
    plain = {_ADAPTED.sub(".", name): parameter for name, parameter in own.items() if not _is_adapter(name)}
    holders = {name.rpartition(".")[0] for name in digests}
    for name in own:
        if _is_adapter(name) and (of := _module_of(name)) in holders:
            raise ValueError(
                f"`model`: expected no adapter on a locked parameter, got {name}, which changes what {of} computes. "
                "Leave that module out of the adapter's target_modules and modules_to_save, or call "
                "rolesafe.patching.unlock(model)."
            )
    if lost := sorted(digests.keys() - plain.keys()):
        raise ValueError(f"`model`: expected all locked parameters, got none named {lost[0]}. {_HELP}")
    moved = sorted(name for name, value in digests.items() if _digest(plain[name]) != value)
    if moved:
        more = f" and {len(moved) - 3} more" if len(moved) > 3 else ""
        raise ValueError(
            f"`model`: expected locked parameters at their values, got {len(moved)} that moved: "
            f"{', '.join(moved[:3])}{more}. {_HELP}"
        )


_HELP = (
    "Train from the model that was locked, with these parameters frozen and in its dtype; or call "
    "rolesafe.patching.unlock(model) if the change is intended."
)


def check_names(value: Any, where: str) -> dict[str, str]:
    """Return the digests in a file `where`; a ValueError unless they are texts by name."""
    if not isinstance(value, Mapping) or not all(isinstance(x, str) for pair in value.items() for x in pair):
        raise ValueError(f"`path`: expected digests by name in `locked` of {where}, got {value!r:.80}")
    return dict(value)


def _digest(parameter: Tensor) -> str:
    if parameter.is_meta:
        raise ValueError(
            "`model`: expected locked parameters in the memory of this process, got an offloaded one. Load the model "
            "without device_map."
        )
    whole = parameter.full_tensor() if hasattr(parameter, "full_tensor") else parameter  # sharded: gathered
    return tensor_digest({"": whole})


def _is_adapter(name: str) -> bool:
    return ".modules_to_save." in name or ".lora_" in name or ".adapter_" in name or ".ia3_" in name


def _module_of(name: str) -> str:
    """Return the path of the module that an adapter's parameter belongs to."""
    return re.split(r"\.(?:modules_to_save|lora_|adapter_|ia3_)", name, maxsplit=1)[0]


def _patched(model: nn.Module) -> Any:
    found = next((module for module in model.modules() if is_patched(module)), None)
    if found is None:
        raise ValueError(f"`model`: expected a model patched by rolesafe, got {type(model).__name__}")
    return found
