"""`AnnealRoles`: the strength rises during training, and the loss does not jump."""

from __future__ import annotations

import copy
import math
import random

import pytest
import torch
from torch.nn.functional import cross_entropy
from transformers import TrainerCallback, TrainingArguments

import rolesafe
from rolesafe import RoleConfig
from rolesafe.mechanisms import get_strength, set_strength
from rolesafe.training import AnnealRoles, RoleCollator, RoleTrainer
from rolesafe.training.tiny import tiny_llama, tiny_tokenizer

CONFIG = RoleConfig(bias=False, dedicated_heads=0.5)
STEPS = 120
JUMP, MARGIN = 0.45, 0.2
"""Nats: how far the loss of the tiny model jumps at least without annealing, and rises at most with it."""


WORDS = ["red", "blue", "green", "pink", "black", "white", "gold", "grey"]


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_tokenizer([*WORDS, "your", "my", "colour", "is", "say"])


@pytest.fixture(scope="module")
def rows():
    """Return conversations with the colour of the system prompt or of the user text as reply, as asked."""
    make = random.Random(0)

    def row() -> dict[str, list[dict[str, str]]]:
        system, user, mine = make.choice(WORDS), make.choice(WORDS), make.random() < 0.5
        return {
            "messages": [
                {"role": "system", "content": f"your colour is {system}"},
                {"role": "user", "content": f"my colour is {user} say {'my' if mine else 'your'} colour"},
                {"role": "assistant", "content": f"{user if mine else system} {make.choice(WORDS)}"},
            ]
        }

    return [row() for _ in range(512)]


class Losses(TrainerCallback):
    """Record strength before the first step and after each, and the loss on one fixed batch at every `every`-th."""

    def __init__(self, batch, every=1):
        self.batch, self.every, self.losses, self.strengths = batch, every, [], []

    def on_train_begin(self, args, state, control, **kw):
        if not self.losses:
            self.look(kw["model"], 0)

    def on_step_end(self, args, state, control, **kw):
        self.look(kw["model"], state.global_step)

    def look(self, model, step):
        if step % self.every == 0:
            self.losses.append(loss_on(model, self.batch))
        self.strengths.append(get_strength(model))


def loss_on(model, batch) -> float:
    training = model.training
    with torch.no_grad():
        logits = model.eval()(**{k: x for k, x in batch.items() if k != "labels"}).logits
    model.train(training)
    return cross_entropy(logits[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten()).item()


def fit(model, tokenizer, rows, directory, steps, callbacks=(), resume=None, patched=True, **changes):
    arguments = TrainingArguments(
        output_dir=str(directory), per_device_train_batch_size=16, report_to=[], disable_tqdm=True, use_cpu=True,
        seed=1, max_steps=steps,
        **{"learning_rate": 2e-3, "lr_scheduler_type": "constant", "save_strategy": "no", **changes},
    )  # fmt: skip
    collator = RoleCollator(tokenizer=tokenizer, config=CONFIG, with_roles=patched)
    trainer = RoleTrainer(model, arguments, data_collator=collator, train_dataset=rows, callbacks=list(callbacks))
    trainer.train(resume_from_checkpoint=resume)
    return model


@pytest.fixture(scope="module")
def pretrained(tokenizer, rows, tmp_path_factory):
    """Return a plain model trained until it uses its attention."""
    model = tiny_llama(len(tokenizer), seed=0, hidden=64, layers=2, heads=8)
    return fit(model, tokenizer, rows, tmp_path_factory.mktemp("plain"), 150, patched=False, learning_rate=5e-3)


@pytest.fixture
def batch(tokenizer, rows):
    return RoleCollator(tokenizer=tokenizer, config=CONFIG)(rows[:48])


def patched(pretrained):
    return rolesafe.patch(copy.deepcopy(pretrained), CONFIG)


def test_anneal_avoids_loss_jump(pretrained, tokenizer, rows, batch, tmp_path):
    before = loss_on(pretrained, {k: x for k, x in batch.items() if k != "role_ids"})
    at_once, by_degrees = Losses(batch), Losses(batch, every=3)
    fit(patched(pretrained), tokenizer, rows, tmp_path, 1, [at_once])
    assert at_once.losses[0] > before + JUMP
    model = fit(patched(pretrained), tokenizer, rows, tmp_path, STEPS, [AnnealRoles(0.8), by_degrees])
    assert by_degrees.losses[0] == pytest.approx(before, abs=1e-5)
    assert max(by_degrees.losses) < before + MARGIN
    assert by_degrees.losses[-1] < before + 0.05
    assert by_degrees.strengths == pytest.approx([min(1.0, i / 96) for i in range(STEPS + 1)])
    # the end is the plain dedicated computation
    assert get_strength(model) == 1.0
    fresh = rolesafe.patch(tiny_llama(len(tokenizer), seed=0, hidden=64, layers=2, heads=8), CONFIG)
    fresh.load_state_dict(model.state_dict())
    with torch.no_grad():
        inputs = {k: x for k, x in batch.items() if k != "labels"}
        assert torch.equal(model.eval()(**inputs).logits, fresh.eval()(**inputs).logits)


def test_resumed_run_continues_strength(pretrained, tokenizer, rows, batch, tmp_path):
    whole = Losses(batch)
    options = {"save_strategy": "steps", "save_steps": 4, "logging_steps": 1}
    expected = fit(
        patched(pretrained), tokenizer, rows, tmp_path / "a", 10, [AnnealRoles(8, shape="cosine"), whole], **options
    )
    with pytest.raises(ValueError, match=r"saved with strength 0\.(49999|5)"):
        rolesafe.from_pretrained(tmp_path / "a" / "checkpoint-4")
    rest = Losses(batch)
    again = fit(
        patched(pretrained), tokenizer, rows, tmp_path / "b", 10, [AnnealRoles(8, shape="cosine"), rest],
        resume=str(tmp_path / "a" / "checkpoint-4"), **options,
    )  # fmt: skip
    assert rest.strengths == pytest.approx(whole.strengths[4:])
    assert rest.losses == pytest.approx(whole.losses[4:], abs=1e-5)
    for (name, x), y in zip(expected.named_parameters(), again.parameters(), strict=True):
        torch.testing.assert_close(x, y, rtol=0, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")


def test_shapes() -> None:
    linear, cosine = AnnealRoles(10, start=0.2), AnnealRoles(0.5, shape="cosine")
    assert [linear.strength(i, 40) for i in (0, 5, 10, 11)] == pytest.approx([0.2, 0.6, 1.0, 1.0])
    assert [cosine.strength(i, 40) for i in (0, 5, 10, 20, 40)] == pytest.approx(
        [0.0, (1 - math.cos(math.pi / 4)) / 2, 0.5, 1.0, 1.0]
    )
    assert linear.strength(10, 40) == cosine.strength(20, 40) == 1.0  # exactly
    assert AnnealRoles(0.01).strength(1, 5) == 1.0
    for one in (linear, cosine):
        values = [one.strength(i, 40) for i in range(41)]
        assert values == sorted(values)


@pytest.mark.parametrize("steps", [0, -1, 0.0, 1.5, True, "all", float("nan")])
def test_wrong_steps(steps):
    with pytest.raises(ValueError, match=r"`steps`: expected a number of steps >= 1"):
        AnnealRoles(steps)


def test_wrong_arguments_raise(pretrained, tokenizer, rows, tmp_path):
    with pytest.raises(ValueError, match=r"`start`: expected a strength in \[0, 1\), got 1.0"):
        AnnealRoles(3, start=1.0)
    with pytest.raises(ValueError, match=r"`shape`: expected one of \('linear', 'cosine'\), got 'step'"):
        AnnealRoles(3, shape="step")
    with pytest.raises(ValueError, match=r"`steps`: expected at most the 2 steps of this run, got 3"):
        fit(patched(pretrained), tokenizer, rows, tmp_path, 2, [AnnealRoles(3)])
    with pytest.raises(ValueError, match="`model`: expected a model patched by rolesafe"):
        fit(copy.deepcopy(pretrained), tokenizer, rows, tmp_path, 2, [AnnealRoles(1)], patched=False)


def test_anneal_evaluation_uses_strength_of_step(pretrained, tokenizer, rows, tmp_path):
    model = patched(pretrained)
    set_strength(model, 0.7)  # whatever it was before
    fit(model, tokenizer, rows, tmp_path, 2, [AnnealRoles(1.0, start=0.5)])
    assert get_strength(model) == 1.0
