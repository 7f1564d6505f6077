"""Locked parameters: not moved by training, saving, loading, resuming or merging, or an error."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import TrainerCallback, TrainingArguments

import rolesafe
from rolesafe import RoleConfig
from rolesafe.patching import check_lock, lock, unlock
from rolesafe.patching.locked import locked
from rolesafe.tasks import training_conversations, vocabulary
from rolesafe.training import KeepLocked, RoleCollator, RoleTrainer
from rolesafe.training.tiny import tiny_llama, tiny_tokenizer

CONFIG = RoleConfig.preset("channel")
CHOSEN = ("role_layer", "model.layers.0.mlp.down_proj")
DOWN = "model.layers.0.mlp.down_proj.weight"
MOVED = "expected locked parameters at their values, got 1 that moved"


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_tokenizer(vocabulary())


@pytest.fixture(scope="module")
def rows():
    return [{"messages": messages} for messages in training_conversations(16, seed=0)]


def make(size=97):
    return rolesafe.patch(tiny_llama(size, seed=0, hidden=32, layers=2, heads=4), CONFIG)


def trainer(tokenizer, rows, directory, model, **changes):
    arguments = TrainingArguments(
        output_dir=str(directory), per_device_train_batch_size=4, report_to=[], disable_tqdm=True, use_cpu=True,
        **{"max_steps": 2, "learning_rate": 1e-2, "save_steps": 1, **changes},
    )  # fmt: skip
    collator = RoleCollator(tokenizer=tokenizer, config=CONFIG, with_roles=True)
    return RoleTrainer(model, arguments, data_collator=collator, train_dataset=rows, role_learning_rate=0)


class Push(TrainerCallback):
    """Moves a locked parameter after the first step, as a faulty optimizer would."""

    def on_step_end(self, args, state, control, model=None, **kwargs):
        with torch.no_grad():
            model.get_parameter(DOWN)[0, 0] += 1e-3


def test_training_moves_the_others_alone_and_resumes(tokenizer, rows, tmp_path):
    model = make(len(tokenizer))
    names = lock(model, CHOSEN)
    assert DOWN in names
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    one = trainer(tokenizer, rows, tmp_path, model)
    assert any(isinstance(callback, KeepLocked) for callback in one.callback_handler.callbacks)
    one.train()
    still = {name for name, p in model.named_parameters() if torch.equal(before[name], p)}
    assert still == set(names) == set(locked(model))
    again = make(len(tokenizer))
    lock(again, CHOSEN)
    trainer(tokenizer, rows, tmp_path, again, max_steps=3).train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    other = make(len(tokenizer))
    with torch.no_grad():
        other.get_parameter(DOWN).mul_(2)
    lock(other, CHOSEN)
    with pytest.raises(ValueError, match=MOVED):
        trainer(tokenizer, rows, tmp_path, other, max_steps=3).train(
            resume_from_checkpoint=str(tmp_path / "checkpoint-2")
        )


def test_trainer_raises_where_a_step_moves_one(tokenizer, rows, tmp_path):
    model = make(len(tokenizer))
    lock(model, CHOSEN)
    one = trainer(tokenizer, rows, tmp_path, model)
    one.callback_handler.callbacks.insert(0, Push())
    with pytest.raises(ValueError, match=f"{MOVED}: {DOWN}"):
        one.train()
    assert not list(tmp_path.glob("checkpoint-*")), "no checkpoint of a broken lock"


def test_moved_parameter_is_not_saved(tmp_path):
    model = make()
    lock(model, CHOSEN)
    model.get_parameter(DOWN).data.add_(1)
    with pytest.raises(ValueError, match=MOVED):
        model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=MOVED):
        rolesafe.save_role_layer(model, tmp_path, base_model="base")
    unlock(model)
    model.save_pretrained(tmp_path)


def test_lock_is_saved_and_checked_on_loading(tmp_path):
    model = make()
    lock(model, CHOSEN)
    model.save_pretrained(tmp_path)
    loaded = rolesafe.from_pretrained(tmp_path)
    assert locked(loaded) == locked(model)
    assert not any(p.requires_grad for name, p in loaded.named_parameters() if name in locked(model))
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    save_file({**tensors, DOWN: tensors[DOWN] + 1}, file, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=f"{MOVED}: {DOWN}"):
        rolesafe.from_pretrained(tmp_path)
    assert locked(rolesafe.from_pretrained(tmp_path, verify=False)) == locked(model)


def test_lock_goes_with_a_role_layer_alone(tmp_path):
    model = make()
    lock(model, CHOSEN)
    rolesafe.save_role_layer(model, tmp_path, base_model="base")
    base = tiny_llama(97, seed=0, hidden=32, layers=2, heads=4)
    assert locked(rolesafe.from_pretrained(tmp_path, base_model=base)) == locked(model)
    other = tiny_llama(97, seed=1, hidden=32, layers=2, heads=4)
    with pytest.raises(ValueError, match=MOVED):
        rolesafe.from_pretrained(tmp_path, base_model=other)
    about = json.loads((tmp_path / "role_config.json").read_text())
    (tmp_path / "role_config.json").write_text(json.dumps({**about, "locked": 3}))
    with pytest.raises(ValueError, match="expected digests by name in `locked`"):
        rolesafe.from_pretrained(
            tmp_path, base_model=tiny_llama(97, seed=0, hidden=32, layers=2, heads=4), verify=False
        )


def test_adapters_stay_off_locked_parameters(tokenizer, rows, tmp_path):
    peft = pytest.importorskip("peft")

    def adapted(target, **more):
        model = make(len(tokenizer))
        lock(model, CHOSEN)
        return peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=target, task_type="CAUSAL_LM", **more))

    for target, more in ((["down_proj"], {}), (["q_proj"], {"modules_to_save": ["rolesafe_heads"]})):
        with pytest.raises(ValueError, match="expected no adapter on a locked parameter"):
            trainer(tokenizer, rows, tmp_path, adapted(target, **more))
    good = adapted(["q_proj"])
    trainer(tokenizer, rows, tmp_path, good, save_strategy="no").train()
    merged = good.merge_and_unload()
    check_lock(merged)
    merged.save_pretrained(tmp_path / "merged")
    bad = adapted(["down_proj"])
    with torch.no_grad():
        for name, parameter in bad.named_parameters():
            if "lora_B" in name:
                parameter.add_(0.1)
    with pytest.raises(ValueError, match=MOVED):
        bad.merge_and_unload().save_pretrained(tmp_path / "moved")


def test_lock_refuses(tmp_path):
    model = make()
    with pytest.raises(ValueError, match=r"`parameters`: expected 'role_layer', or names .* got 'model.nothing'"):
        lock(model, ["model.nothing"])
    with pytest.raises(ValueError, match="`model`: expected a model patched by rolesafe"):
        lock(tiny_llama(97, seed=0, layers=1))
    with pytest.raises(ValueError, match="`every`: expected a number of steps >= 1"):
        KeepLocked(0)
    lock(model, "role_layer")
    model.model.layers[0].self_attn.rolesafe_heads.bias.data.add_(1)
    with pytest.raises(ValueError, match=MOVED):
        lock(model, ["model.norm"])
    del model.model.layers[0].self_attn.rolesafe_heads.bias
    with pytest.raises(ValueError, match="expected all locked parameters, got none named"):
        check_lock(model)
    assert not hasattr(rolesafe.unpatch(make()).config, "rolesafe_locked")
