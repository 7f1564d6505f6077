"""PEFT: the role layer trains, saves, resumes and loads with its adapter, or raises."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM, TrainingArguments

import rolesafe
from rolesafe import RoleConfig
from rolesafe.mechanisms import set_strength
from rolesafe.patching import role_modules
from rolesafe.tasks import training_conversations, vocabulary
from rolesafe.training import AnnealRoles, RoleCollator, RoleTrainer
from rolesafe.training.tiny import tiny_llama, tiny_tokenizer
from tests.models import base_model, random_batch, randomise, role_model

peft = pytest.importorskip("peft")

CONFIG = RoleConfig.preset("channel", share=0.3)


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_tokenizer(vocabulary())


@pytest.fixture(scope="module")
def rows():
    return [{"messages": messages} for messages in training_conversations(64, seed=0)]


def lora(model, *, roles: bool = True, **changes):
    config = peft.LoraConfig(
        r=2,
        target_modules=["q_proj"],
        task_type="CAUSAL_LM",
        modules_to_save=role_modules(model) if roles else None,
        **changes,
    )
    return peft.get_peft_model(model, config)


def trainer(tokenizer, rows, directory, model=None, *, config=CONFIG, rate=0.1, roles=True, **changes) -> RoleTrainer:
    if model is None:
        tiny = tiny_llama(len(tokenizer), seed=0, hidden=32, layers=2, heads=4)
        model = lora(rolesafe.patch(tiny, config), roles=roles)
    arguments = TrainingArguments(
        output_dir=str(directory),
        per_device_train_batch_size=8,
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
        seed=1,
        **{"max_steps": 4, "learning_rate": 1e-2, "save_steps": 2, **changes},
    )
    collator = RoleCollator(tokenizer=tokenizer, config=config)
    return RoleTrainer(model, arguments, data_collator=collator, train_dataset=rows, role_learning_rate=rate)


def trained(model) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}


def output(model) -> Tensor:
    with torch.no_grad():
        return model.eval()(**random_batch(padding=0)).logits


# ------------------------------------------------------------------------------------------------------------- training


def test_role_layer_trains_and_resumes_with_adapter(tokenizer, rows, tmp_path):
    whole = trainer(tokenizer, rows, tmp_path)
    before = trained(whole.model)
    whole.train()
    after = trained(whole.model)
    moved = [name for name in after if "rolesafe_" in name and not torch.equal(before[name], after[name])]
    assert len(moved) == sum("rolesafe_" in name for name in after) > 0
    saved = load_file(tmp_path / "checkpoint-4" / "adapter_model.safetensors")
    assert {name.replace(".modules_to_save.default.", ".") for name in moved} <= saved.keys()
    again = trainer(tokenizer, rows, tmp_path)
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert all(torch.equal(tensor, after[name]) for name, tensor in trained(again.model).items())


def test_best_model_has_its_role_layer(tokenizer, rows, tmp_path):
    one = trainer(tokenizer, rows, tmp_path, save_steps=1, max_steps=2)
    one.train()
    one.state.best_model_checkpoint = str(tmp_path / "checkpoint-1")
    last = trained(one.model)
    one._load_best_model()
    first = load_file(tmp_path / "checkpoint-1" / "adapter_model.safetensors")
    for name, tensor in trained(one.model).items():
        if "rolesafe_" in name:
            assert torch.equal(tensor, first[name.replace(".modules_to_save.default.", ".")])
            assert not torch.equal(tensor, last[name])


def test_adapter_of_unfinished_schedule_resumes_and_is_named_elsewhere(tokenizer, rows, tmp_path):
    config = RoleConfig(share=0.4, share_floor=0.4)

    def annealed() -> RoleTrainer:
        one = trainer(tokenizer, rows, tmp_path, config=config)
        one.add_callback(AnnealRoles(4))
        return one

    whole = annealed()
    whole.train()
    again = annealed()
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    expected = trained(whole.model)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in trained(again.model).items())
    model = rolesafe.patch(tiny_llama(len(tokenizer), seed=0, hidden=32, layers=2, heads=4), config)
    with pytest.raises(RuntimeError, match=r"saved with strength 0\.502 of 1, where the guarantees.*the model has 1\."):
        peft.PeftModel.from_pretrained(model, tmp_path / "checkpoint-2")
    for checkpoint, strength in (("checkpoint-2", 0.502), ("checkpoint-4", 1.0)):
        model = rolesafe.patch(tiny_llama(len(tokenizer), seed=0, hidden=32, layers=2, heads=4), config)
        set_strength(model, strength)
        peft.PeftModel.from_pretrained(model, tmp_path / checkpoint)


@pytest.mark.parametrize("adapter", [True, False])
def test_best_model_of_unfinished_schedule_raises(tokenizer, rows, tmp_path, adapter):
    config = RoleConfig(share=0.4, share_floor=0.4)
    model = (
        None if adapter else rolesafe.patch(tiny_llama(len(tokenizer), seed=0, hidden=32, layers=2, heads=4), config)
    )
    one = trainer(tokenizer, rows, tmp_path, model, config=config)
    one.add_callback(AnnealRoles(4))
    one.train()
    one.state.best_model_checkpoint = str(tmp_path / "checkpoint-2")
    with pytest.raises((ValueError, RuntimeError), match=r"saved with strength 0\.5\d* of 1, where the guarantees"):
        one._load_best_model()
    one.state.best_model_checkpoint = str(tmp_path / "checkpoint-4")
    one._load_best_model()


@pytest.mark.parametrize("rate", [None, 0.1])
def test_frozen_role_layer_raises(tokenizer, rows, tmp_path, rate):
    with pytest.raises(ValueError, match=r"`role_learning_rate`: "):
        trainer(tokenizer, rows, tmp_path, roles=False, rate=rate)
    trainer(tokenizer, rows, tmp_path, roles=False, rate=0).train()


def test_unfrozen_role_layer_outside_peft_raises(tokenizer, rows, tmp_path):
    model = lora(rolesafe.patch(tiny_llama(len(tokenizer), seed=0, hidden=32, layers=2, heads=4), CONFIG), roles=False)
    for _, parameter in rolesafe.named_role_parameters(model):
        parameter.requires_grad_(True)
    with pytest.raises(ValueError, match=r"`modules_to_save`.*role_modules\(model\)"):
        trainer(tokenizer, rows, tmp_path, model)
    with pytest.raises(ValueError, match="`modules_to_save`"):
        model.save_pretrained(tmp_path)


@pytest.mark.parametrize("how", ["resume", "best"])
def test_adapter_without_role_layer_raises(tokenizer, rows, tmp_path, how):
    plain = trainer(tokenizer, rows, tmp_path / "frozen", roles=False, rate=0, max_steps=2)
    plain.train()
    one = trainer(tokenizer, rows, tmp_path / "other")
    directory = str(tmp_path / "frozen" / "checkpoint-2")
    one.state.best_model_checkpoint = directory
    load = {"resume": lambda: one.train(resume_from_checkpoint=directory), "best": one._load_best_model}
    with pytest.raises(ValueError, match=r"`path`: the adapter in .* holds no .*rolesafe_"):
        load[how]()


def test_constant_share_stays_frozen(tokenizer, rows, tmp_path):
    config = RoleConfig.preset("channel", share=0.3, learn_share=False)
    one = trainer(tokenizer, rows, tmp_path, config=config, weight_decay=0.1)
    one.train()
    shares = [p for name, p in rolesafe.named_role_parameters(one.model) if name.endswith("share")]
    assert shares
    assert all(torch.equal(share, torch.full_like(share, 0.3)) for share in shares)


# -------------------------------------------------------------------------------------------------------- save and load


@pytest.fixture
def saved(tmp_path: Path) -> tuple[Path, Tensor]:
    """Return a saved adapter of a role-aware model, its plain and its role-aware base, and its logits."""
    base_model("llama").save_pretrained(tmp_path / "plain")
    model = randomise(rolesafe.patch(AutoModelForCausalLM.from_pretrained(tmp_path / "plain"), CONFIG))
    model.save_pretrained(tmp_path / "roles")
    wrapped = lora(model, roles=False, init_lora_weights=False)
    wrapped.save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter", output(wrapped)


def test_adapter_loads_on_role_aware_base(saved):
    directory, expected = saved
    base = rolesafe.from_pretrained(directory.parent / "roles")
    assert torch.equal(output(peft.PeftModel.from_pretrained(base, directory)), expected)


def test_adapter_saves_on_sealed_base(saved):
    directory, _ = saved
    wrapped = lora(rolesafe.from_pretrained(directory.parent / "roles"), roles=False, init_lora_weights=False)
    wrapped.save_pretrained(directory.parent / "second")
    base = rolesafe.from_pretrained(directory.parent / "roles")
    assert torch.equal(output(peft.PeftModel.from_pretrained(base, directory.parent / "second")), output(wrapped))


@pytest.mark.parametrize("options", [{}, {"use_dora": True}], ids=["lora", "dora"])
def test_adapter_on_plain_base_raises(saved, options):
    directory, _ = saved
    if options:
        base = rolesafe.from_pretrained(directory.parent / "roles")
        lora(base, roles=False, **options).save_pretrained(directory)
    with pytest.raises(RuntimeError, match="size mismatch"):
        peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(directory.parent / "plain"), directory)
    with pytest.raises((RuntimeError, ValueError), match=r"size mismatch|This checkpoint has a role layer"):
        peft.AutoPeftModelForCausalLM.from_pretrained(directory)
    with pytest.raises((RuntimeError, ValueError)):
        AutoModelForCausalLM.from_pretrained(directory)


def test_adapter_on_other_role_layer_raises(saved):
    directory, _ = saved
    for other in (role_model("llama", CONFIG, trained=False), role_model("llama", RoleConfig())):
        with pytest.raises(RuntimeError, match="trained with another role layer"):
            peft.PeftModel.from_pretrained(other, directory)


def test_adapter_from_pretrained_raises(saved):
    directory, _ = saved
    with pytest.raises(ValueError, match=r"`path`: .*an adapter: load the model it belongs to"):
        rolesafe.from_pretrained(directory)


def test_role_modules_are_learned_parts():
    assert role_modules(role_model("llama", CONFIG)) == ["rolesafe_embedding", "rolesafe_heads"]
    constant = RoleConfig(bias=False, share=0.3, learn_share=False)
    assert role_modules(role_model("llama", constant)) == []
    with pytest.raises(ValueError, match="patched by rolesafe"):
        role_modules(base_model("llama"))
