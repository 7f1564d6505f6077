"""`RoleTrainer`: learning rates, seeds, checkpoints, bad arguments."""

from __future__ import annotations

import copy

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import TrainingArguments

import rolesafe
from rolesafe import RoleConfig
from rolesafe.tasks import training_conversations, vocabulary
from rolesafe.training import LogRoles, RoleCollator, RoleTrainer
from rolesafe.training.tiny import tiny_llama, tiny_tokenizer

CONFIG = RoleConfig.preset("channel")


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_tokenizer(vocabulary())


@pytest.fixture(scope="module")
def rows():
    return [{"messages": messages} for messages in training_conversations(64, seed=0)]


def trainer(tokenizer, rows, directory, *, patched: bool = True, role_learning_rate=None, **changes) -> RoleTrainer:
    model = tiny_llama(len(tokenizer), seed=0, hidden=32, layers=2, heads=4)
    if patched:
        rolesafe.patch(model, CONFIG)
    arguments = TrainingArguments(
        output_dir=str(directory),
        per_device_train_batch_size=8,
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
        seed=1,
        **{"max_steps": 4, "learning_rate": 1e-3, "save_strategy": "no", **changes},
    )
    collator = RoleCollator(tokenizer=tokenizer, config=CONFIG, with_roles=patched)
    return RoleTrainer(
        model, arguments, data_collator=collator, train_dataset=rows, role_learning_rate=role_learning_rate
    )  # fmt: skip


def test_role_parameters_have_own_rate(tokenizer, rows, tmp_path):
    one = trainer(tokenizer, rows, tmp_path, role_learning_rate=0.5, weight_decay=0.1)
    optimizer = one.create_optimizer()
    own = {id(p) for _, p in rolesafe.named_role_parameters(one.model)}
    groups = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    assert {id(p) for p in one.model.parameters()} == set(groups)
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(groups)
    for parameter, group in groups.items():
        assert group["lr"] == (0.5 if parameter in own else 1e-3)
        if parameter in own:
            assert group["weight_decay"] == 0.0
    assert one.create_optimizer() is optimizer


def test_training_moves_role_and_base_parameters(tokenizer, rows, tmp_path):
    one = trainer(tokenizer, rows, tmp_path)
    before = {name: p.detach().clone() for name, p in one.model.named_parameters()}
    one.train()
    still = [name for name, p in one.model.named_parameters() if torch.equal(before[name], p)]
    assert still == []


def test_same_seed_gives_same_weights(tokenizer, rows, tmp_path):
    results = []
    for _ in range(2):
        one = trainer(tokenizer, rows, tmp_path)
        one.train()
        results.append(one.model.state_dict())
    assert all(torch.equal(results[0][name], results[1][name]) for name in results[0])


def test_resume_equals_uninterrupted(tokenizer, rows, tmp_path):
    whole = trainer(tokenizer, rows, tmp_path / "whole", max_steps=4)
    whole.train()
    broken = trainer(tokenizer, rows, tmp_path / "broken", max_steps=4, save_strategy="steps", save_steps=2)

    class Stop(Exception):
        pass

    from transformers import TrainerCallback

    class StopAt3(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            if state.global_step == 2:
                raise Stop

    broken.add_callback(StopAt3())
    with pytest.raises(Stop):
        broken.train()
    again = trainer(tokenizer, rows, tmp_path / "broken", max_steps=4, save_strategy="steps", save_steps=2)
    again.train(resume_from_checkpoint=True)
    a, b = whole.model.state_dict(), again.model.state_dict()
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)
    loaded = rolesafe.from_pretrained(tmp_path / "broken" / "checkpoint-4")
    assert all(torch.equal(tensor, loaded.state_dict()[name]) for name, tensor in b.items())


def test_plain_model_trains_on_same_batches(tokenizer, rows, tmp_path):
    one = trainer(tokenizer, rows, tmp_path, patched=False)
    before = copy.deepcopy(one.model.state_dict())
    one.train()
    assert any(not torch.equal(before[name], p) for name, p in one.model.state_dict().items())


@pytest.mark.parametrize("patched", [True, False])
def test_collator_without_fitting_roles_raises(tokenizer, rows, tmp_path, patched):
    good = trainer(tokenizer, rows, tmp_path, patched=patched)
    collator = RoleCollator(tokenizer=tokenizer, config=CONFIG, with_roles=not patched)
    with pytest.raises(ValueError, match=rf"`data_collator`: expected with_roles={patched}.*got {not patched}"):
        RoleTrainer(good.model, good.args, data_collator=collator, train_dataset=rows)


def test_rate_without_role_parameters_raises(tokenizer, rows, tmp_path):
    with pytest.raises(ValueError, match="`role_learning_rate`: expected None without trainable role parameters"):
        trainer(tokenizer, rows, tmp_path, patched=False, role_learning_rate=0.1)
    with pytest.raises(ValueError, match="`role_learning_rate`: expected a positive number, got -1"):
        trainer(tokenizer, rows, tmp_path, role_learning_rate=-1)


def test_each_part_of_the_role_layer_has_its_rate(tokenizer, rows, tmp_path):
    config = rolesafe.RoleConfig.preset("added", embedding="layers", bias=True)
    collator = RoleCollator(tokenizer=tokenizer, config=config)
    rates = {"added": 1e-4, "bias": 0.5, "embedding": 1e-2}
    model = rolesafe.patch(tiny_llama(vocab_size=len(tokenizer), seed=0), config)
    arguments = TrainingArguments(
        str(tmp_path), max_steps=2, per_device_train_batch_size=2, report_to=[], use_cpu=True, weight_decay=0.1,
        logging_steps=1, lr_scheduler_type="constant",
    )  # fmt: skip
    options = {"data_collator": collator, "train_dataset": rows}
    one = RoleTrainer(model, arguments, role_learning_rate=rates, callbacks=[LogRoles()], **options)
    one.create_optimizer()
    found = {group["role_part"]: group for group in one.optimizer.param_groups if "role_part" in group}
    assert {part: group["lr"] for part, group in found.items()} == rates
    assert all(group["weight_decay"] == 0 for group in found.values())
    own = {id(p) for _, p in rolesafe.named_role_parameters(model)}
    assert own == {id(p) for group in found.values() for p in group["params"]}
    one.train()
    logged = next(entry for entry in one.state.log_history if "role/learning_rate/bias" in entry)
    assert logged["role/learning_rate/bias"] == 0.5
    for wrong, message in (
        ({"added": 1e-4, "bias": 0.5}, "a rate for each learned part of the model"),
        ({**rates, "share": 0.1}, "a rate for each learned part of the model"),
        ({**rates, "heads": 0.1}, r"some of the parts .* got 'heads'"),
        ({**rates, "bias": -1.0}, "a positive number, got -1.0"),
    ):
        with pytest.raises(ValueError, match=f"`role_learning_rate`: expected {message}"):
            RoleTrainer(model, arguments, role_learning_rate=wrong, **options)


def test_rate_with_frozen_role_parameters_raises(tokenizer, rows, tmp_path):
    good = trainer(tokenizer, rows, tmp_path)
    for _, parameter in rolesafe.named_role_parameters(good.model):
        parameter.requires_grad_(False)
    with pytest.raises(ValueError, match="`role_learning_rate`: expected None without trainable role parameters"):
        RoleTrainer(
            good.model, good.args, data_collator=good.data_collator, train_dataset=rows, role_learning_rate=0.1
        )  # fmt: skip


def test_rate_of_zero_keeps_a_frozen_role_layer(tokenizer, rows, tmp_path):
    good = trainer(tokenizer, rows, tmp_path, max_steps=1)
    for _, parameter in rolesafe.named_role_parameters(good.model):
        parameter.requires_grad_(False)
    options = {"collator": good.data_collator, "train_dataset": rows}
    with pytest.raises(ValueError, match=r"`role_learning_rate`: expected 0 .*frozen"):
        RoleTrainer(good.model, good.args, **options)
    before = {name: p.clone() for name, p in rolesafe.named_role_parameters(good.model)}
    RoleTrainer(good.model, good.args, **options, role_learning_rate=0).train()
    assert all(torch.equal(before[name], p) for name, p in rolesafe.named_role_parameters(good.model))


def test_rate_with_given_optimizer_raises(tokenizer, rows, tmp_path):
    good = trainer(tokenizer, rows, tmp_path)
    optimizer = torch.optim.AdamW(good.model.parameters(), lr=1e-5)
    options = {"collator": good.data_collator, "train_dataset": rows, "optimizers": (optimizer, None)}
    with pytest.raises(ValueError, match=r"`role_learning_rate`: expected None with an optimizer in `optimizers`"):
        RoleTrainer(good.model, good.args, **options, role_learning_rate=0.5)
    RoleTrainer(good.model, good.args, **options)


def test_model_missing_raises(tokenizer, rows, tmp_path):
    good = trainer(tokenizer, rows, tmp_path)
    with pytest.raises(TypeError, match=r"`model`: expected a model, got NoneType. Call `model_init` yourself"):
        RoleTrainer(
            None, good.args, data_collator=good.data_collator, train_dataset=rows, model_init=lambda: good.model
        )


@pytest.mark.parametrize("what", ["role tensors", "configuration", "plain"])
@pytest.mark.parametrize("how", ["resume", "best"])
def test_resume_from_incomplete_checkpoint_raises(tokenizer, rows, tmp_path, how, what):
    one = trainer(tokenizer, rows, tmp_path, max_steps=2, save_strategy="steps", save_steps=2)
    one.train()
    directory = tmp_path / "checkpoint-2"
    if what == "role tensors":
        tensors = load_file(directory / "model.safetensors")
        kept = {name: tensor for name, tensor in tensors.items() if "rolesafe_" not in name}
        save_file(kept, directory / "model.safetensors", metadata={"format": "pt"})
    elif what == "configuration":
        rolesafe.patch(tiny_llama(len(tokenizer), seed=0, hidden=32, layers=2, heads=4), RoleConfig()).save_pretrained(
            directory
        )
    else:
        tiny_llama(len(tokenizer), seed=0, hidden=32, layers=2, heads=4).save_pretrained(directory)
    again = trainer(tokenizer, rows, tmp_path)
    again.state.best_model_checkpoint = str(directory)
    load = {"resume": lambda: again.train(resume_from_checkpoint=str(directory)), "best": again._load_best_model}
    with pytest.raises(ValueError, match="`path`: "):
        load[how]()


def test_collator_with_other_roles_raises(tokenizer, rows, tmp_path):
    good = trainer(tokenizer, rows, tmp_path)
    other = RoleConfig(roles=("user", "assistant", "system", "developer", "tool"))
    with pytest.raises(ValueError, match=r"`data_collator`: expected the model's roles"):
        RoleTrainer(
            good.model, good.args, data_collator=RoleCollator(tokenizer=tokenizer, config=other), train_dataset=rows
        )  # fmt: skip


def test_collator_old_name_warns(tokenizer, rows, tmp_path):
    good = trainer(tokenizer, rows, tmp_path)
    with pytest.warns(DeprecationWarning, match="data_collator"):
        one = RoleTrainer(good.model, good.args, collator=good.data_collator, train_dataset=rows)
    assert one.data_collator is good.data_collator


def test_collator_missing_raises(tokenizer, rows, tmp_path):
    good = trainer(tokenizer, rows, tmp_path)
    with pytest.raises(TypeError, match="`data_collator`: expected a RoleCollator, got None"):
        RoleTrainer(good.model, good.args, train_dataset=rows)
