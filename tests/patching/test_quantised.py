"""Role layers on quantised bases: fp32 parameters on the device, generation, saving alone and loading."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, TorchAoConfig

import rolesafe
from rolesafe import RoleConfig
from rolesafe.training.tiny import tiny_llama
from tests.models import randomise

FULL = RoleConfig.preset("channel", share=0.25)


def quantisation(kind: str) -> Any:
    if kind == "torchao int8":
        return TorchAoConfig(pytest.importorskip("torchao.quantization").Int8WeightOnlyConfig())
    pytest.importorskip("bitsandbytes")
    if kind == "bitsandbytes int8":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")


@pytest.mark.parametrize("kind", ["torchao int8", "bitsandbytes int8", "bitsandbytes nf4"])
def test_role_layer_on_quantised_base(kind: str, tmp_path: Path) -> None:
    options = {"quantization_config": quantisation(kind), "dtype": torch.bfloat16, "device_map": "cpu"}
    tiny_llama(vocab_size=64, seed=0, layers=2).save_pretrained(tmp_path / "base")
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base", **options)
    model = randomise(rolesafe.patch(base, FULL)).eval()
    assert {(p.dtype, p.device.type) for _, p in rolesafe.named_role_parameters(model)} == {(torch.float32, "cpu")}
    ids = torch.randint(3, 64, (2, 7), generator=torch.Generator().manual_seed(0))
    roles = torch.tensor([[0, 0, 2, 2, 4, 3, 3]] * 2)
    out = model.generate(ids, attention_mask=torch.ones_like(ids), role_ids=roles, max_new_tokens=4, do_sample=False)
    assert out.shape[0] == 2
    assert out.shape[1] > 7
    rolesafe.save_role_layer(model, tmp_path / "roles", base_model=str(tmp_path / "base"))
    loaded = rolesafe.from_pretrained(tmp_path / "roles", **options)
    with torch.no_grad():
        assert torch.equal(loaded(ids, role_ids=roles).logits, model(ids, role_ids=roles).logits)
        assert not torch.equal(loaded(ids, role_ids=roles * 0).logits, model(ids, role_ids=roles).logits)
