"""Training of one arm; trained models are kept on disk and reused."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.override_resistance.arms import ARMS, trained
from benchmarks.override_resistance.data import chunks, text_digest, training_rows
from benchmarks.override_resistance.settings import PRETRAINED, SIZES, Study
from rolesafe.files import read_json, whole_directory

DONE = "training.json"
"""Written last into a model directory: settings, seconds and losses of the training."""


def obtain(
    study: Study, size: str, arm: str, seed: int, models: Path, progress: Callable[[float], None]
) -> tuple[Any, Any, float]:
    """Return the trained model of an arm, its tokenizer, and its training time in seconds; train it if missing.

    Raises:
        ValueError: The model on disk was trained with other settings.
    """
    from rolesafe.patching import patch

    base = trained(arm)
    directory = models / f"{size}--{base}--{seed}"
    if not (directory / DONE).exists():
        _train(study, size, base, seed, directory, progress)
    about = read_json(directory / DONE, "the record of a training")
    wanted = _about(study, size, base)
    if different := [name for name in wanted if wanted[name] != about["training"].get(name)]:
        raise ValueError(
            f"`models`: expected models of this study, got {directory.name} that was trained with other "
            f"{', '.join(different)}; give another directory"
        )
    model, tokenizer = _load(directory, base)
    if base != arm:
        config = ARMS[arm].config
        assert config is not None
        patch(model, config)
    return model.eval(), tokenizer, about["seconds"]


def _about(study: Study, size: str, arm: str) -> dict[str, Any]:
    """Return the settings that a trained model depends on, except its seed."""
    config = ARMS[arm].config
    mechanism = None if config is None else config.to_dict()
    about = {**study.training_of(size), "mechanism": mechanism, "text_sha256": text_digest(study)}
    values: dict[str, Any] = json.loads(json.dumps(about))
    return values


def _load(directory: Path, arm: str) -> tuple[Any, Any]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from rolesafe.patching import from_pretrained

    tokenizer = AutoTokenizer.from_pretrained(directory)
    model: Any = (
        AutoModelForCausalLM.from_pretrained(directory) if ARMS[arm].config is None else from_pretrained(directory)
    )
    return model, tokenizer


def start(study: Study, size: str, seed: int) -> tuple[Any, Any]:
    """Return the untrained (or pretrained) model of a size, and its tokenizer."""
    from rolesafe.tasks import vocabulary
    from rolesafe.training.tiny import text_tokenizer, tiny_llama, tiny_tokenizer

    chosen = SIZES[size]
    if size == PRETRAINED:
        return _pretrained(study.base)
    words = vocabulary(study.families)
    tokenizer = tiny_tokenizer(words)
    if chosen.text_share:
        assert study.text is not None
        tokenizer = text_tokenizer([*chunks(Path(study.text), 5000, 0), *words])
    model = tiny_llama(
        len(tokenizer),
        seed=seed,
        hidden=chosen.hidden,
        layers=chosen.layers,
        heads=chosen.heads,
        head_dim=chosen.head_dim,
    )
    return model, tokenizer


def _pretrained(path: str | None) -> tuple[Any, Any]:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from rolesafe.roles.templates import DEFAULT_TEMPLATE

    tokenizer = AutoTokenizer.from_pretrained(path)
    model = AutoModelForCausalLM.from_pretrained(path, use_safetensors=True, dtype=torch.float32)
    if tokenizer.chat_template is None:
        tokenizer.chat_template = DEFAULT_TEMPLATE
    return model, tokenizer


def _train(study: Study, size: str, arm: str, seed: int, directory: Path, progress: Callable[[float], None]) -> None:
    import torch

    from rolesafe.patching import patch
    from rolesafe.training import AnnealRoles, Losses, fit

    chosen, how = SIZES[size], study.fit(size)
    model, tokenizer = start(study, size, seed)
    rows = training_rows(study, size, seed, tokenizer, directory.parent)
    config = ARMS[arm].config
    torch.manual_seed(seed)  # role vectors that are drawn, jumps
    if config is not None:
        patch(model, config)
    anneal = [AnnealRoles(chosen.annealed)] if config is not None and chosen.annealed else []
    losses = Losses()
    # a rerun resumes a long training from its checkpoints; a short one starts over
    checkpoints = directory.with_name(f"{directory.name}.{'checkpoints' if how.checkpoints else os.getpid()}")
    seconds = fit(
        model,
        tokenizer,
        rows,
        how,
        seed=seed,
        directory=checkpoints,
        config=config,
        progress=progress,
        callbacks=[losses, *anneal],
    )
    about = {"training": _about(study, size, arm), "seconds": round(seconds, 2), "losses": losses.mean}
    with whole_directory(directory) as part:
        model.save_pretrained(part)
        tokenizer.save_pretrained(part)
        (part / DONE).write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
