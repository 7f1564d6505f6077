"""One way to train on conversations: what the demo and the study of override resistance both do."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random
from typing import Any

import torch
from transformers import PrinterCallback, TrainerCallback, TrainingArguments
from transformers.trainer_pt_utils import get_length_grouped_indices
from transformers.trainer_utils import get_last_checkpoint

from rolesafe.config import RoleConfig
from rolesafe.patching import is_patched, named_role_parameters
from rolesafe.training.collator import RoleCollator
from rolesafe.training.trainer import RoleTrainer

ROOM = 256
"""Positions that jumps leave to the longest training conversation, in tokens."""

LOGGED = 50
"""How often the loss is logged, for `callbacks` that listen."""


@dataclass(frozen=True, kw_only=True)
class FitSettings:
    """How to train.

    Args:
        steps: Optimizer steps.
        batch_size: Conversations in a step.
        learning_rate: At its peak, after a short warmup; it falls linearly.
        role_learning_rate: The same for the role parameters; for a plain model it means nothing.
        max_length: Longest conversation in tokens; None: no limit.
        position_gap: Largest random jump of the positions, in tokens; see `RoleCollator`. At most what the model's
            context leaves beside :data:`ROOM` tokens.
        group_by_length: Put conversations of about the same length into a step: less padding, the same conversations.
        checkpoints: How often the training is saved on the way; 0: not at all, it starts over.
        mixed_precision: Compute in bf16 where the model is on a GPU; on a CPU all is fp32.

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
            if getattr(self, name) < least:
                raise ValueError(f"`{name}`: expected a number >= {least}, got {getattr(self, name)}")
        for name in ("learning_rate", "role_learning_rate"):
            if not getattr(self, name) > 0:
                raise ValueError(f"`{name}`: expected a positive number, got {getattr(self, name)}")

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return asdict(self)


def fit(
    model: Any,
    tokenizer: Any,
    rows: Sequence[Mapping[str, Any]],
    settings: FitSettings,
    *,
    seed: int,
    directory: Path,
    config: RoleConfig | None = None,
    progress: Callable[[float], None] | None = None,
    callbacks: Sequence[TrainerCallback] = (),
) -> float:
    """Train `model` in place, plain or patched, and tell how many seconds it took.

    With ``settings.checkpoints`` an interrupted call goes on from the last checkpoint in `directory`.

    Args:
        model: A causal language model; a patched one gets the roles.
        tokenizer: With a chat template.
        rows: With `messages` that end with the reply to learn, or what :meth:`RoleCollator.encode` made of such.
        settings: How to train.
        seed: Of the order of the conversations, dropout and jumps.
        directory: For checkpoints; removed at the end.
        config: Declares the roles of a plain model; a patched model's own otherwise.
        progress: Called with the fraction that is done.
        callbacks: More callbacks for the Trainer.

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
        logging_nan_inf_filter=False,  # it waits for the device in every step
        bf16=settings.mixed_precision and torch.cuda.is_available(),
        report_to=[],
        dataloader_pin_memory=False,
        disable_tqdm=True,
    )
    trainer = _Trainer(
        model,
        arguments,
        collator=RoleCollator(
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
    """`rows` in an order in which those of one batch have about the same length; the batches come in random order."""
    lengths = [
        len(row["input_ids"]) if "input_ids" in row else sum(len(m["content"].split()) for m in row["messages"])
        for row in rows
    ]
    order = get_length_grouped_indices(lengths, batch_size, generator=torch.Generator().manual_seed(seed))
    batches = [order[i : i + batch_size] for i in range(0, len(order), batch_size)]
    Random(f"batches/{seed}").shuffle(batches)
    return [rows[i] for batch in batches for i in batch]


class Losses(TrainerCallback):
    """The mean loss of each stretch of a training by the step at its end."""

    def __init__(self) -> None:
        self.mean: dict[int, float] = {}

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if "loss" in (logs or {}):
            self.mean[state.global_step] = float(logs["loss"])


class _Trainer(RoleTrainer):
    def floating_point_ops(self, inputs: Any) -> int:
        """Not counted: it walks through all modules in every step, and nothing here reads it."""
        return 0


class _Progress(TrainerCallback):
    def __init__(self, tell: Callable[[float], None]) -> None:
        self.tell = tell

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step % 10 == 0:
            self.tell(state.global_step / state.max_steps)
