"""`retrain`: convert a chat checkpoint to a role-aware checkpoint."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from rolesafe.config import RoleConfig
from rolesafe.evaluation.environment import environment
from rolesafe.files import locked
from rolesafe.retrain.batching import Encoded, EncodedRows, count_steps, encode_rows, schedule
from rolesafe.retrain.card import CHOICE, CardResult, save_state, with_choice, write_card
from rolesafe.retrain.config import AUTO, RECIPE_NAME, RetrainConfig
from rolesafe.retrain.held_out import leave_out
from rolesafe.retrain.loading import add_lora, check_base, import_peft, load_base, load_tokenizer
from rolesafe.retrain.own_replies import write_replies
from rolesafe.retrain.place import (
    CHECKPOINTS,
    KEPT,
    LOSSES_NAME,
    REPLIES_NAME,
    SAVING,
    check_same,
    check_space,
    last_checkpoint,
    losses_csv,
    move_in,
    read_state,
)
from rolesafe.retrain.preparation import Prepared, prepare
from rolesafe.retrain.progress import MarkCheckpoints, StopOnInterrupt, TrainingProgress, counting
from rolesafe.retrain.sources import Sources, read_sources

_FULL = ("no space left", "disk quota exceeded", "failed writing file")


@dataclass(frozen=True, kw_only=True)
class RetrainResult:
    """Outcome of a retraining.

    Attributes:
        path: Directory with the checkpoint.
        complete: False after Ctrl-C; the same call resumes.
        steps: Number of optimizer steps done.
        loss: Mean loss of the last logged steps; ``None`` before the first ones.
        tokens: Number of tokens trained on, without padding.
        seconds: Training time in seconds.
    """

    path: Path
    complete: bool
    steps: int
    loss: float | None
    tokens: int
    seconds: float


def load_data(config: RetrainConfig, tokenizer: Any) -> tuple[Sources, Prepared]:
    """Read the data of a recipe and prepare them.

    Raises:
        ValueError: As :func:`read_sources`, :func:`leave_out` and :func:`prepare`.
        ImportError: `data` is a hub id and `datasets` is not installed.
    """
    given = config.replies == "given"
    sources = read_sources(config.data, need_replies=given, drop_bad=config.bad_rows == "drop")
    if config.held_out:
        sources = leave_out(sources, config.held_out)
    return sources, prepare(sources.rows, config, tokenizer)


def retrain(
    config: RetrainConfig,
    out: str | os.PathLike[str],
    *,
    results: Sequence[CardResult] = (),
    replies_path: str | os.PathLike[str] | None = None,
    console: Console | None = None,
    progress: Callable[[float], None] | None = None,
) -> RetrainResult:
    """Retrain a model according to the recipe and write the checkpoint to `out`.

    `out` gets the model (a sealed role-aware checkpoint, a plain one, or an adapter), the tokenizer, ``recipe.yaml``,
    ``losses.csv`` and the model card ``README.md``. A call with the directory of an interrupted run resumes it from the
    last checkpoint, with the same result; with that of a finished run it only writes the card again.

    Args:
        config: Recipe.
        out: New or empty directory, or that of an earlier call with the same recipe.
        results: Figures for the model card.
        replies_path: File of generated replies, for several recipes with the same base; default: in `out`.
        console: Console of the progress; default: standard error.
        progress: Callback for the finished share of the steps.

    Raises:
        ValueError: Model, data and recipe do not fit together, `out` contains other files, or the disk is too full.
            Raised before training starts.
        ImportError: `peft` or `datasets` is required and not installed.
        OSError: A file cannot be written. Complete checkpoints are kept.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ValueError(
            f"`WORLD_SIZE`: expected one process, got {os.environ['WORLD_SIZE']}. Use rolesafe.training.RoleTrainer "
            "for distributed training."
        )
    console = console or Console(stderr=True)
    folder = Path(out)
    with locked(folder, "out"):
        state = read_state(folder, config)
        if state is not None and state.get("status") == "complete":
            write_card(folder, results)
            return _result(folder, state, complete=True)
        run = _Run(config, folder, console, progress)
        run.prepare(state, Path(replies_path) if replies_path is not None else folder / REPLIES_NAME)
        try:
            found = run.train()
            if found.complete:
                run.save(found)
                write_card(folder, results)
        except Exception as error:
            if any(sign in str(error).lower() for sign in _FULL):
                raise OSError(
                    f"`out`: expected free space in {str(folder)!r}, got none ({error}). Free some and repeat the "
                    "call, which resumes from the last checkpoint."
                ) from error
            raise
        return found


class _Run:
    """State of one call of :func:`retrain`."""

    def __init__(
        self, config: RetrainConfig, out: Path, console: Console, tell: Callable[[float], None] | None
    ) -> None:
        import torch

        from rolesafe.retrain.trainer import has_bf16

        self.config, self.out, self.console, self.tell = config, out, console, tell
        if config.lora:
            import_peft()
        bf16 = config.dtype == "bfloat16" or (config.dtype == AUTO and has_bf16())
        self.compute = torch.bfloat16 if bf16 else torch.float32
        self.state: dict[str, Any] = {}
        self.encoded: tuple[Encoded, ...] = ()
        self.trainer: Any = None
        self.roles: RoleConfig | None = None

    # --------------------------------------------------------------------------------------------------------- before

    def prepare(self, state: dict[str, Any] | None, replies_path: Path) -> None:
        """Load and check model and data, generate the replies, and tokenize the rows."""
        from rolesafe.retrain.trainer import fingerprint

        config = self.config
        about = check_base(config)
        self.saved_dtype = about.get("dtype") or about.get("torch_dtype") or ("float32" if about else "bfloat16")
        self.tokenizer = load_tokenizer(config.model)
        sources, prepared = load_data(config, self.tokenizer)
        self.model = self._load_model()
        found: dict[str, Any] = {
            **({CHOICE: state[CHOICE]} if state and CHOICE in state else {}),
            "data_digest": sources.digest,
            "prepared_digest": prepared.digest,
            "base": fingerprint(self.model),
        }
        check_same(state, found)
        self._check_space()
        unfinished = 0
        if config.replies == "self":
            config.save(self.out / RECIPE_NAME)
            save_state(self.out, {**(state or {}), "status": "begun", **found})
            prepared, unfinished = self._write_replies(prepared, replies_path, found["base"])
            found["rows_digest"] = prepared.digest
            check_same(state, found)
        encoded = self._encode(prepared)
        self.encoded = encoded.rows
        self.state = {
            "status": "begun",
            **found,
            "sources": len(sources.rows),
            "counts": dict(encoded.counts),
            "dropped": len(sources.dropped) + unfinished + len(encoded.dropped),
        }
        config.save(self.out / RECIPE_NAME)
        save_state(self.out, self.state)
        self.roles = self._choose_heads(prepared)
        self.model = self._add_roles(self.model)

    def _load_model(self) -> Any:
        import torch

        # with LoRA the base is frozen and needs no master weights
        return load_base(self.config, self.compute if self.config.lora else torch.float32)

    def _check_space(self) -> None:
        size = sum(p.numel() * p.element_size() for p in self.model.parameters())
        adapter = bool(self.config.lora)
        # LoRA of all linear layers is a few percent at usual ranks; 10% is a safe bound
        check_space(self.out, size // 10 if adapter else size, size if adapter else 0, saves_all=not adapter)

    def _write_replies(self, prepared: Prepared, path: Path, base: str) -> tuple[Prepared, int]:
        import torch

        device = "cuda" if torch.cuda.is_available() else "cpu"
        model = load_base(self.config, self.compute).to(device)
        with counting(self.console, "writing replies") as report:
            return write_replies(
                prepared,
                model,
                self.tokenizer,
                path=path,
                identity={"base": base, "dtype": str(self.compute)},
                max_new_tokens=self.config.max_new_tokens,
                batch_size=self.config.generation_batch_size,
                max_length=self.config.max_length,
                progress=report,
            )

    def _encode(self, prepared: Prepared) -> EncodedRows:
        with counting(self.console, "encoding rows") as report:
            return encode_rows(prepared.rows, self.config, self.tokenizer, progress=report)

    def _choose_heads(self, prepared: Prepared) -> RoleConfig | None:
        """Return the role configuration with its dedicated heads chosen, once for all resumes."""
        from rolesafe.retrain.need import choose

        roles = with_choice(self.config, self.state)
        if roles is None or self.config.dedicated == "first" or CHOICE in self.state:
            return roles
        with counting(self.console, "choosing heads") as report:
            roles = choose(self.model, self.config, roles, prepared, self.tokenizer, progress=report)
        self.state[CHOICE] = [list(pair) for pair in roles.dedicated_heads]  # type: ignore[union-attr]
        save_state(self.out, self.state)
        return roles

    def _add_roles(self, model: Any) -> Any:
        import torch

        from rolesafe.patching import patch
        from rolesafe.retrain.strength import AUTO_SHARE, changes_outputs

        config, roles = self.config, self.roles
        torch.manual_seed(config.seed)
        self.anneal = 0.0
        if roles is not None:
            patch(model, roles)
            self.anneal = float(config.anneal) if config.anneal != AUTO else 0.0
            if config.anneal == AUTO and changes_outputs(model, self.tokenizer):
                self.anneal = AUTO_SHARE
        if config.gradient_checkpointing:
            # newer transformers renames it and warns at the old name
            enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
            enable({"use_reentrant": False})
        return add_lora(model, config.lora) if config.lora else model

    # -------------------------------------------------------------------------------------------------------- training

    def train(self) -> RetrainResult:
        """Train from the last checkpoint and return the outcome; stop early on Ctrl-C."""
        from transformers import PrinterCallback, ProgressCallback

        from rolesafe.retrain.trainer import ReplyTrainer
        from rolesafe.training import AnnealRoles, RoleCollator

        config, roles = self.config, self.roles
        steps = count_steps(config, len(self.encoded))
        order = schedule([len(row["input_ids"]) for row in self.encoded], config, steps)
        stop = StopOnInterrupt()
        progress = TrainingProgress(self.console, lambda: self.trainer, self.tell)
        callbacks = [MarkCheckpoints(), stop, progress]
        if self.anneal:
            callbacks.insert(0, AnnealRoles(self.anneal))
        collator = RoleCollator(tokenizer=self.tokenizer, config=roles or RoleConfig(), with_roles=roles is not None)
        self.trainer = ReplyTrainer(
            self.model,
            self._arguments(steps),
            data_collator=collator,
            role_learning_rate=self._role_rate(),
            train_dataset=[self.encoded[i] for i in order],
            callbacks=callbacks,
        )
        self.trainer.remove_callback(PrinterCallback)
        self.trainer.remove_callback(ProgressCallback)
        checkpoint = last_checkpoint(self.out)
        self.console.print(self._headline(steps, checkpoint), highlight=False)
        try:
            with stop.listening(self.console):
                self.trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        finally:
            progress.stop()
        done = self.trainer.state
        last: dict[str, Any] = next((e for e in reversed(done.log_history) if "loss" in e), {})
        return RetrainResult(
            path=self.out,
            complete=done.global_step >= steps,
            steps=done.global_step,
            loss=last.get("loss"),
            tokens=int(last.get("tokens", 0)),
            seconds=float(last.get("seconds", 0.0)),
        )

    def _arguments(self, steps: int) -> Any:
        import torch
        from transformers import TrainingArguments

        config = self.config
        return TrainingArguments(
            output_dir=str(self.out / CHECKPOINTS),
            max_steps=steps,
            per_device_train_batch_size=config.batch_size,
            gradient_accumulation_steps=config.gradient_accumulation,
            learning_rate=config.learning_rate,
            lr_scheduler_type="linear",
            warmup_steps=round(config.warmup * steps),
            weight_decay=config.weight_decay,
            seed=config.seed,
            train_sampling_strategy="sequential",
            save_strategy="steps",
            save_steps=config.save_steps,
            save_total_limit=KEPT,
            logging_steps=min(config.logging_steps, steps),
            logging_nan_inf_filter=False,  # the filter syncs with the device in every step
            bf16=self.compute == torch.bfloat16,
            use_cpu=not torch.cuda.is_available(),
            report_to=[],
            dataloader_pin_memory=False,
            disable_tqdm=True,
        )

    def _role_rate(self) -> float | Mapping[str, float] | None:
        from rolesafe.training.rates import default_rates

        default = default_rates(self.model)
        return default if default is None or self.config.role_learning_rate is None else self.config.role_learning_rate

    def _headline(self, steps: int, checkpoint: Path | None) -> str:
        trained = sum(p.numel() for p in self.model.parameters() if p.requires_grad)
        text = f"{steps:,} steps on {len(self.encoded):,} rows, {trained:,} trained parameters, "
        text += str(self.compute).removeprefix("torch.")
        text += f", strength annealed over {self.anneal:.0%} of the steps" if self.anneal else ""
        return text + (f", resumed from step {checkpoint.name.removeprefix('checkpoint-')}" if checkpoint else "")

    # ------------------------------------------------------------------------------------------------------------ after

    def save(self, found: RetrainResult) -> None:
        """Write the result into `out`, each file atomically, and delete the checkpoints."""
        import torch

        scratch = self.out / SAVING
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir()
        model = self.model.cpu()
        if not self.config.lora:
            model = model.to(getattr(torch, str(self.saved_dtype).removeprefix("torch."), torch.float32))
        model.save_pretrained(scratch)
        self.tokenizer.save_pretrained(scratch)
        (scratch / LOSSES_NAME).write_text(losses_csv(self.trainer.state.log_history), encoding="utf-8")
        (scratch / "README.md").unlink(missing_ok=True)  # PEFT's own card
        move_in(scratch, self.out, last=("config.json", "adapter_config.json"))
        about = environment()
        self.state = {
            **self.state,
            "status": "complete",
            "steps": found.steps,
            "loss": found.loss,
            "tokens": found.tokens,
            "seconds": found.seconds,
            "versions": [list(pair) for pair in about.versions],
            "hardware": about.hardware,
        }
        save_state(self.out, self.state)
        with suppress(OSError):
            shutil.rmtree(self.out / CHECKPOINTS)


def _result(folder: Path, state: dict[str, Any], *, complete: bool) -> RetrainResult:
    return RetrainResult(
        path=folder,
        complete=complete,
        steps=state["steps"],
        loss=state["loss"],
        tokens=state["tokens"],
        seconds=state["seconds"],
    )
