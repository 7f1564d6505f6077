"""Common parts of the trainers: the patched model, arguments that would lose roles, precision of role parameters."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase
from trl.trainer.utils import pad

from rolesafe.integrations.peft import check_peft
from rolesafe.patching import is_patched, named_role_parameters
from rolesafe.training.privileged import check_rows
from rolesafe.training.rates import RoleRates
from rolesafe.training.trainer import check_optimizer, check_trainable


def patched_model(model: Any) -> Any:
    """Return the patched model in `model`, which PEFT may have wrapped.

    Raises:
        TypeError: `model` is a name. TRL would load a plain model.
        ValueError: `model` is not patched.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(
            f"`model`: expected a patched model, got {model!r}, which TRL would load without a role layer. Pass "
            "rolesafe.from_pretrained(path), or rolesafe.patch(model, config)."
        )
    found = next((module for module in model.modules() if is_patched(module)), None)
    if found is None:
        raise ValueError(
            f"`model`: expected a model patched by rolesafe, got {type(model).__name__}. Call rolesafe.patch first, or "
            "train it with TRL's own trainer."
        )
    return found


def refuse(given: Mapping[str, Any], **reasons: str) -> None:
    """Raise a ValueError for the first of `given` that has a value and a reason against it."""
    for name, reason in reasons.items():
        if given.get(name):
            raise ValueError(f"`{name}`: expected none, got one: {reason}")


def check_arguments(args: Any, kind: type) -> None:
    """Raise a TypeError unless `args` is a configuration of the class `kind`, or None."""
    if args is not None and not isinstance(args, kind):
        raise TypeError(f"`args`: expected a {kind.__name__} or None, got {type(args).__name__}")


def check_before(model: Any, args: Any, kwargs: Mapping[str, Any], rate: RoleRates | None) -> None:
    """Raise a ValueError, before anything is loaded or encoded, where training would lose role parameters.

    Also where no row has a privileged token and the role layer has parts that act on these.

    Args:
        model: Patched, maybe wrapped by PEFT.
        args: The trainer's configuration, or None.
        kwargs: Its other arguments.
        rate: Learning rate of the role parameters.
    """
    if kwargs.get("peft_config") is not None:
        check_peft(model, kwargs["peft_config"], rate)
    else:
        check_trainable(model, rate)
    check_rows(patched_model(model).rolesafe_config, "train_dataset", kwargs.get("train_dataset"))
    if rate:
        check_optimizer(args, dict(kwargs))


def copy_reference(model: Any) -> Any:
    """Return a frozen copy of a patched model with its role layer, as reference. TRL would load the plain base."""
    return copy.deepcopy(model).requires_grad_(False).eval()


def text_tokenizer(processing_class: Any) -> PreTrainedTokenizerBase:
    """Return `processing_class`, a tokenizer.

    Raises:
        TypeError: It is a processor of images or sound.
    """
    if not isinstance(processing_class, PreTrainedTokenizerBase):
        raise TypeError(f"`processing_class`: expected a tokenizer, got {type(processing_class).__name__}")
    return processing_class


class WidePrecision:
    """Keep role parameters in fp32 where TRL rounds all that trains on a quantised base to bfloat16."""

    def __init__(self, model: nn.Module) -> None:
        self._values = {_plain_name(name): p.detach().clone() for name, p in _own(model)}

    @torch.no_grad()
    def restore(self, model: nn.Module) -> None:
        """Give rounded role parameters of `model`, PEFT's copies included, their dtype and value again."""
        for name, parameter in _own(model):
            value = self._values.get(_plain_name(name))
            if value is not None and parameter.dtype != value.dtype:
                parameter.data = value.to(parameter.device, copy=True)


def _own(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    return named_role_parameters(model)


def _plain_name(name: str) -> str:
    """Return the name of a role parameter without PEFT's wrappers."""
    name = name.removeprefix("base_model.model.")
    head, found, tail = name.partition(".modules_to_save.")
    name = f"{head}.{tail.partition('.')[2]}" if found else name
    return name.replace(".original_module.", ".")


def padded(rows: list[Tensor], value: int, multiple: int | None, side: str = "right") -> Tensor:
    """Return `rows` of integers as one tensor (B, T), padded as TRL pads the tokens."""
    both: Tensor = pad(rows, padding_value=value, padding_side=side, pad_to_multiple_of=multiple)
    return both
