"""LoRA, DoRA and QLoRA train, save, load, merge and disable the role layer with the adapter."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import rolesafe
from rolesafe import RoleConfig
from rolesafe.integrations.peft import load_adapter, role_lora_config
from rolesafe.training.tiny import tiny_llama
from tests.models import base_model, plain, random_batch, randomise

peft = pytest.importorskip("peft")

PRESETS = {"channel": RoleConfig.preset("channel", share=0.3), "air": RoleConfig.preset("air")}


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        return model.eval()(**random_batch(padding=0)).logits


def train(model: Any, steps: int = 3) -> Any:
    """Train all trainable parameters; return `model`."""
    batch = random_batch(padding=0)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.05)
    for _ in range(steps):
        optimizer.zero_grad()
        model.train()(**batch, labels=batch["input_ids"]).loss.backward()
        optimizer.step()
    return model


def wrapped(model: Any, **options: Any) -> Any:
    return peft.get_peft_model(model, role_lora_config(model, r=4, target_modules="all-linear", **options))


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return the folders of saved role-aware models."""
    root = tmp_path_factory.mktemp("bases")
    for name, config in PRESETS.items():
        randomise(rolesafe.patch(base_model("llama"), config)).save_pretrained(root / name)
    return {name: root / name for name in PRESETS}


@pytest.mark.parametrize("preset, options", [("channel", {}), ("air", {"use_dora": True})], ids=["lora", "dora"])
def test_adapter_trains_saves_loads_merges_and_disables(
    bases: dict[str, Path], tmp_path: Path, preset: str, options: dict[str, Any]
) -> None:
    base = bases[preset]
    start = logits(rolesafe.from_pretrained(base))
    model = wrapped(rolesafe.from_pretrained(base), **options)
    before = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
    roles = [name for name in before if "rolesafe_" in name]
    assert len(roles) == sum(1 for _ in rolesafe.named_role_parameters(rolesafe.from_pretrained(base)))
    train(model)
    assert all((p - before[n]).abs().max() > 1e-3 for n, p in model.named_parameters() if n in roles)
    expected = logits(model)
    assert (expected - start).abs().max() > 1e-2
    with model.disable_adapter():
        torch.testing.assert_close(logits(model), start, rtol=0, atol=1e-6)
    model.save_pretrained(tmp_path / "adapter")
    assert torch.equal(logits(load_adapter(tmp_path / "adapter")), expected)
    merged = load_adapter(tmp_path / "adapter", base).merge_and_unload()
    torch.testing.assert_close(logits(merged), expected, rtol=0, atol=1e-5)
    merged.save_pretrained(tmp_path / "merged")
    torch.testing.assert_close(logits(rolesafe.from_pretrained(tmp_path / "merged")), expected, rtol=0, atol=1e-5)
    for one in (model, merged):
        with pytest.raises(ValueError, match=r"`role_ids`"):
            one(**plain(random_batch(padding=0)))


def test_adapter_trained_further_continues(bases: dict[str, Path], tmp_path: Path) -> None:
    train(wrapped(rolesafe.from_pretrained(bases["channel"]))).save_pretrained(tmp_path / "adapter")
    again = load_adapter(tmp_path / "adapter", is_trainable=True)
    expected = logits(again)
    trainable = {name for name, p in again.named_parameters() if p.requires_grad}
    assert any("rolesafe_" in name for name in trainable)
    assert (logits(train(again)) - expected).abs().max() > 1e-3


def test_role_layer_is_trained_whole() -> None:
    """Linear layers of added heads get no LoRA matrices."""
    model = rolesafe.patch(base_model("llama"), RoleConfig(added_heads=1, embedding="input"))
    config = role_lora_config(model, target_modules="all-linear", modules_to_save=["lm_head"])
    assert set(config.modules_to_save) == {"lm_head", "rolesafe_added", "rolesafe_embedding", "rolesafe_heads"}
    names = [name for name, _ in peft.get_peft_model(model, config).named_parameters() if "lora_" in name]
    assert names
    assert not any("rolesafe_" in name for name in names)


def test_role_lora_config_of_plain_model_raises() -> None:
    with pytest.raises(ValueError, match="`model`: expected a model patched by rolesafe"):
        role_lora_config(base_model("llama"))


def test_load_adapter_without_role_aware_base_raises(tmp_path: Path) -> None:
    base_model("llama").save_pretrained(tmp_path / "plain")
    model = wrapped(rolesafe.patch(base_model("llama"), PRESETS["air"]))
    model.save_pretrained(tmp_path / "adapter")
    with pytest.raises(ValueError, match=r"`base`: expected a model patched by rolesafe, got LlamaForCausalLM"):
        load_adapter(tmp_path / "adapter", base_model("llama"))
    with pytest.raises(ValueError, match=r"`path`"):
        load_adapter(tmp_path / "adapter", tmp_path / "plain")
    with pytest.raises(ValueError, match=r"`base`: expected a model, got None"):
        load_adapter(tmp_path / "adapter")
    with pytest.raises(ValueError, match=r"`dtype`: expected nothing with a loaded `base`"):
        load_adapter(tmp_path / "adapter", rolesafe.patch(base_model("llama"), PRESETS["air"]), dtype="auto")
    other = rolesafe.patch(base_model("llama"), PRESETS["channel"])
    with pytest.raises(RuntimeError):
        load_adapter(tmp_path / "adapter", other)


def test_auto_peft_names_loader(bases: dict[str, Path], tmp_path: Path) -> None:
    wrapped(rolesafe.from_pretrained(bases["air"])).save_pretrained(tmp_path / "adapter")
    with pytest.raises(ValueError, match=r"This checkpoint has a role layer. Load it with rolesafe.from_pretrained"):
        peft.AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter")


@pytest.mark.parametrize("quant", ["nf4", "int8"])
def test_quantised_base_trains_role_layer_in_fp32(tmp_path: Path, quant: str) -> None:
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    tiny_llama(97, seed=0, layers=2).save_pretrained(tmp_path / "plain")  # sizes that blocks of nf4 divide
    options: dict[str, Any] = (
        {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"} if quant == "nf4" else {"load_in_8bit": True}
    )

    def quantised() -> Any:
        model = AutoModelForCausalLM.from_pretrained(
            tmp_path / "plain", quantization_config=BitsAndBytesConfig(**options), device_map="cpu"
        )
        return peft.prepare_model_for_kbit_training(rolesafe.patch(model, PRESETS["channel"]))

    model = wrapped(quantised())
    assert {p.dtype for _, p in rolesafe.named_role_parameters(model)} == {torch.float32}
    start = logits(model)
    train(model)
    expected = logits(model)
    assert (expected - start).abs().max() > 1e-3
    model.save_pretrained(tmp_path / "adapter")
    assert torch.equal(logits(load_adapter(tmp_path / "adapter", quantised())), expected)
