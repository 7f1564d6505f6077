"""Arms of the study: what each one is trained from, on what, and with which loss."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel, PreTrainedTokenizerBase, PrinterCallback, TrainingArguments

import rolesafe
from benchmarks.alignment_depth import tasks
from rolesafe import RoleConfig
from rolesafe.training import (
    PolicyGradientLoss,
    PreferenceLoss,
    PreferenceRows,
    PrefixAugmentation,
    PromptRows,
    RecoveryLoss,
    RecoveryPrefixes,
    RoleCollator,
    RoleTrainer,
    SpanInsertion,
    TokenConstrainedLoss,
)
from rolesafe.training.tiny import tiny_llama, tiny_tokenizer

KINDS: Final = ("protected", "benign", "mention")
RATIO: Final = {"safety_rows": 16, "benign_rows": 16}
BATCH: Final = 32
STRENGTH: Final = 20.0
"""Strength of the deep objective; its discount is 1. After a forced word `plain` refuses with a probability down to
exp(-15), so a recovery of 95% takes a strength of 18 (Theorem 22)."""
BENIGN: Final = 6000
"""Benign rows of each kind for the arms that start from `plain`: few are seen twice."""
DEEP: Final = ("deep", "heads")
"""Arms with the deep objective."""


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One way to train.

    Attributes:
        about: Description in a few words.
        start: Arm to start from; empty: a random model.
        preset: Role layer that the start gets, or has; empty: a plain model.
        steps: Optimizer steps.
        learning_rate: Peak learning rate.
        only_roles: Train the role parameters alone.
    """

    about: str
    start: str = "plain"
    preset: str = ""
    steps: int = 1000
    learning_rate: float = 2e-3
    only_roles: bool = False


_METHODS: Final = {
    "augmentation": ("prefix augmentation (Qi et al.)", 1000),
    "insertion": ("random worst-insertion training", 1000),
    "both": ("augmentation, then worst-insertion training", 1000),
    "deep": (f"deep objective, mu {STRENGTH:g}, gamma 1", 1500),
    "dpo": ("Eq. 2 by DPO, lambda 10", 1000),
    "eq2": ("Eq. 2 by policy gradient, lambda 10", 100),
    "finetuned": ("benign fine-tuning, no refusals", 100),
    "constrained": ("the same with the constrained loss (Qi et al.)", 100),
}

ARMS: Final[dict[str, Arm]] = {
    "base": Arm(about="answers every question", start="", steps=400, learning_rate=3e-3),
    "plain": Arm(about="SFT on refusals and answers", start="base", steps=800),
    "longer": Arm(about="plain, trained on"),
    **{
        name: Arm(about=about, start="augmentation" if name == "both" else "plain", steps=steps)
        for name, (about, steps) in _METHODS.items()
    },
    "ada": Arm(about="plain, with Any-Depth Alignment in decoding", steps=0),
    "heads": Arm(about="plain, with recovery heads: added heads trained with the deep objective alone",
                 preset="added", steps=1500, learning_rate=3e-3, only_roles=True),
    "channel-base": Arm(about="base with preset channel", start="", preset="channel", steps=400, learning_rate=3e-3),
    "channel": Arm(about="plain with preset channel", start="channel-base", preset="channel", steps=800),
    **{
        f"channel-{name}": Arm(
            about=f"{about}, with preset channel",
            start="channel-augmentation" if name == "both" else "channel",
            preset="channel",
            steps=steps,
        )
        for name, (about, steps) in _METHODS.items()
    },
}  # fmt: skip
"""Arms by name, in the order in which they are trained."""


def tokenizer() -> PreTrainedTokenizerBase:
    """Return the tokenizer of all arms."""
    return tiny_tokenizer(tasks.vocabulary())


def build(name: str, words: PreTrainedTokenizerBase, directory: Path, seed: int) -> PreTrainedModel:
    """Return the trained model of an arm that is in `directory`."""
    return _load(name, words, directory, seed, ARMS[name].preset)


def train(name: str, words: PreTrainedTokenizerBase, directory: Path, seed: int) -> PreTrainedModel:
    """Train an arm, save its weights in `directory`, and return it."""
    arm = ARMS[name]
    file = _file(directory, name, seed)
    if file.exists():
        return build(name, words, directory, seed)
    if arm.start:
        model = _load(arm.start, words, directory, seed, ARMS[arm.start].preset)
        if arm.preset and not ARMS[arm.start].preset:
            model = rolesafe.patch(model, RoleConfig.preset(arm.preset))
    else:
        model = _new(words, seed, arm.preset)
    if arm.only_roles:
        model.requires_grad_(False)
        for _, parameter in rolesafe.named_role_parameters(model):
            parameter.requires_grad_(True)
    if arm.steps:
        _fit(name, arm, model, words, directory, seed)
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file({key: value.contiguous().clone() for key, value in model.state_dict().items()}, file)
    return model.requires_grad_(True).eval()


def reference(name: str, words: PreTrainedTokenizerBase, directory: Path, seed: int) -> PreTrainedModel:
    """Return the frozen model that an arm is kept close to: the one that it starts from."""
    start = ARMS[name].start
    return _load(start, words, directory, seed, ARMS[start].preset).requires_grad_(False)


def _new(words: PreTrainedTokenizerBase, seed: int, preset: str) -> PreTrainedModel:
    model: PreTrainedModel = tiny_llama(len(words), seed=seed, layers=2)
    return rolesafe.patch(model, RoleConfig.preset(preset)) if preset else model


def _load(name: str, words: PreTrainedTokenizerBase, directory: Path, seed: int, preset: str) -> PreTrainedModel:
    model = _new(words, seed, preset)
    model.load_state_dict(load_file(_file(directory, name, seed)))
    return model.eval()


def _file(directory: Path, name: str, seed: int) -> Path:
    return directory / f"seed{seed}" / f"{name}.safetensors"


def _fit(name: str, arm: Arm, model: Any, words: PreTrainedTokenizerBase, directory: Path, seed: int) -> None:
    roles = bool(arm.preset)
    config = model.rolesafe_config if roles else RoleConfig()
    collator = RoleCollator(tokenizer=words, config=config, with_roles=roles)
    chosen, loss = _data(name.removeprefix("channel-"), arm, model, words, collator, directory, seed, name)
    arguments = TrainingArguments(
        output_dir=str(directory / "trainer"),
        max_steps=arm.steps,
        per_device_train_batch_size=BATCH,
        learning_rate=arm.learning_rate,
        lr_scheduler_type="linear",
        warmup_steps=20,
        weight_decay=0.01,
        seed=seed,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
        logging_steps=max(1, arm.steps // 5),
    )
    trainer = RoleTrainer(
        model, arguments, data_collator=collator, train_dataset=chosen, loss=loss,
        role_learning_rate=arm.learning_rate if roles else None,
    )  # fmt: skip
    trainer.remove_callback(PrinterCallback)
    trainer.train()


def _data(
    method: str,
    arm: Arm,
    model: Any,
    words: PreTrainedTokenizerBase,
    collator: RoleCollator,
    directory: Path,
    seed: int,
    name: str,
) -> tuple[Any, Any]:
    """Return the rows and the loss of an arm."""
    if method in ("base", "plain", "longer", "channel"):
        count = arm.steps * BATCH // len(KINDS) + 1
        return _encoded(collator, tasks.rows(KINDS, count, f"{name}/{seed}", comply=method == "base")), None
    benign = _encoded(collator, tasks.rows(KINDS[1:], BENIGN, f"benign/{seed}"))
    if method == "finetuned":
        return benign, None
    if method == "constrained":
        return benign, TokenConstrainedLoss(reference(name, words, directory, seed))
    given = (collator, tasks.triplets(512, f"triplets/{seed}"), benign)
    makers: dict[str, Callable[[], tuple[Any, Any]]] = {
        "augmentation": lambda: (PrefixAugmentation(*given, **RATIO), None),
        "insertion": lambda: (SpanInsertion(*given, model=model, **RATIO), None),
        "both": lambda: (SpanInsertion(*given, model=model, **RATIO), None),
        "dpo": lambda: (PreferenceRows(*given, **RATIO), PreferenceLoss(reference(name, words, directory, seed))),
        "deep": lambda: (RecoveryPrefixes(*given, **RATIO), _deep(name, words, directory, seed)),
        "heads": lambda: (RecoveryPrefixes(*given, **RATIO), _deep(name, words, directory, seed)),
        "eq2": lambda: (
            PromptRows(*given, **RATIO),
            PolicyGradientLoss(words, harm, reference=reference(name, words, directory, seed), max_new_tokens=14),
        ),
    }
    return makers[method]()


def _deep(name: str, words: PreTrainedTokenizerBase, directory: Path, seed: int) -> RecoveryLoss:
    frozen = reference(name, words, directory, seed)
    return RecoveryLoss([words.convert_tokens_to_ids("sorry")], STRENGTH, reference=frozen)


def harm(texts: Sequence[str]) -> list[float]:
    """Return 1 for replies with three words of a class and without a refusal: all prompts here are protected."""
    every = {word for some in tasks.CLASSES.values() for word in some}
    return [float("sorry" not in text and sum(word in every for word in text.split()) >= 3) for text in texts]


def _encoded(collator: RoleCollator, some: Sequence[Any]) -> list[Any]:
    known: dict[str, Any] = {}  # few distinct conversations
    return [known.setdefault(str(row), collator.encode(row)) if str(row) not in known else known[str(row)]
            for row in some]  # fmt: skip


torch.set_num_threads(1)
