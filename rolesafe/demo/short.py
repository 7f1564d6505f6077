"""Short form of `rolesafe retrain`: both models of the demo from one checkpoint, on the demo's conversations."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rolesafe.config import RoleConfig
from rolesafe.demo.settings import PLAIN, DemoSettings
from rolesafe.files import whole_directory, write_whole

if TYPE_CHECKING:
    from rolesafe.retrain import RetrainConfig

LENGTH = 512
"""Longest training conversation in tokens, where the settings and the model's context allow it."""


def recipe(settings: DemoSettings, directory: Path, name: str, seed: int) -> RetrainConfig:
    """Return the recipe of a job.

    Args:
        settings: Settings with a model.
        directory: Directory of the demo.
        name: Model of the pair.
        seed: Training seed.

    Raises:
        ValueError: A setting is out of range for a retraining.
    """
    from rolesafe.retrain import RetrainConfig

    default = RoleConfig()
    changed = {
        field.name: getattr(settings.config, field.name)
        for field in fields(RoleConfig)
        if getattr(settings.config, field.name) != getattr(default, field.name)
    }
    own = directory / "base"
    return RetrainConfig(
        model=str(own) if own.is_dir() else str(settings.model),
        data=str(_data(directory, seed)),
        preset="plain" if name == PLAIN else "bias",  # the default configuration, changed to that of the settings
        role_config={} if name == PLAIN else changed,
        steps=settings.steps,
        batch_size=settings.batch_size,
        learning_rate=settings.learning_rate,
        role_learning_rate=settings.role_learning_rate,
        max_length=LENGTH if settings.max_length is None else settings.max_length,
        bad_rows="drop",
        dtype="float32",
        shares={"plain": 1.0},
        save_steps=max(1, settings.steps // 5),
        seed=seed,
    )


def write_inputs(settings: DemoSettings, directory: Path, tokenizer: Any, families: tuple[str, ...]) -> None:
    """Write the conversations of each seed, and a copy of a base whose tokenizer has no chat template of its own.

    Args:
        settings: Settings with a model.
        directory: Directory of the demo.
        tokenizer: Tokenizer of the model, with a chat template.
        families: Task families.

    Raises:
        OSError: A file cannot be written.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from rolesafe.tasks import training_conversations

    for seed in settings.seeds:
        if not (path := _data(directory, seed)).is_file():
            rows = training_conversations(settings.steps * settings.batch_size, seed, families)
            write_whole(path, "".join(json.dumps({"messages": row}) + "\n" for row in rows))
    model = str(settings.model)
    if AutoTokenizer.from_pretrained(model, trust_remote_code=False).chat_template is None:
        with whole_directory(directory / "base") as folder:
            tokenizer.save_pretrained(folder)
            base = AutoModelForCausalLM.from_pretrained(model, trust_remote_code=False, use_safetensors=True)
            base.save_pretrained(folder)


def retrain_job(
    settings: DemoSettings, directory: Path, name: str, seed: int, progress: Callable[[float], None]
) -> tuple[Any, Any, float]:
    """Retrain one model and return it with its tokenizer and the training seconds; a killed job resumes.

    Raises:
        RuntimeError: Ctrl-C ended the training.
        ValueError, OSError: As :func:`rolesafe.retrain.retrain`.
    """
    from rich.console import Console

    from rolesafe.retrain import load_retrained, retrain

    folder = directory / "models" / f"{name}-{seed}"
    found = retrain(recipe(settings, directory, name, seed), folder, console=Console(quiet=True), progress=progress)
    if not found.complete:
        raise RuntimeError("interrupted")
    return *load_retrained(str(folder), dtype="float32"), found.seconds


def _data(directory: Path, seed: int) -> Path:
    return directory / f"conversations-{seed}.jsonl"
