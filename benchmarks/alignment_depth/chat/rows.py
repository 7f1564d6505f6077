"""Training rows of the arms on a chat model, all in the ratio of
:data:`benchmarks.alignment_depth.chat.protocol.RATIO`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import torch
from transformers import PreTrainedModel

from benchmarks.alignment_depth.chat.data import DEEPEST, Texts
from benchmarks.alignment_depth.chat.generation import question
from benchmarks.alignment_depth.chat.protocol import RATIO
from rolesafe.retrain.trainer import has_bf16
from rolesafe.training import (
    PrefixAugmentation,
    RecoveryPrefixes,
    RoleCollator,
    SafetyTriplet,
    SpanInsertion,
)
from rolesafe.training.safety_rows import Row, SafetyRows

METHODS: Final = ("plain", "augmentation", "insertion", "both", "deep")


class Refusals(SafetyRows):
    """Return ordinary refusals, without any forced token."""

    def make(self, numbers: Sequence[int]) -> list[Row]:
        return [self._row(number, ()) for number in numbers]


class Insertion(SpanInsertion):
    """Score the candidates in the dtype of the training."""

    def losses(self, rows: Sequence[Row]) -> list[float]:
        """Return the mean loss of the refusal in each row."""
        device = next(self.model.parameters()).device
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=has_bf16()):
            return super().losses(rows)


class Both(Insertion):
    """Take one half of the rows from prefix augmentation, the other half from worst insertion."""

    def __init__(self, collator: RoleCollator, triplets: Sequence[SafetyTriplet], benign: Sequence[Row],
                 **options: Any) -> None:  # fmt: skip
        super().__init__(collator, triplets, benign, **options)
        self.prefixes = PrefixAugmentation(collator, triplets, benign, max_prefix=DEEPEST, **RATIO)

    def make(self, numbers: Sequence[int]) -> list[Row]:
        half = len(numbers) - len(numbers) // 2
        return [*self.prefixes.make(numbers[:half]), *super().make(numbers[half:])]


def rows(method: str, model: PreTrainedModel, collator: RoleCollator, texts: Texts) -> SafetyRows:
    """Return the rows of a method; all methods have the same prompts and benign rows in the same order.

    Args:
        method: One of :data:`METHODS`.
        model: The model that is trained.
        collator: Of the training.
        texts: Data of the study.

    Raises:
        ValueError: The method is unknown.
    """
    triplets = [
        SafetyTriplet(messages=question(prompt), harmful=harmful, refusal=refusal)
        for prompt, harmful, refusal in texts.train
    ]
    benign = [
        collator.encode({"messages": [*question(asked), {"role": "assistant", "content": reply}]})
        for asked, reply in texts.benign_train
    ]
    if method == "plain":
        return Refusals(collator, triplets, benign, **RATIO)
    if method == "augmentation":
        return PrefixAugmentation(collator, triplets, benign, max_prefix=DEEPEST, **RATIO)
    if method == "deep":
        return RecoveryPrefixes(collator, triplets, benign, max_prefix=DEEPEST, **RATIO)
    if method in ("insertion", "both"):
        kind = Insertion if method == "insertion" else Both
        return kind(collator, triplets, benign, model=model, places=2, spans=2, **RATIO)
    raise ValueError(f"`method`: expected one of {METHODS}, got {method!r}.")
