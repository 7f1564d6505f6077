"""Role layers on a base model from a GGUF file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

import rolesafe
from rolesafe import RoleConfig
from tests.models import random_batch, randomise

gguf = pytest.importorskip("gguf")

FULL = RoleConfig.preset("channel", share=0.25)


@pytest.fixture(scope="module")
def file(tmp_path_factory) -> Path:
    """Return a GGUF file of a tiny llama, with weights quantised to 8 bits."""
    path = tmp_path_factory.mktemp("gguf") / "tiny-q8.gguf"
    writer, random = gguf.GGUFWriter(path, "llama"), np.random.default_rng(0)
    writer.add_block_count(2)
    writer.add_context_length(128)
    writer.add_embedding_length(32)
    writer.add_feed_forward_length(64)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(8)
    writer.add_vocab_size(64)

    def add(name: str, *shape: int) -> None:
        values = (random.standard_normal(shape) / 4 + (len(shape) == 1)).astype(np.float32)
        kind = gguf.GGMLQuantizationType.F32 if len(shape) == 1 else gguf.GGMLQuantizationType.Q8_0
        writer.add_tensor(name, gguf.quants.quantize(values, kind), raw_dtype=kind)

    add("token_embd.weight", 64, 32)
    add("output.weight", 64, 32)
    add("output_norm.weight", 32)
    for i in range(2):
        for name, rows, columns in (
            ("attn_q", 32, 32), ("attn_k", 16, 32), ("attn_v", 16, 32), ("attn_output", 32, 32),
            ("ffn_gate", 64, 32), ("ffn_up", 64, 32), ("ffn_down", 32, 64),
        ):  # fmt: skip
            add(f"blk.{i}.{name}.weight", rows, columns)
        for name in ("attn_norm", "ffn_norm"):
            add(f"blk.{i}.{name}.weight", 32)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_role_layer_on_a_gguf_file_loads_again(file, tmp_path):
    base = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.bfloat16)
    model = randomise(rolesafe.patch(base, FULL)).eval()
    assert {p.dtype for _, p in rolesafe.named_role_parameters(model)} == {torch.float32}
    rolesafe.save_role_layer(model, tmp_path, base_model=str(file))
    loaded = rolesafe.from_pretrained(tmp_path, dtype=torch.bfloat16)
    batch = random_batch()
    batch["input_ids"] = batch["input_ids"] % 64
    with torch.no_grad():
        assert torch.equal(loaded(**batch).logits, model(**batch).logits)
    assert loaded.config.name_or_path == str(file)


@pytest.mark.parametrize(
    "content, fragment",
    [(None, "expected a GGUF file, found none"), (b"GGUF", "does not load as a GGUF file"), (b"x", "does not load")],
)
def test_gguf_file_broken_raises(file, tmp_path, content, fragment):
    base = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name)
    rolesafe.save_role_layer(rolesafe.patch(base, FULL), tmp_path / "roles", base_model=str(file))
    other = tmp_path / "other.gguf"
    if content is not None:
        other.write_bytes(content)
    with pytest.raises(ValueError, match=fragment):
        rolesafe.from_pretrained(tmp_path / "roles", base_model=other)
