"""`RoleTrainer`: the Hugging Face Trainer with a learning rate of their own for role parameters."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.optim import Optimizer
from transformers import Trainer, TrainingArguments

from rolesafe.config import RoleConfig
from rolesafe.patching import is_patched, role_parameters
from rolesafe.training.collator import RoleCollator


class RoleTrainer(Trainer):
    """A `Trainer` for conversations, for patched models and their plain twins alike.

    Everything else is the Trainer's: seeds, progress bar, checkpoints, `train(resume_from_checkpoint=True)`,
    distributed training. Checkpoints of a patched model load with :func:`rolesafe.from_pretrained`.

    Args:
        model: Patched, or plain (then batches carry no roles).
        args: The Trainer's arguments. `remove_unused_columns` is set to False: the collator needs `messages`.
        collator: What turns rows into batches. Its `with_roles` must fit the model.
        role_learning_rate: Learning rate of the role parameters, without weight decay; None: that of `args`.
        **kwargs: As for `Trainer` (`train_dataset`, `eval_dataset`, `callbacks`, ...).

    Raises:
        ValueError: `collator` and `model` disagree about roles, or there are no role parameters to give a rate to.
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
        has_roles = any(is_patched(module) for module in model.modules())
        if has_roles != collator.with_roles:
            raise ValueError(
                f"`collator`: expected with_roles={has_roles} (the model is {'' if has_roles else 'not '}patched), "
                f"got {collator.with_roles}"
            )
        for module in model.modules():
            if is_patched(module) and _roles(module.rolesafe_config) != _roles(collator.config):
                raise ValueError(
                    f"`collator`: expected the model's roles {_roles(module.rolesafe_config)}, got "
                    f"{_roles(collator.config)}: the ids would mean something else; pass config=model.rolesafe_config"
                )
        if role_learning_rate is not None and not any(p.requires_grad for _, p in role_parameters(model)):
            raise ValueError("`role_learning_rate`: the model has no role parameters that train; expected None")
        if role_learning_rate is not None and not role_learning_rate > 0:
            raise ValueError(f"`role_learning_rate`: expected a positive number, got {role_learning_rate}")
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
        own: list[nn.Parameter] = [p for _, p in role_parameters(self.model) if p.requires_grad]
        ids = {id(p) for p in own}
        for group in optimizer.param_groups:
            group["params"] = [p for p in group["params"] if id(p) not in ids]
        optimizer.add_param_group({"params": own, "lr": self.role_learning_rate, "weight_decay": 0.0})
        return optimizer


def _roles(config: RoleConfig) -> tuple[tuple[str, ...], str]:
    """What decides the meaning of role ids: their names in order, and the role of generated tokens."""
    return config.roles, config.generated
