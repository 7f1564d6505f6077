"""The export for vLLM computes the logits of the patched model, in the arithmetic of its DiffKV backends."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

import rolesafe
from rolesafe import RoleConfig
from rolesafe.integrations.vllm import (
    About,
    export,
    key_columns,
    query_columns,
    read_about,
    register,
    split_codes,
    token_codes,
)
from rolesafe.mechanisms import set_strength
from tests.models import base_model, logits, random_batch, randomise, role_model


class Engine:
    """A llama from exported files alone, with a cache of wide keys and plain values and no roles beside it."""

    def __init__(self, directory: Path) -> None:
        self.about = read_about(directory)
        self.weights = load_file(directory / "model.safetensors")
        base = base_model("llama")  # for its rotary positions alone
        self.config, self.rotary = base.config, base.model.rotary_emb
        self.cache: list[tuple[Tensor, Tensor]] = [(torch.empty(0), torch.empty(0))] * self.config.num_hidden_layers
        self.length = 0

    def norm(self, x: Tensor, name: str) -> Tensor:
        scaled = F.rms_norm(x.float(), x.shape[-1:], eps=self.config.rms_norm_eps)  # in fp32, as transformers does
        return self.weights[f"model.{name}.weight"] * scaled.to(x.dtype)

    def step(self, codes: Tensor) -> Tensor:
        """Return the logits (N, V) of new tokens with `codes` (N,)."""
        new, heads, w = len(codes), self.config.num_attention_heads, self.weights
        ids, roles = split_codes(codes, **vars(self.about))
        hidden = w["model.embed_tokens.weight"][ids]
        cos, sin = self.rotary(hidden[None], torch.arange(self.length, self.length + new)[None])
        mask = torch.arange(self.length + new) <= torch.arange(self.length, self.length + new)[:, None]
        for i in range(self.config.num_hidden_layers):
            name = f"model.layers.{i}"
            x = self.norm(hidden, f"layers.{i}.input_layernorm")
            q, k, v = (
                (x @ w[f"{name}.self_attn.{one}_proj.weight"].T).view(1, new, -1, self.config.head_dim).transpose(1, 2)
                for one in "qkv"
            )
            q, k = apply_rotary_pos_emb(q, k, cos.to(x.dtype), sin.to(x.dtype))
            table = w[f"{name}.self_attn.role_table"]
            q = torch.cat([q, query_columns(table, roles).transpose(0, 1)[None]], -1)
            k = torch.cat([k, key_columns(roles, table).expand(1, k.shape[1], -1, -1)], -1)
            if self.length:
                k, v = (torch.cat([old, x], 2) for old, x in zip(self.cache[i], (k, v), strict=True))
            self.cache[i] = (k, v)
            scale = self.config.head_dim**-0.5
            read = F.scaled_dot_product_attention(q, k, v, mask, scale=scale, enable_gqa=heads > k.shape[1])
            hidden = hidden + read[0].transpose(0, 1).flatten(1) @ w[f"{name}.self_attn.o_proj.weight"].T
            x = self.norm(hidden, f"layers.{i}.post_attention_layernorm")
            gate, up = (x @ w[f"{name}.mlp.{one}_proj.weight"].T for one in ("gate", "up"))
            hidden = hidden + (F.silu(gate) * up) @ w[f"{name}.mlp.down_proj.weight"].T
        self.length += new
        return self.norm(hidden, "norm") @ w["lm_head.weight"].T


CONFIGS = {
    "bias": RoleConfig(),
    "one layer": RoleConfig(layers=(1,)),
    "steered": RoleConfig(boost=3.0, steered_heads=((0, 1),)),
}


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
@pytest.mark.parametrize("dtype, close", [(torch.float64, 1e-10), (torch.float32, 1e-5), (torch.bfloat16, 0.05)])
def test_export_equals_model_in_prefill_and_decode(
    tmp_path: Path, config: RoleConfig, dtype: torch.dtype, close: float
) -> None:
    model = randomise(rolesafe.patch(base_model("llama").to(dtype), config))
    about = export(model, tmp_path / "out")
    batch = random_batch(batch=1, padding=0)
    codes = token_codes(batch["input_ids"], batch["role_ids"], **vars(about))[0]
    engine = Engine(tmp_path / "out")
    with torch.no_grad():
        expected = logits(model, batch)
        found = [engine.step(codes[a:b]) for a, b in ((0, 9), (9, 10), (10, 13), (13, 14))]
        torch.testing.assert_close(torch.cat(found), expected, rtol=0, atol=close)
        other = {**batch, "role_ids": (batch["role_ids"] + 1) % 5}
        assert (logits(model, other) - expected).abs().max() > 0.1
    assert engine.cache[0][0].shape[-1] > engine.cache[0][1].shape[-1]  # keys are wider than values


def test_codes_of_generated_tokens_are_their_ids() -> None:
    about = About(vocab=97, roles=5, generated=3)
    ids, roles = torch.arange(97).repeat(5), torch.arange(5).repeat_interleave(97)
    codes = token_codes(ids, roles, **vars(about))
    assert torch.equal(codes[roles == 3], ids[roles == 3])
    assert torch.equal(codes.sort().values, torch.arange(5 * 97))  # one code for each pair
    assert all(torch.equal(*pair) for pair in zip(split_codes(codes, **vars(about)), (ids, roles), strict=True))


@pytest.mark.parametrize(
    "ids, roles, message",
    [
        ([1, 97], [0, 0], r"`input_ids`: expected numbers in \[0, 97\), got 1 to 97"),
        ([1, 2], [0, 5], r"`role_ids`: expected numbers in \[0, 5\), got 0 to 5"),
        ([-1, 2], [0, 0], "`input_ids`"),
        ([1, 2], [0], r"`role_ids`: expected shape \(2,\)"),
    ],
)
def test_codes_of_bad_ids_raise(ids: list[int], roles: list[int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        token_codes(torch.tensor(ids), torch.tensor(roles), vocab=97, roles=5, generated=3)


def test_plain_loader_of_export_raises(tmp_path: Path) -> None:
    export(role_model("llama"), tmp_path)
    with pytest.raises(RuntimeError, match=r"size mismatch|mismatched"):
        AutoModelForCausalLM.from_pretrained(tmp_path)
    about = json.loads((tmp_path / "config.json").read_text())
    assert about["architectures"] == ["RoleAwareLlamaForCausalLM"]
    assert about["vocab_size"] == 5 * 97


@pytest.mark.parametrize(
    "config",
    [RoleConfig(embedding="layers"), RoleConfig(share=0.2), RoleConfig(integrity=True), RoleConfig(dedicated_heads=1),
     RoleConfig(position_gap=8), RoleConfig(rotation=1.0), RoleConfig(added_heads=1), RoleConfig(mass_target=0.2)],
    ids=lambda config: next(f for f in vars(config) if getattr(config, f) != getattr(RoleConfig(), f)),
)  # fmt: skip
def test_export_of_other_parts_raises(tmp_path: Path, config: RoleConfig) -> None:
    with pytest.raises(ValueError, match="`model`: expected a role layer with a bias alone, got `"):
        export(role_model("llama", config), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_export_of_unfit_model_or_folder_raises(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="expected a model patched by rolesafe"):
        export(base_model("llama"), tmp_path)
    with pytest.raises(ValueError, match="`model`: expected a llama, got 'qwen3'"):
        export(role_model("qwen3"), tmp_path)
    model = role_model("llama")
    set_strength(model, 0.5)
    with pytest.raises(ValueError, match=r"`model`: expected strength 1, got 0\.5"):
        export(model, tmp_path)
    set_strength(model, 1.0)
    with torch.no_grad():
        model.model.layers[0].self_attn.rolesafe_heads.bias[0, 0, 0] = -torch.inf
    with pytest.raises(ValueError, match="`bias`: expected finite numbers"):
        export(model, tmp_path)
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(ValueError, match="`directory`: expected an empty folder"):
        export(role_model("llama"), tmp_path)
    with pytest.raises(ValueError, match="`directory`: expected an export for vLLM"):
        read_about(tmp_path)


def test_vllm_generates_as_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In vLLM itself, on a CPU: greedy tokens and their log-probabilities, with a batch and a shared prefix."""
    vllm = pytest.importorskip("vllm")
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    model = randomise(rolesafe.patch(base_model("llama"), RoleConfig()))
    about = export(model, tmp_path / "out")
    register()
    llm = vllm.LLM(
        str(tmp_path / "out"), skip_tokenizer_init=True, enforce_eager=True, dtype="float32", max_model_len=128
    )
    batch = random_batch(padding=0, length=40)
    batch = {name: value[[0, 0, 1]] for name, value in batch.items()}
    batch["role_ids"][1, 5:] = (batch["role_ids"][1, 5:] + 1) % 5  # the tokens of the first row with other roles
    codes = token_codes(batch["input_ids"], batch["role_ids"], **vars(about))
    sampling = vllm.SamplingParams(temperature=0.0, max_tokens=6, ignore_eos=True, detokenize=False, logprobs=0)
    found = llm.generate([{"prompt_token_ids": row.tolist()} for row in codes], sampling)
    for i, request in enumerate(found):
        (reply,) = request.outputs
        tokens = torch.tensor([*batch["input_ids"][i].tolist(), *reply.token_ids])[None]
        roles = F.pad(batch["role_ids"][i : i + 1], (0, 6), value=model.rolesafe_config.generated_id)
        with torch.no_grad():
            expected = model(tokens, role_ids=roles).logits[0, 39:-1].log_softmax(-1)
        assert torch.equal(expected.argmax(-1), torch.tensor(reply.token_ids))
        ours = torch.tensor([step[token].logprob for step, token in zip(reply.logprobs, reply.token_ids, strict=True)])
        torch.testing.assert_close(ours, expected.amax(-1), rtol=0, atol=1e-4)
    assert found[0].outputs[0].token_ids != found[1].outputs[0].token_ids  # roles alone differ
