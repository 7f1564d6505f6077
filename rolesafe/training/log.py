"""Log the role layer while it trains, to whatever the Trainer reports to."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from rolesafe.mechanisms import RoleHeads, get_strength
from rolesafe.patching import named_role_parameters


class LogRoles(TrainerCallback):
    """Callback of the Trainer that adds the state of the role layer to every log of the training loss.

    The printed log, ``state.log_history`` and the reporters (TensorBoard, Weights & Biases, trackio, ...) get

    - ``role/strength``: see :func:`rolesafe.mechanisms.set_strength`,
    - ``role/share_mean`` and ``role/share_min``: reserved share over all layers and heads, at full strength,
    - ``role/bias_abs_max``: largest absolute value of a finite entry of the bias tables,
    - ``role/learning_rate``: of the role parameters, where they have a parameter group of their own.

    Parts that the role layer lacks are left out. :class:`RoleTrainer` and the trainers of
    :mod:`rolesafe.integrations.trl` call it before the reporters. Any other Trainer calls its callbacks in order, so
    there put it first: ``trainer.callback_handler.callbacks.insert(0, LogRoles())``.
    """

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kw: Any,
    ) -> None:
        """Add the values to `logs` and to the history.

        Raises:
            ValueError: The model is not patched.
        """
        if logs is None or "loss" not in logs:
            return
        values = role_values(kw["model"], kw.get("optimizer"))
        logs.update(values)
        if state.log_history:
            state.log_history[-1].update(values)


@torch.no_grad()
def role_values(model: nn.Module, optimizer: Any = None) -> dict[str, float]:
    """Return the values that :class:`LogRoles` logs.

    Args:
        model: A patched model, or a wrapper of one (PEFT, DDP, FSDP). All processes of a sharded model have to call it.
        optimizer: Optimizer with the role parameters, or None.

    Raises:
        ValueError: `model` is not patched.
    """
    values = {"role/strength": get_strength(model)}
    heads = list(_active_heads(model))
    shares = [_whole(share) for part in heads if (share := part.reserved_share()) is not None]
    if shares := [share for share in shares if share.numel()]:
        every = torch.cat([share.flatten().float() for share in shares])
        values |= {"role/share_mean": every.mean().item(), "role/share_min": every.min().item()}
    biases = [_whole(part.bias).float() for part in heads if part.bias is not None]
    if biases := [bias for bias in biases if bias.numel()]:
        values["role/bias_abs_max"] = max(bias.nan_to_num(0, 0, 0).abs().max().item() for bias in biases)
    own = {id(parameter) for _, parameter in named_role_parameters(model)}
    for group in getattr(optimizer, "param_groups", ()):
        if group["params"] and all(id(parameter) in own for parameter in group["params"]):
            part = f"/{group['role_part']}" if "role_part" in group else ""
            values[f"role/learning_rate{part}"] = float(group["lr"])
    return values


def _active_heads(model: nn.Module) -> Iterator[RoleHeads]:
    """Iterate over the parts of attention layers that take part, PEFT's active copy where it made some."""
    active = getattr(model, "active_adapters", None)
    for path, part in model.named_modules():
        if isinstance(part, RoleHeads) and ".original_module" not in path:
            _, copied, adapter = path.partition(".modules_to_save.")
            if not copied or not isinstance(active, list) or adapter.partition(".")[0] in active:
                yield part


def _whole(tensor: Tensor) -> Tensor:
    """Return a tensor whole, also where it is sharded."""
    full: Any = getattr(tensor, "full_tensor", None)
    return tensor if full is None else full()
