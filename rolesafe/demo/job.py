"""One job of the demo, in a worker process: train, measure and attack one model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from rolesafe.demo.settings import ATTACKS, ROLE_AWARE, DemoSettings
from rolesafe.demo.short import retrain_job
from rolesafe.evaluation import Run
from rolesafe.files import whole_directory
from rolesafe.workers import Job, Tell, Update

SAMPLES = 2
"""Attacked conversations recorded of each attack, for the report."""

RULES = ("access", "form", "data")
"""Task families of the demo, fixed for the published numbers."""

_TRAINING = 0.85  # approximate share of a job's time


def run_job(settings: DemoSettings, directory: Path, job: Job, tell: Tell) -> None:
    """Train, measure and attack one model; the last update has the finished record.

    Args:
        settings: Settings of the demo.
        directory: Folder for models and checkpoints.
        job: Model out of :data:`rolesafe.demo.settings.MODELS`, and training seed.
        tell: Called after every step.
    """
    import torch
    from transformers.utils import logging

    from rolesafe.attacks import suite
    from rolesafe.evaluation import Resistance, resistance, utility
    from rolesafe.tasks import generate

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    name, seed = job

    def trained(fraction: float) -> None:
        tell(Update(job, "training", _TRAINING * fraction))

    if settings.model is not None:
        model, tokenizer, seconds = retrain_job(settings, directory, name, seed, trained)
    else:
        model, tokenizer = load(settings, name, seed)
        if torch.cuda.is_available():
            model = model.cuda()
        seconds = _train(settings, model, tokenizer, seed, directory / "checkpoints" / f"{name}-{seed}", trained)
        with whole_directory(directory / "models" / f"{name}-{seed}") as folder:
            model.save_pretrained(folder)
            tokenizer.save_pretrained(folder)
    if torch.cuda.is_available():
        model = model.cuda()
    model.eval()
    tell(Update(job, "measuring", _TRAINING))
    examples = generate("test", settings.examples, seed=1000 + seed, families=RULES)
    useful = utility(model, tokenizer, examples)
    attacks = suite(ATTACKS, seed=seed)

    def record(found: Any) -> Run:
        return Run.of(
            found,
            model=name,
            seed=seed,
            n_parameters=sum(p.numel() for p in model.parameters()),
            train_seconds=round(seconds, 2),
            utility=useful,
            samples=SAMPLES,
        )

    results: list[Any] = []
    for i, attack in enumerate(attacks, 1):
        results += resistance(model, tokenizer, examples, [attack]).results
        found = record(Resistance(results=tuple(results), complete=i == len(attacks)))
        tell(Update(job, attack.label, _TRAINING + (1 - _TRAINING) * i / len(attacks), found))
    tell(Update(job, "done", 1.0, found))


def load(settings: DemoSettings, name: str, seed: int) -> tuple[Any, Any]:
    """Return the untrained model of a job, and its tokenizer.

    Raises:
        ValueError: The model to retrain cannot be read, or does not fit the configuration.
    """
    import torch

    from rolesafe.patching import patch
    from rolesafe.patching.checkpoint import read_config
    from rolesafe.patching.loading import reading
    from rolesafe.patching.seal import is_sealed
    from rolesafe.roles.templates import DEFAULT_TEMPLATE
    from rolesafe.tasks import vocabulary
    from rolesafe.training.tiny import tiny_llama, tiny_tokenizer

    torch.manual_seed(seed)
    model: Any
    if settings.model is None:
        tokenizer: Any = tiny_tokenizer(vocabulary(RULES, triggers=False))
        model = tiny_llama(
            len(tokenizer), seed=seed, hidden=settings.hidden, layers=settings.layers, heads=settings.heads
        )
    else:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        with reading(settings.model):
            if is_sealed(read_config(settings.model)):
                raise ValueError("it has a role layer, expected a base without one")
            tokenizer = AutoTokenizer.from_pretrained(settings.model, trust_remote_code=False)
            model = AutoModelForCausalLM.from_pretrained(
                settings.model, trust_remote_code=False, use_safetensors=True, dtype=torch.float32
            )
        if tokenizer.chat_template is None:
            tokenizer.chat_template = DEFAULT_TEMPLATE
    if name == ROLE_AWARE:
        patch(model, settings.config)
    return model, tokenizer


def _train(
    settings: DemoSettings,
    model: Any,
    tokenizer: Any,
    seed: int,
    checkpoints: Path,
    progress: Callable[[float], None],
) -> float:
    """Train a tiny model in place and return the seconds."""
    from rolesafe.tasks import training_conversations
    from rolesafe.training import FitSettings, fit

    how = FitSettings(
        steps=settings.steps,
        batch_size=settings.batch_size,
        learning_rate=settings.learning_rate,
        role_learning_rate=settings.role_learning_rate,
        max_length=settings.max_length,
        position_gap=settings.position_gap,
    )
    conversations = training_conversations(settings.steps * settings.batch_size, seed, RULES)
    return fit(
        model,
        tokenizer,
        [{"messages": messages} for messages in conversations],
        how,
        seed=seed,
        directory=checkpoints,
        config=settings.config,
        progress=progress,
    )
