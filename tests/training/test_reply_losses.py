"""Losses of alignment depth: values by hand, gradients and minima against the theory, on the Trainer and on TRL."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from transformers import GenerationMixin, LlamaConfig, PreTrainedModel, TrainingArguments
from transformers.modeling_outputs import CausalLMOutput

import rolesafe
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
    with_loss,
)
from rolesafe.training.collator import IGNORED
from rolesafe.training.reply_losses import reply_positions
from rolesafe.training.tiny import tiny_llama
from tests.training.test_safety_rows import BENIGN, CONFIG, TOKENIZER, TRIPLET

V = 6


class Table(PreTrainedModel, GenerationMixin):
    """Bigram model: logits are rows of a table (V, V)."""

    config_class = LlamaConfig

    def __init__(self, table: torch.Tensor) -> None:
        super().__init__(LlamaConfig(vocab_size=len(table), bos_token_id=None, eos_token_id=None, pad_token_id=0))
        self.table = torch.nn.Parameter(table.clone())

    def forward(self, input_ids: Any, attention_mask: Any = None, use_cache: Any = None, **other: Any) -> Any:
        return CausalLMOutput(logits=self.table[input_ids])

    def prepare_inputs_for_generation(self, input_ids: Any, attention_mask: Any = None, **other: Any) -> Any:
        return {"input_ids": input_ids}


def table(seed: int, size: int = V) -> Table:
    return Table(torch.randn(size, size, generator=torch.Generator().manual_seed(seed)))


def batch_of(ids: list[list[int]], labels: list[list[int]] | None = None, **columns: Any) -> dict[str, torch.Tensor]:
    given = torch.tensor(ids)
    marked = torch.full_like(given, IGNORED) if labels is None else torch.tensor(labels)
    return {
        "input_ids": given,
        "attention_mask": torch.ones_like(given),
        "labels": marked,
        **{name: torch.tensor(value) for name, value in columns.items()},
    }


def gradient(model: Table, loss: Any, batch: Any) -> torch.Tensor:
    model.zero_grad()
    loss(model, batch)[0].backward()
    assert model.table.grad is not None
    return model.table.grad.clone()


def test_reply_positions_restart_in_each_reply() -> None:
    learned = torch.tensor([[0, 1, 1, 0, 0, 1, 1, 1], [1, 1, 0, 1, 0, 0, 0, 0]]).bool()
    assert reply_positions(learned).tolist() == [[0, 1, 2, 0, 0, 1, 2, 3], [1, 2, 0, 1, 0, 0, 0, 0]]


# ------------------------------------------------------------------------------------------------------ deep objective


@pytest.mark.parametrize("discount", [1.0, 0.7])
def test_recovery_minimum_is_the_sigmoid_of_theorem_20(discount: float) -> None:
    """Every prefix of the row 0 1 2 3 4 has its own row of the table, so each has its own minimum."""
    base = table(0)
    model = Table(base.table.data)
    tokens, strength = [1, 5], 3.0
    loss = RecoveryLoss(tokens, strength, discount, reference=base)
    batch = batch_of([[0, 1, 2, 3, 4]], prefix_weights=[[0.0, 1.0, 1.0, 1.0, 1.0]])
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=200, tolerance_grad=1e-9, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        value = loss(model, batch)[0]
        value.backward()
        return value

    optimizer.step(closure)
    rho, rho_0 = (m.table.detach().softmax(-1)[:, tokens].sum(-1) for m in (model, base))
    reward = strength * discount ** torch.arange(1, 5).float()
    torch.testing.assert_close(rho[:4], torch.sigmoid(torch.logit(rho_0[:4]) + reward), atol=1e-4, rtol=0)
    assert torch.equal(model.table[4:], base.table[4:])  # no prefix ends there


def test_recovery_loss_by_hand() -> None:
    base, model = table(0), table(1)
    labels = [[IGNORED] * 3, [IGNORED, IGNORED, 4]]
    batch = batch_of([[0, 1, 2], [0, 3, 4]], labels, prefix_weights=[[0.0, 2.0, 0.5], [0.0, 0.0, 0.0]])
    log_p, log_q = (m.table.detach().log_softmax(-1) for m in (model, base))
    kl = (log_p.exp() * (log_p - log_q)).sum(-1)
    rho = log_p[:, 2].exp()
    nll = -log_p[3, 4]
    terms = [2.0 * (kl[0] - 5.0 * 0.5 * rho[0]), 0.5 * (kl[1] - 5.0 * 0.25 * rho[1])]
    found = RecoveryLoss([2], 5.0, 0.5, reference=base, anchor=0.3)(model, batch)[0]
    torch.testing.assert_close(found, 0.3 * nll + sum(terms) / 2)
    without = RecoveryLoss([2], 5.0, 0.5, kl_on_prefixes=False, reference=base)(model, batch)[0]
    pushed = (2.0 * -5.0 * 0.5 * rho[0] + 0.5 * -5.0 * 0.25 * rho[1]) / 2
    torch.testing.assert_close(without, nll + pushed + kl[3])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (([], 1.0), "`tokens`: expected at least one token id of a recovery, got"),
        (([-1], 1.0), "`tokens`: expected at least one token id"),
        (([1], 0.0), "`strength`: expected a positive number, got 0.0"),
        (([1], math.inf), "`strength`: expected a positive number, got inf"),
        (([1], 1.0, 0.0), r"`discount`: expected a number in \(0, 1\], got 0.0"),
        (([1], 1.0, 1.1), r"`discount`: expected a number in \(0, 1\], got 1.1"),
    ],
)
def test_recovery_out_of_range_raises(given: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RecoveryLoss(*given, reference=table(0))


def test_losses_with_other_vocabularies_raise() -> None:
    batch = batch_of([[0, 1, 2]], [[IGNORED, 1, 2]], preference=[0])
    for loss in (
        RecoveryLoss([1], 1.0, reference=table(0, 9)),
        TokenConstrainedLoss(table(0, 9)),
        PreferenceLoss(table(0, 9)),
    ):
        with pytest.raises(ValueError, match="`reference`: expected the model's vocabulary of 6 tokens, got 9"):
            loss(table(1), batch)
    with pytest.raises(ValueError, match="`tokens`: expected ids below 6, the vocabulary of the model, got 7"):
        RecoveryLoss([7], 1.0, reference=table(0))(table(1), batch)


# ---------------------------------------------------------------------------------------------------------- constrained


def test_constrained_loss_by_hand() -> None:
    base, model = table(0), table(1)
    ids = [0, 1, 2, 3, 4, 5, 0, 1, 2]
    batch = batch_of([ids], [[IGNORED, IGNORED, *ids[2:]]])
    log_p, log_q = (m.table.detach().log_softmax(-1) for m in (model, base))
    betas = [0.5, 2.0, 2.0, 2.0, 2.0, 0.1, 0.1]
    pairs = list(itertools.pairwise(ids))[1:]
    each = [-2 / b * F.logsigmoid(b * (log_p[x, y] - log_q[x, y])) for b, (x, y) in zip(betas, pairs, strict=True)]
    torch.testing.assert_close(
        TokenConstrainedLoss(base, form="sigmoid")(model, batch)[0], torch.stack(each).mean(), atol=1e-5, rtol=1e-5
    )


def test_constrained_forms_have_one_gradient() -> None:
    base, model = table(0), table(1)
    ids = [0, 1, 2, 3, 4, 5, 0, 1, 2]
    batch = batch_of([ids], [[IGNORED, IGNORED, *ids[2:]]])
    one, other = (gradient(model, TokenConstrainedLoss(base, form=form), batch) for form in ("weights", "sigmoid"))
    torch.testing.assert_close(one, other)
    start = gradient(Table(base.table.data), TokenConstrainedLoss(base), batch)
    plain = gradient(Table(base.table.data), lambda m, b: (F.cross_entropy(m(b["input_ids"]).logits[0, 1:-1],
                     b["input_ids"][0, 2:]), None), batch)  # fmt: skip
    torch.testing.assert_close(start, plain)  # at the reference every weight is 1


def test_constrained_weight_is_at_least_the_smallest() -> None:
    base = table(0)
    model = Table(base.table.data)
    model.table.data[0, 1] += 200.0  # far above the reference: the weight would be 0
    batch = batch_of([[0, 1]], [[IGNORED, 1]])
    value = TokenConstrainedLoss(base, least=0.25)(model, batch)[0]
    torch.testing.assert_close(value, -0.25 * model.table.log_softmax(-1)[0, 1])


# -------------------------------------------------------------------------------------------------------- preferences


def test_preference_loss_by_hand() -> None:
    base, model = table(0), table(1)
    ids = [[0, 1, 2], [0, 3, 4], [0, 5, 1]]
    batch = batch_of(ids, [[IGNORED, *row[1:]] for row in ids], preference=[1, -1, 0])
    log_p, log_q = (m.table.detach().log_softmax(-1) for m in (model, base))
    gain = [sum((log_p - log_q)[x, y] for x, y in itertools.pairwise(row)) for row in ids]
    anchor = -sum(log_p[x, y] for x, y in itertools.pairwise(ids[2])) / 2
    expected = -F.logsigmoid((gain[0] - gain[1]) / 4.0) + 0.5 * anchor
    torch.testing.assert_close(PreferenceLoss(base, strength=4.0, anchor=0.5)(model, batch)[0], expected)
    with pytest.raises(ValueError, match="`batch`: expected rows with `chosen` and `rejected`, got none"):
        PreferenceLoss(base)(model, batch_of(ids))


# ---------------------------------------------------------------------------------------------------- policy gradient

NUMBERS: Any = SimpleNamespace(
    eos_token_id=None, pad_token_id=0, decode=lambda row, skip_special_tokens: " ".join(map(str, row))
)


def harm_of(texts: list[str]) -> list[float]:
    return [float(text.split()[0] == "1" or text.split()[-1] == "2") for text in texts]


def exact_objective(model: Table, base: Table, strength: float) -> torch.Tensor:
    """Return strength * E[Harm] + KL of the two tokens after token 3, by enumeration."""
    log_p, log_q = model.table.log_softmax(-1), base.table.detach().log_softmax(-1)
    total = torch.zeros(())
    for y in itertools.product(range(V), repeat=2):
        log = log_p[3, y[0]] + log_p[y[0], y[1]]
        known = log_q[3, y[0]] + log_q[y[0], y[1]]
        total = total + log.exp() * (strength * harm_of([f"{y[0]} {y[1]}"])[0] + log - known)
    return total


def test_policy_gradient_is_the_gradient_of_eq_2() -> None:
    base, model = table(0), table(1)
    exact = torch.autograd.grad(exact_objective(model, base, 2.0), model.table)[0]
    loss = PolicyGradientLoss(NUMBERS, harm_of, reference=base, strength=2.0, samples=20_000, max_new_tokens=2, ends=[])
    torch.manual_seed(0)
    value, _ = loss(model, batch_of([[3]]))
    found = torch.autograd.grad(value, model.table)[0]
    assert abs(float(value.detach()) - exact_objective(model, base, 2.0).item()) < 0.02
    torch.testing.assert_close(found, exact, atol=0.015, rtol=0)
    assert float(exact.abs().max()) > 0.15


@pytest.mark.parametrize(
    ("harm", "kind", "message"),
    [
        (lambda texts: [2.0] * len(texts), ValueError, r"`harm`: expected numbers in \[0, 1\], got 2.0 for the reply"),
        (lambda texts: [math.nan] * len(texts), ValueError, r"`harm`: expected numbers in \[0, 1\], got nan"),
        (lambda texts: [0.0], ValueError, "`harm`: expected one number for each of 4 replies, got 1"),
        (lambda texts: texts[99], RuntimeError, "`harm`: failed on 4 replies, first '"),
    ],
)
def test_policy_gradient_with_bad_harm_raises(harm: Any, kind: type[Exception], message: str) -> None:
    loss = PolicyGradientLoss(NUMBERS, harm, reference=table(0), samples=4, max_new_tokens=2, ends=[])
    with pytest.raises(kind, match=message):
        loss(table(1), batch_of([[3]]))
    with pytest.raises(ValueError, match="`samples`: expected a number >= 2, got 1"):
        PolicyGradientLoss(NUMBERS, harm, reference=table(0), samples=1)


# ------------------------------------------------------------------------------------------------------- the Trainers


def arguments(directory: Path, **changes: Any) -> TrainingArguments:
    return TrainingArguments(
        output_dir=str(directory), per_device_train_batch_size=4, max_steps=6, learning_rate=3e-3, report_to=[],
        disable_tqdm=True, use_cpu=True, save_strategy="no", logging_steps=1, **changes,
    )  # fmt: skip


def llama(roles: bool) -> Any:
    made = tiny_llama(len(TOKENIZER), seed=0, hidden=16, layers=1, heads=2)
    return rolesafe.patch(made, RoleConfig.preset("channel")) if roles else made


def harm_by_word(texts: list[str]) -> list[float]:
    return [float("red" in text) for text in texts]


@pytest.mark.parametrize("roles", [False, True], ids=["plain", "roles"])
@pytest.mark.parametrize("name", ["augmentation", "constrained", "recovery", "insertion", "dpo", "policy"])
def test_every_training_runs_on_the_trainer(name: str, roles: bool, tmp_path: Path) -> None:
    model, reference = llama(roles), llama(roles).eval().requires_grad_(False)
    collator = RoleCollator(tokenizer=TOKENIZER, config=model.rolesafe_config if roles else CONFIG, with_roles=roles)
    ratio = {"safety_rows": 2, "benign_rows": 2}
    given: Any = (collator, [TRIPLET], BENIGN)
    loss: Any = None
    if name in ("augmentation", "constrained"):
        rows: Any = PrefixAugmentation(*given, **ratio)
        loss = TokenConstrainedLoss(reference) if name == "constrained" else None
    elif name == "recovery":
        rows = RecoveryPrefixes(*given, **ratio)
        loss = RecoveryLoss([TOKENIZER.convert_tokens_to_ids("sorry")], 10.0, 0.9, reference=reference)
    elif name == "insertion":
        rows = SpanInsertion(*given, model=model, **ratio)
    elif name == "dpo":
        rows, loss = PreferenceRows(*given, **ratio), PreferenceLoss(reference)
    else:
        rows = PromptRows(*given, **ratio)
        loss = PolicyGradientLoss(TOKENIZER, harm_by_word, reference=reference, samples=3, max_new_tokens=4)
    trainer = RoleTrainer(
        model, arguments(tmp_path, train_sampling_strategy="sequential"), data_collator=collator,
        train_dataset=rows, loss=loss,
    )  # fmt: skip
    before = {key: value.clone() for key, value in reference.state_dict().items()}
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert len(losses) == 6
    assert all(map(math.isfinite, losses))
    if name != "policy":  # its value is that of other samples each time
        assert losses[-1] < losses[0]
    assert all(torch.equal(value, reference.state_dict()[key]) for key, value in before.items())


def test_accumulated_batches_count_once(tmp_path: Path) -> None:
    """A ReplyLoss is a mean over its batch, so two accumulated batches give the mean of two losses."""
    collator = RoleCollator(tokenizer=TOKENIZER, config=CONFIG, with_roles=False)
    logged = []
    for steps in (1, 2):
        rows = [collator.encode(BENIGN[0])] * 16
        trainer = RoleTrainer(
            llama(False), arguments(tmp_path, gradient_accumulation_steps=steps), data_collator=collator,
            train_dataset=rows, loss=TokenConstrainedLoss(llama(False)),
        )  # fmt: skip
        trainer.train()
        logged.append([entry["loss"] for entry in trainer.state.log_history if "loss" in entry])
    assert logged[0] == pytest.approx(logged[1], rel=1e-4)


def test_with_loss_needs_a_trainer() -> None:
    with pytest.raises(TypeError, match=r"`trainer`: expected a subclass of transformers.Trainer, got <class 'int'>"):
        with_loss(int, TokenConstrainedLoss(table(0)))  # type: ignore[arg-type]


@pytest.mark.parametrize("roles", [False, True], ids=["plain", "roles"])
def test_recovery_runs_on_trl(roles: bool, tmp_path: Path) -> None:
    trl = pytest.importorskip("trl")
    datasets = pytest.importorskip("datasets")
    model, reference = llama(roles), llama(roles).eval().requires_grad_(False)
    collator = RoleCollator(tokenizer=TOKENIZER, config=model.rolesafe_config if roles else CONFIG, with_roles=roles)
    rows = RecoveryPrefixes(collator, [TRIPLET], BENIGN, safety_rows=2, benign_rows=2, plain=0.0)
    # SFTTrainer takes a datasets.Dataset only; the rows that are drawn anew replace it
    first = datasets.Dataset.from_list([collator.encode(BENIGN[0])])
    loss = RecoveryLoss([TOKENIZER.convert_tokens_to_ids("sorry")], 10.0, 0.9, reference=reference)
    config = trl.SFTConfig(
        output_dir=str(tmp_path), per_device_train_batch_size=4, max_steps=4, learning_rate=3e-3, report_to=[],
        disable_tqdm=True, use_cpu=True, bf16=False, save_strategy="no", logging_steps=1, remove_unused_columns=False,
        dataset_kwargs={"skip_prepare_dataset": True},
    )  # fmt: skip
    trainer = with_loss(trl.SFTTrainer, loss)(
        model, config, train_dataset=first, data_collator=collator, processing_class=TOKENIZER
    )
    trainer.train_dataset = rows
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[-1] < losses[0]
