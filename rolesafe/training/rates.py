"""Learning rates of the role parameters: one for all of them, or one for each part of the role layer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

from torch import nn

from rolesafe.arguments import is_number
from rolesafe.mechanisms import AddedHeads, DataTransform, RoleEmbedding, RolePart
from rolesafe.patching.adapters import learned_parameters

RoleRates = float | Mapping[str, float]
"""Learning rate of all role parameters, or of the parts of the role layer by name."""
PARTS: Final = ("bias", "share", "embedding", "added", "shift")
"""Parts with learned parameters, as in the fields of `RoleConfig` (`added`: `added_heads`)."""
DEFAULTS: Final[Mapping[str, float]] = {"bias": 5e-2, "share": 1e-2, "embedding": 1e-2, "added": 5e-4, "shift": 5e-4}
"""Learning rates for a pretrained model, by part. docs/pretrained.md compares those of bias, embedding and added heads
with three times as much; those of share and shift are starting values."""
SOME_ROLES: Final = 3e-2
"""The same for role vectors of some roles (`embedding_roles`): they leave other text alone, so a high rate costs it
nothing (docs/pretrained.md)."""

_WHOLE: Final = {AddedHeads: "added", RoleEmbedding: "embedding", DataTransform: "shift"}


def parts(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Iterate over the role parameters of `model`, each with the name of its part."""
    for module in model.modules():
        if isinstance(module, RolePart):
            for name, parameter in module.named_parameters(recurse=False):
                yield next((part for kind, part in _WHOLE.items() if isinstance(module, kind)), name), parameter


def default_rates(model: nn.Module) -> dict[str, float] | None:
    """Return the default rate of each learned part of `model`; None where it has none."""
    own = learned_parts(model)
    rates: dict[str, float] = {part: DEFAULTS[part] for part in PARTS if part in own}
    if "embedding" in own and all(x.roles is not None for x in model.modules() if isinstance(x, RoleEmbedding)):
        rates["embedding"] = SOME_ROLES
    return rates or None


def learned_parts(model: nn.Module) -> set[str]:
    """Return the names of the parts of `model` that learn, trainable now or not."""
    own = {id(parameter) for _, parameter in learned_parameters(model)}
    return {part for part, parameter in parts(model) if id(parameter) in own}


def check_rates(model: nn.Module, rates: RoleRates | None) -> None:
    """Raise a ValueError where the rates do not fit the role parameters of `model`.

    Args:
        model: Patched or plain, also wrapped.
        rates: See :class:`rolesafe.training.RoleTrainer`.
    """
    learned, of = learned_parameters(model), learned_parts(model)
    if isinstance(rates, Mapping):
        if unknown := sorted(map(str, set(rates) - set(PARTS))):
            raise ValueError(f"`role_learning_rate`: expected some of the parts {PARTS}, got {unknown[0]!r}")
        if set(rates) != of:
            raise ValueError(
                f"`role_learning_rate`: expected a rate for each learned part of the model, {sorted(of)}, got "
                f"{sorted(rates)}"
            )
    for rate in values(rates):
        if not is_number(rate) or rate < 0:
            raise ValueError(f"`role_learning_rate`: expected a positive number, got {rate}")
    trains = any(parameter.requires_grad for _, parameter in learned)
    if any(values(rates)) and not trains:
        raise ValueError(f"`role_learning_rate`: expected None without trainable role parameters, got {rates}")
    if rates is None and learned and not trains:
        raise ValueError(
            "`role_learning_rate`: expected 0 where all role parameters are frozen, got None (PEFT freezes all that is "
            "not in its `modules_to_save`). Pass modules_to_save=rolesafe.patching.role_modules(model) to the PEFT "
            "configuration to train the role layer, or role_learning_rate=0."
        )


def values(rates: RoleRates | None) -> tuple[float, ...]:
    """Return all rates."""
    if isinstance(rates, Mapping):
        return tuple(rates.values())
    return () if rates is None else (rates,)


def groups(model: nn.Module, rates: RoleRates) -> list[dict[str, Any]]:
    """Return the optimizer's groups of the trainable role parameters, without weight decay.

    A group of one part has its name as ``"role_part"``.
    """
    trained = [(part, parameter) for part, parameter in parts(model) if parameter.requires_grad]
    if not isinstance(rates, Mapping):
        every = [parameter for _, parameter in trained]
        return [{"params": every, "lr": rates, "weight_decay": 0.0}] if every else []
    by = {name: [parameter for part, parameter in trained if part == name] for name in rates}
    return [
        {"params": own, "lr": rates[name], "weight_decay": 0.0, "role_part": name} for name, own in by.items() if own
    ]
