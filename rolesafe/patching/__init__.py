"""Role layers in transformers models: the only package that touches transformers' internals.

The functions here import what they need when they are called: importing torch and transformers takes seconds.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel

    from rolesafe.config import RoleConfig

__all__ = ["from_pretrained", "is_patched", "patch", "role_modules", "role_parameters", "save_role_layer", "unpatch"]

Model = TypeVar("Model", bound="PreTrainedModel")


def patch(model: Model, config: RoleConfig, *, allow_untested: bool = False) -> Model:
    """Make `model` role-aware, in place: this instance alone, no modelling code replaced.

    Afterwards its `forward` and `generate` require `role_ids` (what :func:`rolesafe.encode` returns), and its role
    parameters are ordinary parameters of it, in fp32 and on the devices of its layers. Patching again with the same
    configuration does nothing.

    Args:
        model: A causal language model of transformers.
        config: What to add.
        allow_untested: Patch a family that rolesafe has no tests for. A layer that does not take part then raises at
            the first forward pass.

    Returns:
        The same object.

    Raises:
        TypeError: `model` is no transformers model, or `config` no RoleConfig.
        ValueError: Unknown family, or a configuration that does not fit the model.
    """
    from rolesafe.patching import apply

    return apply.patch(model, config, allow_untested=allow_untested)


def unpatch(model: Model) -> Model:
    """Take the role layer off again, in place: the model is of its base class and computes what it did before.

    Role parameters are lost; base parameters that were trained with the role layer keep their values.

    Raises:
        ValueError: `model` is not patched.
    """
    from rolesafe.patching import apply

    return apply.unpatch(model)


def is_patched(model: Any) -> bool:
    """Whether `model` is role-aware."""
    from rolesafe.patching import apply

    return apply.is_patched(model)


def role_parameters(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Names and parameters of the role layer, as in `model.named_parameters()`; works through wrappers such as PEFT."""
    from rolesafe.patching import apply

    return apply.role_parameters(model)


def role_modules(model: nn.Module) -> list[str]:
    """Return the names of the learned parts of a role layer, for `modules_to_save` of a PEFT configuration.

    With them PEFT trains the role layer, saves it with the adapter and loads it again. Without them it freezes it.

    Raises:
        ValueError: `model` is not patched.
    """
    from rolesafe.patching import adapters

    return adapters.role_modules(model)


def save_role_layer(model: Any, directory: str | Path, *, base_model: str | None = None) -> None:
    """Save the role parameters and configuration alone, for use beside an unchanged base model.

    Base parameters are not looked at: where they were trained too, use `model.save_pretrained`.

    Args:
        model: A patched model.
        directory: Gets `role_layer.safetensors` and `role_config.json`, a few hundred KB.
        base_model: Hub id or path of the base model; default: where `model` was loaded from.

    Raises:
        ValueError: `model` is not patched, or it is unknown what it was loaded from, or that has a role layer itself.
    """
    from rolesafe.patching import checkpoint

    checkpoint.save_role_layer(model, directory, base_model=base_model)


def from_pretrained(
    path: str | Path,
    *,
    base_model: Any = None,
    strength: float | None = None,
    verify: bool = True,
    **kwargs: Any,
) -> PreTrainedModel:
    """Load a model together with its role layer.

    Args:
        path: What `model.save_pretrained` or :func:`save_role_layer` wrote: a directory or a hub id.
        base_model: Only for a role layer saved alone: a model, hub id or path in place of the recorded one.
        strength: How much of the role layer is in force, in [0, 1]; see :func:`rolesafe.mechanisms.set_strength`.
            ``None``: all of it. Where it was saved with less, in the middle of an annealing say, it has to be given.
        verify: Check the files against their digests. ``False``: for checkpoints of formats 1 and 2, which have none,
            and for files that you changed yourself.
        **kwargs: Of those of `AutoModelForCausalLM.from_pretrained`, where and how to load: `dtype`, `device_map`,
            `attn_implementation`, `quantization_config`, `revision`, ...

    Returns:
        The patched model, in eval mode.

    Raises:
        ValueError: There is no role layer at `path`, a file was changed after it was saved, weights are missing or left
            over, the role layer does not fit the base model, it was saved with less than its full strength and
            `strength` is not given, or an argument is not taken.
    """
    from rolesafe.patching import checkpoint

    return checkpoint.from_pretrained(path, base_model=base_model, strength=strength, verify=verify, **kwargs)
