"""Arms of the study on a chat model, and their training."""

from __future__ import annotations

import json
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from transformers import PreTrainedTokenizerBase, PrinterCallback, TrainerCallback, TrainingArguments

import rolesafe
from benchmarks.alignment_depth.chat.data import REFUSALS, Texts, first_tokens
from benchmarks.alignment_depth.chat.protocol import BATCH, PROTOCOL
from benchmarks.alignment_depth.chat.rows import rows
from rolesafe import RoleConfig
from rolesafe.patching import is_patched
from rolesafe.retrain.loading import load_chat_model
from rolesafe.retrain.trainer import has_bf16
from rolesafe.training import RecoveryLoss, RoleCollator, RoleTrainer
from rolesafe.training.rates import default_rates

RATE: Final = 1e-4
"""Peak learning rate of the base weights; that of role parameters is :data:`rolesafe.training.rates.DEFAULTS`."""
LENGTH: Final = 192
"""Maximum tokens of a benign row."""
ALONE: Final = 4
"""Factor of the learning rate of role parameters that are trained alone."""
ABOUT: Final = "study.json"
"""File of the steps and the protocol in a checkpoint."""
STRENGTH: Final = 20.0
"""Strength of the deep objective, as on the tiny models; its discount is 1."""


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One way to train.

    Attributes:
        about: Description in a few words.
        start: Arm to start from; empty: the base model itself.
        method: Training rows, see :mod:`benchmarks.alignment_depth.chat.rows`; empty: no training.
        preset: Role layer.
        only_roles: Train the role parameters alone.
    """

    about: str
    start: str = "base"
    method: str = ""
    preset: str = ""
    only_roles: bool = False


ARMS: Final[dict[str, Arm]] = {
    "base": Arm(about="the model, untouched", start=""),
    "plain": Arm(about="SFT on refusals and benign replies", method="plain"),
    "ada": Arm(about="`plain`, with Any-Depth Alignment in decoding", start="plain"),
    "augmentation": Arm(about="prefix augmentation (Qi et al.)", method="augmentation"),
    "both": Arm(about="prefix augmentation and worst insertion", method="both"),
    "added-both": Arm(about="`both`, with added heads", method="both", preset="added"),
    "heads": Arm(about="`plain`, then recovery heads: added heads trained with the deep objective alone",
                 start="plain", method="deep", preset="added", only_roles=True),
    "insertion": Arm(about="random worst-insertion training", method="insertion"),
    "added-augmentation": Arm(about="`augmentation`, with added heads", method="augmentation", preset="added"),
    "deep": Arm(about="`plain`, then the deep objective on all weights", start="plain", method="deep"),
}  # fmt: skip
"""Arms by name, in the order of training."""


def load(name: str, base: str, out: Path, seed: int, dtype: str = "auto") -> tuple[Any, PreTrainedTokenizerBase]:
    """Return the model of a finished arm in evaluation mode, and the tokenizer.

    Args:
        name: Arm.
        base: Directory or hub id of the base model.
        out: Directory of the checkpoints.
        seed: Training seed.
        dtype: See :func:`rolesafe.retrain.loading.load_chat_model`.

    Raises:
        ValueError: The model or its chat template is missing.
    """
    while name and not ARMS[name].method:
        name = ARMS[name].start
    return load_chat_model(str(_folder(out, name, seed)) if name else base, None, dtype)


def train(name: str, base: str, texts: Texts, out: Path, seed: int, *, steps: int) -> float:
    """Train an arm, and the arms that it starts from, unless their checkpoints are in `out`.

    Args:
        name: Arm.
        base: Directory or hub id of the base model.
        texts: Data of the study.
        out: Directory of the checkpoints.
        seed: Training seed.
        steps: Optimizer steps.

    Returns:
        Seconds of the training of this arm; 0 where it has none or is finished.

    Raises:
        ValueError: The base model cannot be loaded, or a checkpoint was trained with other steps or another protocol.
    """
    arm, folder = ARMS[name], _folder(out, name, seed)
    about = {"steps": steps, "protocol": PROTOCOL}
    if arm.start:
        train(arm.start, base, texts, out, seed, steps=steps)
    if not arm.method:
        return 0.0
    if folder.exists():
        _check(folder, about)
        return 0.0
    begun = time.perf_counter()
    print(f"{name}, seed {seed}: training", flush=True)
    model, tokenizer = load(arm.start, base, out, seed, "float32")
    if arm.preset:
        model = rolesafe.patch(model, RoleConfig.preset(arm.preset))
    if arm.only_roles:
        model.requires_grad_(False)
        for _, parameter in rolesafe.named_role_parameters(model):
            parameter.requires_grad_(True)
    loss = None
    if arm.method == "deep":
        reference, _ = load(arm.start, base, out, seed, "bfloat16" if has_bf16() else "float32")
        loss = RecoveryLoss(first_tokens(tokenizer, REFUSALS), STRENGTH, reference=reference.requires_grad_(False))
    _fit(arm, model, tokenizer, texts, out, seed, steps, loss)
    _save(model, tokenizer, folder, about)
    return time.perf_counter() - begun


def _folder(out: Path, name: str, seed: int) -> Path:
    return out / f"seed{seed}" / name


def _fit(
    arm: Arm,
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    texts: Texts,
    out: Path,
    seed: int,
    steps: int,
    loss: RecoveryLoss | None,
) -> None:
    patched = is_patched(model)
    config = model.rolesafe_config if patched else RoleConfig()
    collator = RoleCollator(tokenizer=tokenizer, config=config, with_roles=patched, max_length=LENGTH)
    arguments = TrainingArguments(
        output_dir=str(out / "trainer"),
        max_steps=steps,
        per_device_train_batch_size=BATCH,
        learning_rate=RATE,
        lr_scheduler_type="linear",
        warmup_steps=min(5, steps // 2),
        weight_decay=0.01,
        seed=seed,
        train_sampling_strategy="sequential",
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        bf16=has_bf16(),
        use_cpu=not torch.cuda.is_available(),
        dataloader_pin_memory=False,
        logging_steps=max(1, steps // 10),
    )
    rates = default_rates(model) if patched else None
    if rates is not None and arm.only_roles:
        rates = {part: ALONE * rate for part, rate in rates.items()}
    trainer = RoleTrainer(
        model, arguments, data_collator=collator, train_dataset=rows(arm.method, model, collator, texts), loss=loss,
        role_learning_rate=rates, callbacks=[_Lines()],
    )  # fmt: skip
    trainer.remove_callback(PrinterCallback)
    trainer.train()


class _Lines(TrainerCallback):
    """Print a line for each log entry with a loss."""

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if logs and "loss" in logs:
            print(f"  step {state.global_step} of {state.max_steps}: loss {float(logs['loss']):.3f}", flush=True)


def _check(folder: Path, about: dict[str, Any]) -> None:
    """Raise a ValueError where the checkpoint in `folder` was not trained as `about` says."""
    file = folder / ABOUT
    known = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None
    if known != about:
        raise ValueError(
            f"`out`: expected a checkpoint {folder.name} trained with {about}, got {known}. Use another directory."
        )


def _save(model: Any, tokenizer: PreTrainedTokenizerBase, folder: Path, about: dict[str, Any]) -> None:
    """Write the checkpoint; the folder exists only when it is complete."""
    scratch = folder.with_name(f"{folder.name}.unfinished")
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    model.to(torch.bfloat16 if has_bf16() else torch.float32).save_pretrained(scratch)
    tokenizer.save_pretrained(scratch)
    (scratch / ABOUT).write_text(json.dumps(about), encoding="utf-8")
    scratch.rename(folder)
