"""Trainings without a privileged token raise where that is certain, and warn where rows are only seen in batches."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import Dataset as TorchDataset
from torch.utils.data import IterableDataset
from transformers import Trainer, TrainingArguments

import rolesafe
from rolesafe import RoleConfig
from rolesafe.tasks import training_conversations, vocabulary
from rolesafe.training import (
    FitSettings,
    PrefixAugmentation,
    RoleCollator,
    RoleTrainer,
    SafetyTriplet,
    fit,
    with_loss,
)
from rolesafe.training.privileged import FIRST, PARTS, check_rows
from rolesafe.training.reply_losses import TokenConstrainedLoss
from rolesafe.training.tiny import tiny_llama, tiny_tokenizer

TOKENIZER = tiny_tokenizer(vocabulary())
GOOD = [{"messages": one} for one in training_conversations(FIRST, seed=0)]
BAD = [{"messages": [m for m in row["messages"] if m["role"] != "system"]} for row in GOOD]
CHANNEL = RoleConfig.preset("channel")
LACK = r"expected rows with tokens of the privileged roles \['system', 'developer'\], got none in "
SETTINGS: dict[str, Any] = {
    "added_heads": 1, "dedicated_heads": 1, "share": 0.2, "integrity": True, "position_gap": 8, "own_positions": True
}  # fmt: skip


class Stream(IterableDataset[Any]):
    def __init__(self, rows: list[Any]) -> None:
        self.rows = rows

    def __iter__(self) -> Iterator[Any]:
        return iter(self.rows)


class Map(TorchDataset[Any]):
    def __init__(self, rows: list[Any]) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Any:
        return self.rows[index]


def arguments(directory: Path, **changes: Any) -> TrainingArguments:
    options = {"max_steps": FIRST // 8, "per_device_train_batch_size": 8, "save_strategy": "no", **changes}
    return TrainingArguments(
        str(directory), report_to=[], use_cpu=True, disable_tqdm=True, remove_unused_columns=False, **options
    )


def model(config: RoleConfig = CHANNEL) -> Any:
    return rolesafe.patch(tiny_llama(len(TOKENIZER), seed=0, hidden=32, layers=1, heads=4), config)


def trainer(directory: Path, rows: Any, config: RoleConfig = CHANNEL, **changes: Any) -> RoleTrainer:
    collator = RoleCollator(tokenizer=TOKENIZER, config=config)
    return RoleTrainer(model(config), arguments(directory, **changes), data_collator=collator, train_dataset=rows)


@pytest.mark.parametrize("part", PARTS)
def test_every_part_has_no_effect_without_privileged_tokens(part: str) -> None:
    """The outputs are those of the base, and no role parameter has a gradient."""
    config = RoleConfig(bias=False, **{part: SETTINGS[part]})
    with pytest.raises(ValueError, match=f"`privileged`: expected at least one role with `{part}`"):
        RoleConfig(privileged=(), bias=False, **{part: SETTINGS[part]})
    batch = RoleCollator(tokenizer=TOKENIZER, config=config)(BAD[:4])
    patched = model(config)
    for _, parameter in rolesafe.named_role_parameters(patched):
        torch.nn.init.normal_(parameter, std=0.1)
    output = patched(**batch)
    if part != "dedicated_heads":  # those output 0
        plain = {name: value for name, value in batch.items() if name != "role_ids"}
        base = tiny_llama(len(TOKENIZER), seed=0, hidden=32, layers=1, heads=4)(**plain)
        torch.testing.assert_close(output.logits, base.logits, rtol=1e-4, atol=1e-4)
    output.loss.backward()
    grads = [p.grad for _, p in rolesafe.named_role_parameters(patched)]
    assert all(grad is None or not grad.any() for grad in grads)
    check_rows(config, "data", GOOD)
    with pytest.raises(ValueError, match=f"`data`: {LACK}64 rows.*not trained: `{part}`"):
        check_rows(config, "data", BAD)


@pytest.mark.parametrize("config", [RoleConfig(), RoleConfig.preset("embedding"), RoleConfig.preset("instaboost")])
def test_other_parts_train_without_privileged_tokens(config: RoleConfig, tmp_path: Path) -> None:
    check_rows(config, "data", BAD)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        trainer(tmp_path, Stream(BAD), config).train()


def test_one_privileged_row_is_enough(tmp_path: Path) -> None:
    rows = [*BAD, GOOD[0]]
    trainer(tmp_path, rows)
    check_rows(CHANNEL, "data", BAD, tuple(GOOD[:1]))
    check_rows(CHANNEL, "data", [], [])
    check_rows(CHANNEL, "data", None)


def test_roles_of_the_model_count_not_their_names(tmp_path: Path) -> None:
    check_rows(RoleConfig.preset("added", privileged=("user",)), "data", BAD)
    with pytest.raises(ValueError, match=r"privileged roles \['developer'\]"):
        check_rows(RoleConfig.preset("added", privileged=("developer",)), "data", GOOD)


@pytest.mark.parametrize("form", ["messages", "encoded", "tensors", "pair", "encoded pair", "prompt", "datasets"])
def test_trainer_rows_without_privileged_tokens_raise(form: str, tmp_path: Path) -> None:
    collator = RoleCollator(tokenizer=TOKENIZER, config=CHANNEL)

    def rows(some: list[Any]) -> Any:
        if form == "messages":
            return some
        if form == "encoded":
            return tuple(map(collator.encode, some))
        if form == "tensors":
            return [{k: torch.tensor(v) for k, v in collator.encode(row).items()} for row in some]
        if form == "pair":
            return [{"chosen": row["messages"], "rejected": row["messages"]} for row in some]
        if form == "encoded pair":
            return [{"chosen": collator.encode(row), "rejected": collator.encode(row)} for row in some]
        if form == "prompt":
            return [{"prompt": (m := row["messages"])[:-1], "chosen": m[-1:], "rejected": m[-1:]} for row in some]
        return pytest.importorskip("datasets").Dataset.from_list(some)

    trainer(tmp_path, rows([*BAD[:3], GOOD[0]]))
    with pytest.raises(ValueError, match=f"`train_dataset`: {LACK}4 rows"):
        trainer(tmp_path, rows(BAD[:4]))


def test_fit_rows_without_privileged_tokens_raise(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"`train_dataset`: {LACK}64 rows"):
        fit(model(), TOKENIZER, BAD, FitSettings(steps=1), seed=0, directory=tmp_path / "out")


def test_resume_of_streamed_rows_warns(tmp_path: Path) -> None:
    """Rows that a resumed training skips count too."""
    steps = FIRST // 8
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        trainer(tmp_path, Stream(BAD), max_steps=steps - 2, save_strategy="steps", save_steps=steps - 2).train()
    with pytest.warns(UserWarning, match=LACK):
        trainer(tmp_path, Stream(BAD), max_steps=steps).train(resume_from_checkpoint=True)


@pytest.mark.parametrize("kind", [Stream, Map])
def test_trainer_first_batches_without_privileged_tokens_warn(kind: Any, tmp_path: Path) -> None:
    one = trainer(tmp_path, kind(BAD * 3), max_steps=2 * FIRST // 8)
    with pytest.warns(UserWarning, match=f"`train_dataset`: {LACK}the first {FIRST} rows") as found:
        one.train()
    assert sum("`train_dataset`" in str(w.message) for w in found) == 1
    mixed = trainer(tmp_path, kind([*BAD[1:], GOOD[0]]))
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        mixed.train()


def test_trainer_watches_with_the_roles_of_the_model(tmp_path: Path) -> None:
    """A collator with the same roles, but without the model's parts, and one that saw another training."""
    collator = RoleCollator(tokenizer=TOKENIZER, config=RoleConfig())
    for _ in range(2):
        one = RoleTrainer(model(), arguments(tmp_path), data_collator=collator, train_dataset=Stream(BAD))
        with pytest.warns(UserWarning, match=LACK):
            one.train()


@pytest.mark.parametrize("loss", [None, "constrained"])
def test_plain_trainer_with_the_collator_warns(loss: str | None, tmp_path: Path) -> None:
    kind = Trainer if loss is None else with_loss(Trainer, TokenConstrainedLoss(reference=model()))
    collator = RoleCollator(tokenizer=TOKENIZER, config=CHANNEL)
    one = kind(model(), arguments(tmp_path), data_collator=collator, train_dataset=BAD)
    with pytest.warns(UserWarning, match=LACK):
        one.train()


def test_plain_model_does_not_warn() -> None:
    collator = RoleCollator(tokenizer=TOKENIZER, config=CHANNEL, with_roles=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        collator(BAD)


def test_safety_rows_without_privileged_tokens_raise() -> None:
    collator = RoleCollator(tokenizer=TOKENIZER, config=CHANNEL)
    triplets = [
        SafetyTriplet(messages=row["messages"][:-1], harmful="yes .", refusal="no .") for row in (BAD[0], GOOD[0])
    ]
    PrefixAugmentation(collator, triplets[:1], GOOD[:1])
    PrefixAugmentation(collator, triplets[1:], BAD[:1])
    with pytest.raises(ValueError, match=f"`triplets`: {LACK}2 rows"):
        PrefixAugmentation(collator, triplets[:1], [collator.encode(BAD[1])])
    plain = RoleCollator(tokenizer=TOKENIZER, config=CHANNEL, with_roles=False)
    PrefixAugmentation(plain, triplets[:1], BAD[:1])


def test_rows_with_random_transforms_are_not_read(tmp_path: Path) -> None:
    data = pytest.importorskip("datasets").Dataset.from_list(BAD)
    data.set_transform(lambda batch: pytest.fail("read"))
    check_rows(CHANNEL, "data", data)
    check_rows(CHANNEL, "data", [{"text": "no roles"}])
    check_rows(CHANNEL, "data", [{"input_ids": [5], "role_ids": None}])
