"""`RoleTrainer`: the Hugging Face Trainer with a separate learning rate for role parameters; its mixin for others."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer
from transformers import PreTrainedModel, Trainer, TrainerState, TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME

from rolesafe.config import RoleConfig
from rolesafe.mechanisms import set_strength
from rolesafe.patching import is_patched
from rolesafe.patching.adapters import check_adapter, freeze_constants
from rolesafe.patching.checkpoint import check_checkpoint, read_config
from rolesafe.patching.locked import check_lock, locked
from rolesafe.patching.seal import UNSAVED, unsaved_names
from rolesafe.training.anneal import AnnealRoles
from rolesafe.training.collator import RoleCollator
from rolesafe.training.keep_locked import KeepLocked
from rolesafe.training.log import LogRoles
from rolesafe.training.privileged import check_rows
from rolesafe.training.rates import RoleRates, check_rates, groups, values
from rolesafe.training.reply_losses import ReplyLoss


class RoleTraining:
    """Mixed into a subclass of `Trainer`, in front of it: a learning rate for the role parameters, checked checkpoints.

    Attributes:
        role_learning_rate: See :class:`RoleTrainer`. Set before the Trainer creates its optimizer.
    """

    role_learning_rate: RoleRates | None = None

    def create_optimizer(self: Any, *args: Any, **kwargs: Any) -> Optimizer:
        """Create the Trainer's optimizer, and move the role parameters to a group of their own."""
        if self.optimizer is not None:
            return self.optimizer
        optimizer: Optimizer = super().create_optimizer(*args, **kwargs)  # type: ignore[misc]
        if self.role_learning_rate is None:
            return optimizer
        own = groups(self.model, self.role_learning_rate)
        if not own:
            return optimizer
        ids = {id(p) for group in own for p in group["params"]}
        if not ids <= {id(p) for group in optimizer.param_groups for p in group["params"]}:
            raise ValueError(
                f"`role_learning_rate`: expected None, or an optimizer that holds the role parameters themselves, got "
                f"{type(optimizer).__name__}"
            )
        for group in optimizer.param_groups:
            group["params"] = [p for p in group["params"] if id(p) not in ids]
        for group in own:
            optimizer.add_param_group(group)
        return optimizer

    def log(self: Any, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Log as the Trainer does; :class:`LogRoles` comes before the reporters."""
        self.callback_handler.callbacks.sort(key=lambda one: not isinstance(one, LogRoles))
        super().log(logs, *args, **kwargs)  # type: ignore[misc]

    def _load_from_checkpoint(self: Any, resume_from_checkpoint: str, model: Any = None) -> None:
        """Load as the Trainer does; raise where it only logs missing weights."""
        self._check_checkpoint(resume_from_checkpoint)
        self._anneal_to(resume_from_checkpoint)
        super()._load_from_checkpoint(resume_from_checkpoint, model)  # type: ignore[misc]
        if any(is_patched(module) for module in self.model.modules()):
            check_lock(self.model)  # the checkpoint of another run

    def _load_best_model(self: Any) -> None:
        """Load as the Trainer does; raise where it only logs missing weights."""
        self._check_checkpoint(self.state.best_model_checkpoint)
        self._check_full_strength(str(self.state.best_model_checkpoint))
        super()._load_best_model()  # type: ignore[misc]

    def _check_checkpoint(self: Any, directory: str | Path) -> None:
        patched = next((module for module in self.model.modules() if is_patched(module)), None)
        if patched is None or self.is_fsdp_enabled or self.is_deepspeed_enabled:
            return  # sharded states load whole, or raise
        if hasattr(self.model, "peft_config"):
            check_adapter(directory, self.model, self.model.active_adapters[0])
        else:
            check_checkpoint(directory, patched)

    def _anneal_to(self: Any, directory: str) -> None:
        """Set the strength of a checkpoint that is resumed: adapters load at the strength that they were saved with."""
        anneal = next((one for one in self.callback_handler.callbacks if isinstance(one, AnnealRoles)), None)
        file = Path(directory) / TRAINER_STATE_NAME
        if anneal is not None and file.is_file():
            state = TrainerState.load_from_json(str(file))
            set_strength(self.model, anneal.strength(state.global_step, state.max_steps))

    def _check_full_strength(self: Any, directory: str) -> None:
        """Raise where the best checkpoint was saved before the end of an annealing, with less than full strength.

        An adapter holds its strength itself, and raises when it is loaded.
        """
        about = None if hasattr(self.model, "peft_config") else read_config(directory)
        strength = 1.0 if about is None else about.get("strength", 1.0)
        if strength != 1.0:
            raise ValueError(
                f"`load_best_model_at_end`: the best checkpoint, {directory!r}, was saved with strength {strength} of "
                "1, where the guarantees of its role layer do not hold. Set load_best_model_at_end=False with "
                "AnnealRoles, or compare checkpoints from its end on."
            )


class RoleTrainer(RoleTraining, Trainer):
    """Train patched models, or plain ones on the same batches, on conversations.

    Seeds, progress bar, checkpoints, `train(resume_from_checkpoint=True)` and distributed training are the Trainer's.
    Checkpoints of a patched model load with :func:`rolesafe.from_pretrained`.

    Args:
        model: Patched or plain, also wrapped by PEFT.
        args: The Trainer's arguments. `remove_unused_columns` is set to False: the collator needs `messages`.
        data_collator: Its `with_roles` and roles must fit the model. It warns where the first 64 rows have no
            privileged token, and the role layer has parts that act on these.
        role_learning_rate: Learning rate of the role parameters, without weight decay, or one for each learned part
            (:data:`rolesafe.training.rates.PARTS`): numbers such as biases need 10 to 100 times the rate of weight
            matrices. None: that of `args`; 0: they are not trained, and may be frozen.
        loss: Replaces the model's own loss, see :class:`rolesafe.training.ReplyLoss`.
        **kwargs: See `Trainer` (`train_dataset`, `eval_dataset`, `callbacks`, ...).

    Raises:
        ValueError: `data_collator` and `model` have other roles, no row of `train_dataset` (a list, tuple or
            ``datasets.Dataset``) has a privileged token for the parts of the role layer that act on these, there are no
            role parameters for the rate, the role layer is frozen and the rate is not 0, PEFT would not save it, the
            optimizer is given and would ignore the rate, or a locked parameter moved or has an adapter.
        TypeError: `model` is no module, or `data_collator` is missing.
    """

    def __init__(
        self,
        model: PreTrainedModel | nn.Module,
        args: TrainingArguments,
        *,
        data_collator: RoleCollator | None = None,
        role_learning_rate: RoleRates | None = None,
        loss: ReplyLoss | None = None,
        **kwargs: Any,
    ) -> None:
        if not isinstance(model, nn.Module):
            way_out = "" if kwargs.get("model_init") is None else ". Call `model_init` yourself and pass its result."
            raise TypeError(f"`model`: expected a model, got {type(model).__name__}{way_out}")
        if "collator" in kwargs:
            warnings.warn("`collator` is deprecated. Use `data_collator`.", DeprecationWarning, stacklevel=2)
            data_collator = kwargs.pop("collator")
        if data_collator is None:
            raise TypeError("`data_collator`: expected a RoleCollator, got None")
        _check_roles(model, data_collator)
        for module in (one for one in model.modules() if is_patched(one)):
            check_rows(module.rolesafe_config, "train_dataset", kwargs.get("train_dataset"))
            data_collator.watch.start(module.rolesafe_config)
        check_trainable(model, role_learning_rate)
        if any(values(role_learning_rate)):
            check_optimizer(args, kwargs)
        # The collator needs the column `messages`, which no model takes.
        args.remove_unused_columns = False
        self.role_learning_rate = role_learning_rate
        super().__init__(model=model, args=args, data_collator=data_collator, **kwargs)
        self.reply_loss = loss
        if loss is not None:
            _mean_per_batch(self)
        keep_locked(self, model)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """Return the loss of `loss`, or the Trainer's."""
        if self.reply_loss is None:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        loss, outputs = self.reply_loss(model, inputs)
        return (loss, outputs) if return_outputs else loss


def check_trainable(model: nn.Module, rate: RoleRates | None) -> None:
    """Freeze constant shares of `model`, then raise a ValueError where training at `rate` would lose role parameters.

    Args:
        rate: Learning rate of the role parameters, see :class:`RoleTrainer`.
    """
    freeze_constants(model)
    check_rates(model, rate)
    if lost := unsaved_names(model):
        raise ValueError(UNSAVED.format(lost[0]))


def keep_locked(trainer: Trainer, model: nn.Module) -> None:
    """Check locked parameters of `model` now, and during the training of `trainer`."""
    if any(is_patched(module) and locked(module) for module in model.modules()):
        check_lock(model)
        if not any(isinstance(one, KeepLocked) for one in trainer.callback_handler.callbacks):
            trainer.add_callback(KeepLocked())


def with_loss(trainer: type[Trainer], loss: ReplyLoss) -> type[Trainer]:
    """Return a subclass of any Trainer, such as TRL's ``SFTTrainer``, that minimises `loss`.

    The batches must be those of a :class:`RoleCollator`: pass it as `data_collator`, with `remove_unused_columns=False`
    in the arguments. ``SFTTrainer`` also needs ``dataset_kwargs={"skip_prepare_dataset": True}`` and a
    ``datasets.Dataset``: give it encoded rows, and set `train_dataset` to a :class:`SafetyRows` afterwards.
    :class:`RoleTrainer` takes `loss` and such rows itself, and checks roles and checkpoints as well.

    Raises:
        TypeError: `trainer` is no class of a Trainer.
    """
    if not (isinstance(trainer, type) and issubclass(trainer, Trainer)):
        raise TypeError(f"`trainer`: expected a subclass of transformers.Trainer, got {trainer!r}")

    class WithLoss(trainer):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            _mean_per_batch(self)

        def compute_loss(self, model: nn.Module, inputs: Any, return_outputs: bool = False, **kwargs: Any) -> Any:
            value, outputs = loss(model, inputs)
            return (value, outputs) if return_outputs else value

    WithLoss.__name__ = WithLoss.__qualname__ = f"{trainer.__name__}WithLoss"
    return WithLoss


def _mean_per_batch(trainer: Trainer) -> None:
    """Have the Trainer divide the loss by the number of accumulated batches: a ReplyLoss is a mean over one batch."""
    trainer.model_accepts_loss_kwargs = False
    trainer.loss_is_scaled_for_ga = False


def _check_roles(model: nn.Module, collator: RoleCollator) -> None:
    """Raise where the batches of `collator` do not have the roles of `model`."""
    patched = [module for module in model.modules() if is_patched(module)]
    if bool(patched) != collator.with_roles:
        raise ValueError(
            f"`data_collator`: expected with_roles={bool(patched)} (the model is {'' if patched else 'not '}patched), "
            f"got {collator.with_roles}"
        )
    for module in patched:
        if _roles(module.rolesafe_config) != _roles(collator.config):
            raise ValueError(
                f"`data_collator`: expected the model's roles {_roles(module.rolesafe_config)}, got "
                f"{_roles(collator.config)}. Pass config=model.rolesafe_config."
            )


def check_optimizer(args: TrainingArguments, kwargs: dict[str, Any]) -> None:
    """Raise where the optimizer is given, so the rate would be ignored."""
    engine = getattr(args, "hf_deepspeed_config", None)
    for name, given in (
        ("optimizers", (kwargs.get("optimizers") or (None,))[0]),
        ("deepspeed", None if engine is None else engine.config.get("optimizer")),
    ):
        if given is not None:
            raise ValueError(
                f"`role_learning_rate`: expected None with an optimizer in `{name}`, got a rate. Give "
                "rolesafe.named_role_parameters(model) a group in that optimizer, or leave it out."
            )


def _roles(config: RoleConfig) -> tuple[tuple[str, ...], str]:
    """Return the names of the roles in order, and the role of generated tokens."""
    return config.roles, config.generated
