"""Patch a model in place, and undo it. Imports are late, so that ``from rolesafe import patch`` is fast."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar, cast

from rolesafe.config import RoleConfig
from rolesafe.patching.patched import check_patched, is_patched

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Model = TypeVar("Model", bound="PreTrainedModel")


def patch(model: Model, config: RoleConfig, *, allow_untested: bool = False) -> Model:
    """Make `model` role-aware, in place; other instances of its class stay as they are.

    Afterwards `forward` and `generate` require `role_ids` (B, T), which :func:`rolesafe.encode` returns. The role
    parameters are ordinary parameters of the model, in fp32 (fp64 for a model in fp64) and on the devices of its
    layers. Patching again with the same configuration does nothing.

    >>> import rolesafe
    >>> from rolesafe.training.tiny import tiny_llama
    >>> model = rolesafe.patch(tiny_llama(vocab_size=64, seed=0), rolesafe.RoleConfig(embedding="input"))
    >>> model.print_trainable_parameters()
    trainable params: 164,908 || all params: 164,908 || trainable%: 100.0000 || role params: 620

    Args:
        model: A causal language model of transformers.
        config: Parts of the role layer.
        allow_untested: Patch a family without tests in rolesafe. A layer that ignores the roles then raises at the
            first forward pass.

    Returns:
        `model` itself.

    Raises:
        TypeError: `model` is no transformers model, or `config` no RoleConfig.
        ValueError: Unknown family, or a configuration that does not fit the model.
    """
    from transformers import PreTrainedModel

    from rolesafe.patching import families
    from rolesafe.patching.guards import accept_roles, check_whole
    from rolesafe.patching.install import check_fits, install, own_config
    from rolesafe.patching.model import role_aware_class
    from rolesafe.patching.moved import move_heads
    from rolesafe.patching.seal import unseal

    if not isinstance(model, PreTrainedModel):
        raise TypeError(
            f"`model`: expected a transformers PreTrainedModel, got {type(model).__name__}. "
            "Patch the base model before you wrap it (PEFT, DDP, ...)."
        )
    if not isinstance(config, RoleConfig):
        raise TypeError(f"`config`: expected a RoleConfig, got {type(config).__name__}")
    if is_patched(model):
        if model.rolesafe_config == config:
            return model
        raise ValueError(
            "`model`: expected a model without a role layer, got one patched with another configuration. Call "
            "rolesafe.unpatch(model) first (its role parameters are lost)."
        )
    check_whole(model)
    if not allow_untested:
        families.check_family(model)
    check_fits(model, config)
    base = type(model)
    own_config(model)
    model.config.rolesafe = config.to_dict()
    model.__class__ = cast(Any, role_aware_class)(base)
    try:
        install(model, config)
        move_heads(model, config)
    except BaseException:
        unseal(cast(Any, model))
        model.__class__ = base
        del model.config.rolesafe
        raise
    accept_roles(model)
    return model


def unpatch(model: Model) -> Model:
    """Remove the role layer, in place: `model` has its base class again and computes the same as before the patch.

    Role parameters are lost; base parameters that were trained with the role layer keep their values. Listed dedicated
    heads return to their places.

    >>> import rolesafe
    >>> from rolesafe.training.tiny import tiny_llama
    >>> model = rolesafe.patch(tiny_llama(vocab_size=64, seed=0), rolesafe.RoleConfig())
    >>> type(model).__name__, type(rolesafe.unpatch(model)).__name__
    ('RoleAwareLlamaForCausalLM', 'LlamaForCausalLM')

    Raises:
        ValueError: `model` is not patched, or listed heads cannot return, because others replaced their projections.
    """
    from rolesafe.patching.guards import refuse_roles
    from rolesafe.patching.install import uninstall
    from rolesafe.patching.locked import LOCKED
    from rolesafe.patching.moved import return_heads

    check_patched(model)
    base = cast(Any, model).rolesafe_base
    return_heads(cast(Any, model))
    uninstall(model)
    model.__class__ = base
    cast(Any, model).config.__dict__.pop(LOCKED, None)
    refuse_roles(cast(Any, model))
    return model
