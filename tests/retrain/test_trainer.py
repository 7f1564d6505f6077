"""Loss of labelled positions: value, gradients and scaling; presets that need annealing."""

from __future__ import annotations

import pytest
import torch
from transformers import TrainingArguments

import rolesafe
from rolesafe import RoleConfig
from rolesafe.patching import role_modules
from rolesafe.retrain.strength import changes_outputs
from rolesafe.retrain.trainer import ReplyTrainer, fingerprint, reply_loss
from rolesafe.tasks import training_conversations, vocabulary
from rolesafe.training import RoleCollator, RoleTrainer
from rolesafe.training.tiny import tiny_llama, tiny_tokenizer
from tests.models import tiny_model

CONFIG = RoleConfig.preset("channel")


def labelled_batch(seed: int = 0, vocabulary: int = 50) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, vocabulary, (3, 9), generator=generator)
    roles = torch.tensor([0, 0, 2, 2, 2, 3, 3, 3, 3]).expand(3, 9)
    labels = torch.where(roles == 3, ids, -100)
    labels[1, 6:] = -100
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "role_ids": roles, "labels": labels}


def gradients(model) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def lora(model):
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(
        r=2, target_modules="all-linear", task_type="CAUSAL_LM", modules_to_save=role_modules(model)
    )
    return peft.get_peft_model(model, config)


@pytest.mark.parametrize("kind", ["llama", "gemma2", "gpt2", "granite", "llama with lora"])
def test_reply_loss_equals_the_ordinary_loss(kind):
    model = rolesafe.patch(tiny_model(kind.split()[0]).float(), CONFIG)
    if "lora" in kind:
        model = lora(model)
    model.train()
    batch = labelled_batch(vocabulary=model.config.vocab_size)
    ordinary = model(**batch).loss
    ordinary.backward()
    expected = gradients(model)
    model.zero_grad(set_to_none=True)
    labels = batch.pop("labels")
    loss, outputs = reply_loss(model, model, batch, labels)
    loss.backward()
    torch.testing.assert_close(loss, ordinary)
    found = gradients(model)
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, atol=1e-5, rtol=1e-4)
    # logits exist for the labels only
    assert outputs.logits.shape[:2] == (1, int((labels[:, 1:] != -100).sum()))


def test_reply_loss_divides_by_the_count():
    model = tiny_model("llama")
    batch = labelled_batch(vocabulary=model.config.vocab_size)
    labels, _ = batch.pop("labels"), batch.pop("role_ids")
    one, _ = reply_loss(model, model, batch, labels)
    other, _ = reply_loss(model, model, batch, labels, torch.tensor(100))
    torch.testing.assert_close(other * 100, one * int((labels != -100).sum()))


def test_model_without_output_layer_raises():
    model = tiny_model("llama").model
    batch = labelled_batch(vocabulary=model.config.vocab_size)
    model.get_output_embeddings = lambda: None
    with pytest.raises(ValueError, match="`model`: expected a causal language model with an output layer"):
        reply_loss(model, model, batch, batch["labels"])


def trained(kind, tmp_path, accumulation: int):
    tokenizer = tiny_tokenizer(vocabulary())
    rows = [{"messages": messages} for messages in training_conversations(16, seed=0)]
    model = rolesafe.patch(tiny_llama(len(tokenizer), seed=0, hidden=32, layers=2, heads=4), CONFIG)
    arguments = TrainingArguments(
        output_dir=str(tmp_path), per_device_train_batch_size=4 // accumulation, max_steps=2, learning_rate=0.1,
        gradient_accumulation_steps=accumulation, optim="sgd", save_strategy="no", report_to=[], disable_tqdm=True,
        use_cpu=True, seed=1, train_sampling_strategy="sequential", logging_steps=1,
    )  # fmt: skip
    collator = RoleCollator(tokenizer=tokenizer, config=CONFIG)
    trainer = kind(model, arguments, data_collator=collator, train_dataset=rows)
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return model, losses


@pytest.mark.parametrize("accumulation", [1, 2])
def test_reply_trainer_trains_as_the_role_trainer(tmp_path, accumulation):
    model, losses = trained(RoleTrainer, tmp_path, accumulation)
    other, found = trained(ReplyTrainer, tmp_path, accumulation)
    assert found == pytest.approx(losses, rel=1e-4)
    for name, p in model.named_parameters():
        torch.testing.assert_close(other.get_parameter(name), p, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        *((name, False) for name in ("bias", "embedding", "ise", "air", "drip")),
        *((name, True) for name in ("channel", "dedicated", "share", "integrity", "aside", "pft")),
    ],
)
def test_changes_outputs_by_preset(name, changes):
    tokenizer = tiny_tokenizer(vocabulary())
    config = RoleConfig.preset(name)
    model = rolesafe.patch(tiny_llama(len(tokenizer), seed=0, hidden=32, layers=2, heads=4), config).train()
    assert changes_outputs(model, tokenizer) is changes
    assert model.training


def test_fingerprint_differs_between_models():
    one, same, other = (tiny_llama(30, seed=seed, hidden=32, layers=1, heads=2) for seed in (0, 0, 1))
    assert fingerprint(one) == fingerprint(same) != fingerprint(other)
