"""One job of the demo: train one model, measure it, attack it. Runs in a process of its own."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rolesafe.demo.settings import ROLE_AWARE, DemoSettings
from rolesafe.evaluation import Run

SAMPLES = 2
"""Attacked conversations kept of each attack, for the report."""


@dataclass(frozen=True)
class Update:
    """What a job tells while it runs.

    Attributes:
        job: (model name, seed).
        stage: "training", "measuring", an attack's label, "done" or "failed".
        fraction: How much of the job is done, 0 to 1.
        run: What has been measured so far.
        error: Where it failed: the traceback.
    """

    job: tuple[str, int]
    stage: str
    fraction: float
    run: Run | None = None
    error: str | None = None


Tell = Callable[[Update], None]

ROOM = 256
"""Positions that the jumps leave to the longest training conversation, in tokens."""

_TRAINING = 0.85  # of a job's time, roughly


def run_job(settings: DemoSettings, name: str, seed: int, directory: Path, tell: Tell) -> None:
    """Train, measure and attack one model, and tell each step; the last update carries the finished record."""
    import torch
    from transformers.utils import logging

    from rolesafe.attacks import suite
    from rolesafe.evaluation import resistance, utility
    from rolesafe.tasks import generate

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    job = (name, seed)
    model, tokenizer = load(settings, name, seed)
    if torch.cuda.is_available():
        model = model.cuda()
    started = time.perf_counter()
    checkpoints = directory / "checkpoints" / f"{name}-{seed}"
    _train(settings, model, tokenizer, seed, checkpoints, lambda f: tell(Update(job, "training", _TRAINING * f)))
    seconds = time.perf_counter() - started
    model.eval()
    model.save_pretrained(directory / "models" / f"{name}-{seed}")
    tokenizer.save_pretrained(directory / "models" / f"{name}-{seed}")
    tell(Update(job, "measuring", _TRAINING))
    examples = generate("test", settings.examples, seed=1000 + seed)
    useful = utility(model, tokenizer, examples)
    attacks = suite(seed=seed)

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

    done: list[Any] = []
    found = None
    for i, attack in enumerate(attacks):
        found = resistance(model, tokenizer, examples, attacks[: i + 1], done=done)
        done = list(found.results)
        fraction = _TRAINING + (1 - _TRAINING) * (i + 1) / len(attacks)
        tell(Update(job, attack.label, fraction, _partial(record(found), i + 1 == len(attacks))))
    assert found is not None
    tell(Update(job, "done", 1.0, record(found)))


def load(settings: DemoSettings, name: str, seed: int) -> tuple[Any, Any]:
    """The untrained model of a job, and its tokenizer."""
    import torch

    from rolesafe.patching import patch
    from rolesafe.roles.templates import DEFAULT_TEMPLATE
    from rolesafe.tasks import vocabulary
    from rolesafe.training.tiny import tiny_llama, tiny_tokenizer

    torch.manual_seed(seed)
    model: Any
    if settings.model is None:
        tokenizer: Any = tiny_tokenizer(vocabulary())
        model = tiny_llama(
            len(tokenizer), seed=seed, hidden=settings.hidden, layers=settings.layers, heads=settings.heads
        )
    else:
        from transformers import AutoModelForCausalLM, AutoTokenizer

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
) -> None:
    """Train in place. A real checkpoint's training is saved on the way and can go on; a tiny one starts over."""
    from transformers import PrinterCallback, TrainerCallback, TrainingArguments
    from transformers.trainer_utils import get_last_checkpoint

    from rolesafe.attacks.replies import context_size
    from rolesafe.patching import is_patched
    from rolesafe.tasks import training_conversations
    from rolesafe.training import RoleCollator, RoleTrainer

    class Report(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step % 10 == 0:
                progress(state.global_step / settings.steps)

    conversations = training_conversations(settings.steps * settings.batch_size, seed)
    has_roles = is_patched(model)
    arguments = TrainingArguments(
        output_dir=str(checkpoints),
        max_steps=settings.steps,
        per_device_train_batch_size=settings.batch_size,
        learning_rate=settings.learning_rate,
        lr_scheduler_type="linear",
        warmup_steps=50,
        weight_decay=0.01,
        adam_beta2=0.98,
        seed=seed,
        save_strategy="no" if settings.model is None else "steps",
        save_steps=max(1, settings.steps // 5),
        save_total_limit=1,
        logging_strategy="no",
        report_to=[],
        dataloader_pin_memory=False,
        disable_tqdm=True,
    )
    trainer = RoleTrainer(
        model,
        arguments,
        collator=RoleCollator(
            tokenizer=tokenizer,
            config=settings.config,
            with_roles=has_roles,
            max_length=settings.max_length,
            position_gap=min(settings.position_gap, max(0, (context_size(model) or 0) - ROOM)),
        ),
        role_learning_rate=settings.role_learning_rate if has_roles else None,
        train_dataset=[{"messages": messages} for messages in conversations],
        callbacks=[Report()],
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train(resume_from_checkpoint=get_last_checkpoint(str(checkpoints)))
    shutil.rmtree(checkpoints)


def _partial(run: Run, complete: bool) -> Run:
    return Run(**{**run.__dict__, "complete": complete})
