"""Train a model on conversations with one set of defaults."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random
from typing import Any

import torch
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PrinterCallback,
    TrainerCallback,
    TrainingArguments,
)
from transformers.trainer_pt_utils import get_length_grouped_indices
from transformers.trainer_utils import get_last_checkpoint

from rolesafe.arguments import is_integer, is_number
from rolesafe.config import RoleConfig
from rolesafe.patching import is_patched, named_role_parameters
from rolesafe.training.collator import RoleCollator
from rolesafe.training.trainer import RoleTrainer

ROOM = 256
"""Positions reserved for the longest training conversation when positions jump, in tokens."""

LOGGED = 50
"""Number of times that the loss is logged, for `callbacks`."""


@dataclass(frozen=True, kw_only=True)
class FitSettings:
    """Settings of :func:`fit`.

    Args:
        steps: Number of optimizer steps.
        batch_size: Number of conversations per step.
        learning_rate: Peak learning rate of the base parameters; warmup of 50 steps, then linear decay.
        role_learning_rate: Peak learning rate of the role parameters; ignored for a plain model.
        max_length: Largest number of tokens of a conversation; None: no limit.
        position_gap: Largest random jump of the positions, in tokens, see `RoleCollator`; limited to the context of the
            model minus :data:`ROOM` tokens.
        group_by_length: Batch conversations of about the same length, for less padding.
        checkpoints: Number of checkpoints; with 0 an interrupted training starts over.
        mixed_precision: Compute in bf16 on a GPU; a CPU computes in fp32.

    Raises:
        ValueError: A number is out of range.
    """

    steps: int
    batch_size: int = 32
    learning_rate: float = 3e-3
    role_learning_rate: float = 3e-3
    max_length: int | None = None
    position_gap: int = 0
    group_by_length: bool = False
    checkpoints: int = 0
    mixed_precision: bool = False

    def __post_init__(self) -> None:
        for name, least in (("steps", 1), ("batch_size", 1), ("position_gap", 0), ("checkpoints", 0)):
            if not is_integer(getattr(self, name), least):
                raise ValueError(f"`{name}`: expected a number >= {least}, got {getattr(self, name)}")
        for name in ("learning_rate", "role_learning_rate"):
            if not is_number(getattr(self, name)) or not getattr(self, name) > 0:
                raise ValueError(f"`{name}`: expected a positive number, got {getattr(self, name)}")

    def to_dict(self) -> dict[str, Any]:
        """Return a dictionary of JSON values."""
        return asdict(self)


def fit(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[Mapping[str, Any]],
    settings: FitSettings,
    *,
    seed: int,
    directory: Path,
    config: RoleConfig | None = None,
    progress: Callable[[float], None] | None = None,
    callbacks: Sequence[TrainerCallback] = (),
) -> float:
    """Train `model` in place, plain or patched, and return the duration in seconds.

    With ``settings.checkpoints`` an interrupted call resumes from the last checkpoint in `directory`.

    Args:
        model: A causal language model; a patched one gets `role_ids`.
        tokenizer: With a chat template.
        rows: Rows with `messages` that end with the reply to learn, or rows of :meth:`RoleCollator.encode`.
        settings: Steps, rates and batches.
        seed: Seed of the order of the conversations, dropout and jumps.
        directory: Directory for checkpoints; removed at the end.
        config: Roles of a plain model; default: ``RoleConfig()``. Ignored for a patched model.
        progress: Called with the finished fraction.
        callbacks: Further callbacks for the Trainer.

    Raises:
        ValueError: As :class:`RoleCollator` and :class:`RoleTrainer`.
    """
    has_roles = is_patched(model)
    roles = model.rolesafe_config if has_roles else (config or RoleConfig())
    context = getattr(model.config, "max_position_embeddings", 0) or 0
    trains_roles = has_roles and any(p.requires_grad for _, p in named_role_parameters(model))
    if settings.group_by_length:
        rows = grouped(rows, settings.batch_size, seed)
    arguments = TrainingArguments(
        output_dir=str(directory),
        max_steps=settings.steps,
        per_device_train_batch_size=settings.batch_size,
        learning_rate=settings.learning_rate,
        lr_scheduler_type="linear",
        warmup_steps=50,
        weight_decay=0.01,
        adam_beta2=0.98,
        seed=seed,
        train_sampling_strategy="sequential" if settings.group_by_length else "random",
        save_strategy="steps" if settings.checkpoints else "no",
        save_steps=max(1, settings.steps // max(1, settings.checkpoints)),
        save_total_limit=1,
        logging_steps=max(1, settings.steps // LOGGED),
        logging_nan_inf_filter=False,  # it would sync with the device in every step
        bf16=settings.mixed_precision and torch.cuda.is_available(),
        report_to=[],
        dataloader_pin_memory=False,
        disable_tqdm=True,
    )
    trainer = _Trainer(
        model,
        arguments,
        data_collator=RoleCollator(
            tokenizer=tokenizer,
            config=roles,
            with_roles=has_roles,
            max_length=settings.max_length,
            position_gap=min(settings.position_gap, max(0, context - ROOM)),
        ),
        role_learning_rate=settings.role_learning_rate if trains_roles else 0.0,
        train_dataset=rows,
        callbacks=[*callbacks, *([] if progress is None else [_Progress(progress)])],
    )
    trainer.remove_callback(PrinterCallback)
    started = time.perf_counter()
    trainer.train(resume_from_checkpoint=get_last_checkpoint(str(directory)) if directory.exists() else None)
    shutil.rmtree(directory, ignore_errors=True)
    return time.perf_counter() - started


def grouped(rows: Sequence[Mapping[str, Any]], batch_size: int, seed: int) -> list[Mapping[str, Any]]:
    """Return `rows` ordered so that those of one batch have about the same length; batches are in random order."""
    lengths = [
        len(row["input_ids"]) if "input_ids" in row else sum(len(m["content"].split()) for m in row["messages"])
        for row in rows
    ]
    order = get_length_grouped_indices(lengths, batch_size, generator=torch.Generator().manual_seed(seed))
    batches = [order[i : i + batch_size] for i in range(0, len(order), batch_size)]
    Random(f"batches/{seed}").shuffle(batches)
    return [rows[i] for batch in batches for i in batch]


class Losses(TrainerCallback):
    """Callback that records the mean loss since the last log, by step.

    Attributes:
        mean: Loss by step.
    """

    def __init__(self) -> None:
        self.mean: dict[int, float] = {}

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if "loss" in (logs or {}):
            self.mean[state.global_step] = float(logs["loss"])


class _Trainer(RoleTrainer):
    def floating_point_ops(self, inputs: Any) -> int:
        """Return 0: counting visits all modules in every step."""
        return 0


class _Progress(TrainerCallback):
    def __init__(self, tell: Callable[[float], None]) -> None:
        self.tell = tell

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step % 10 == 0:
            self.tell(state.global_step / state.max_steps)
