"""`RoleTrainer`: the Hugging Face Trainer with a learning rate of their own for role parameters."""

from __future__ import annotations

import math
from typing import Any

from torch import nn
from torch.optim import Optimizer
from transformers import Trainer, TrainingArguments

from rolesafe.config import RoleConfig
from rolesafe.patching import is_patched, named_role_parameters
from rolesafe.patching.adapters import check_adapter, freeze_constants, learned_parameters
from rolesafe.patching.checkpoint import check_checkpoint
from rolesafe.patching.seal import UNSAVED, unsaved_names
from rolesafe.training.collator import RoleCollator


class RoleTrainer(Trainer):
    """A `Trainer` for conversations, for patched models and their plain twins alike.

    Everything else is the Trainer's: seeds, progress bar, checkpoints, `train(resume_from_checkpoint=True)`,
    distributed training. Checkpoints of a patched model load with :func:`rolesafe.from_pretrained`.

    Args:
        model: Patched, or plain (then batches carry no roles).
        args: The Trainer's arguments. `remove_unused_columns` is set to False: the collator needs `messages`.
        collator: What turns rows into batches. Its `with_roles` must fit the model.
        role_learning_rate: Learning rate of the role parameters, without weight decay; None: that of `args`; 0: they
            stay as they are, and may be frozen.
        **kwargs: As for `Trainer` (`train_dataset`, `eval_dataset`, `callbacks`, ...).

    Raises:
        ValueError: `collator` and `model` disagree about roles, there are no role parameters to give a rate to, the
            role layer is frozen and no rate of 0 says that it should be, PEFT would not save it, or the rate would be
            ignored because the optimizer comes from elsewhere.
        TypeError: `model` is no module.
    """

    def __init__(
        self,
        model: Any,
        args: TrainingArguments,
        *,
        collator: RoleCollator,
        role_learning_rate: float | None = None,
        **kwargs: Any,
    ) -> None:
        if not isinstance(model, nn.Module):
            way_out = (
                "" if kwargs.get("model_init") is None else "; call `model_init` yourself and pass what it returns"
            )
            raise TypeError(f"`model`: expected a model, got {type(model).__name__}{way_out}")
        has_roles = any(is_patched(module) for module in model.modules())
        if has_roles != collator.with_roles:
            raise ValueError(
                f"`collator`: expected with_roles={has_roles} (the model is {'' if has_roles else 'not '}patched), "
                f"got {collator.with_roles}"
            )
        modules: list[Any] = list(model.modules())
        for module in modules:
            if is_patched(module) and _roles(module.rolesafe_config) != _roles(collator.config):
                raise ValueError(
                    f"`collator`: expected the model's roles {_roles(module.rolesafe_config)}, got "
                    f"{_roles(collator.config)}: the ids would mean something else; pass config=model.rolesafe_config"
                )
        freeze_constants(model)
        _check_rate(model, role_learning_rate)
        if role_learning_rate:
            _check_optimizer(args, kwargs)
        if lost := unsaved_names(model):
            raise ValueError(UNSAVED.format(lost[0]))
        # The collator needs the column `messages`, which no model takes.
        args.remove_unused_columns = False
        self.role_learning_rate = role_learning_rate
        super().__init__(model=model, args=args, data_collator=collator, **kwargs)

    def create_optimizer(self, *args: Any, **kwargs: Any) -> Optimizer:
        """As the Trainer's, with the role parameters moved to a group of their own."""
        if self.optimizer is not None:
            return self.optimizer
        optimizer: Optimizer = super().create_optimizer(*args, **kwargs)
        if self.role_learning_rate is None:
            return optimizer
        own: list[nn.Parameter] = [p for _, p in named_role_parameters(self.model) if p.requires_grad]
        if not own:
            return optimizer
        ids = {id(p) for p in own}
        if not ids <= {id(p) for group in optimizer.param_groups for p in group["params"]}:
            raise ValueError(
                f"`role_learning_rate`: {type(optimizer).__name__} does not hold the role parameters as they are; "
                "expected None, or another optimizer"
            )
        for group in optimizer.param_groups:
            group["params"] = [p for p in group["params"] if id(p) not in ids]
        optimizer.add_param_group({"params": own, "lr": self.role_learning_rate, "weight_decay": 0.0})
        return optimizer

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """As the Trainer's, which only logs what it does not find."""
        self._check_checkpoint(resume_from_checkpoint)
        super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_best_model(self) -> None:
        """As the Trainer's, which only logs what it does not find."""
        self._check_checkpoint(self.state.best_model_checkpoint)
        super()._load_best_model()

    def _check_checkpoint(self, directory: Any) -> None:
        patched = next((module for module in self.model.modules() if is_patched(module)), None)
        if patched is None or self.is_fsdp_enabled or self.is_deepspeed_enabled:
            return  # sharded states load whole, or raise
        if hasattr(self.model, "peft_config"):
            check_adapter(directory, self.model, self.model.active_adapters[0])
        else:
            check_checkpoint(directory, patched)


def _check_rate(model: nn.Module, rate: Any) -> None:
    """Raise where the rate and the role parameters of `model` do not go together."""
    if rate is not None and (isinstance(rate, bool) or not isinstance(rate, (int, float)) or not 0 <= rate < math.inf):
        raise ValueError(f"`role_learning_rate`: expected a positive number, got {rate}")
    learned = learned_parameters(model)
    trains = any(p.requires_grad for _, p in learned)
    if rate and not trains:
        raise ValueError("`role_learning_rate`: the model has no role parameters that train; expected None")
    if rate is None and learned and not trains:
        raise ValueError(
            "`role_learning_rate`: all role parameters are frozen (PEFT freezes what is not in its `modules_to_save`), "
            "so the role layer would not train. Pass modules_to_save=rolesafe.patching.role_modules(model) to the PEFT "
            "configuration, or role_learning_rate=0 to keep the role layer as it is"
        )


def _check_optimizer(args: TrainingArguments, kwargs: dict[str, Any]) -> None:
    """Raise where the optimizer is made elsewhere, so that a rate of its own would be ignored."""
    engine = getattr(args, "hf_deepspeed_config", None)
    for name, given in (
        ("optimizers", (kwargs.get("optimizers") or (None,))[0]),
        ("deepspeed", None if engine is None else engine.config.get("optimizer")),
    ):
        if given is not None:
            raise ValueError(
                f"`role_learning_rate`: expected None with an optimizer in `{name}`, which has rates of its own; give "
                "the parameters of rolesafe.named_role_parameters(model) a group there, or leave that optimizer out"
            )


def _roles(config: RoleConfig) -> tuple[tuple[str, ...], str]:
    """What decides the meaning of role ids: their names in order, and the role of generated tokens."""
    return config.roles, config.generated
