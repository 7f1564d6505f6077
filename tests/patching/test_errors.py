"""Unfitting models and configurations raise before anything is changed."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

import rolesafe
from rolesafe import RoleConfig
from rolesafe.patching import is_patched
from rolesafe.patching.caches import output_cache
from tests.models import base_model, logits, plain, random_batch, role_model, tiny_model, with_cache

few = pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3_text"])


@pytest.mark.parametrize("thing", [None, "llama", nn.Linear(2, 2), torch.nn.Sequential(nn.Linear(2, 2)), dict])
def test_patch_other_object_raises(thing: Any) -> None:
    with pytest.raises(TypeError, match="`model`: expected a transformers PreTrainedModel"):
        rolesafe.patch(thing, RoleConfig())


def test_patch_wrapped_model_raises_with_hint() -> None:
    with pytest.raises(TypeError, match="Patch the base model before you wrap it"):
        rolesafe.patch(nn.DataParallel(base_model("llama")), RoleConfig())


@pytest.mark.parametrize("config", [None, {}, "channel", {"bias": True}])
def test_patch_without_role_config_raises(config: Any) -> None:
    model = base_model("llama")
    with pytest.raises(TypeError, match="`config`: expected a RoleConfig"):
        rolesafe.patch(model, config)
    assert not is_patched(model)


@pytest.mark.parametrize("family, reason", [("bloom", "BloomAttention"), ("mamba", "Missing"), ("falcon", "Missing")])
def test_family_without_attention_interface_raises(family: str, reason: str) -> None:
    model = tiny_model(family)
    for options in ({}, {"allow_untested": True}):  # that option promises nothing that cannot be kept
        with pytest.raises(ValueError, match=reason):
            rolesafe.patch(model, RoleConfig(), **options)
    assert not is_patched(model)
    assert not hasattr(model.config, "rolesafe")


def test_untested_family_dropping_roles_raises() -> None:
    model = tiny_model("inkling2_text")
    with pytest.raises(ValueError, match=r"not among the \d+ .*Missing: .*allow_untested=True"):
        rolesafe.patch(model, RoleConfig())
    rolesafe.patch(model, RoleConfig(), allow_untested=True)
    with pytest.raises(ValueError, match="did not reach"):
        model(**random_batch())


def test_layer_that_drops_arguments_passes_roles() -> None:
    model, batch = role_model("nemotron"), random_batch(padding=0)
    with torch.no_grad():
        expected = model(**batch, use_cache=False).logits
        compiled = torch.compile(model, fullgraph=True, backend="eager")
        torch.testing.assert_close(compiled(**batch, use_cache=False).logits, expected, rtol=0, atol=1e-5)
    model.train()
    model.model.gradient_checkpointing = True
    found = model(**batch, use_cache=False).logits
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    found.square().mean().backward()  # runs the layers again
    assert all(table.grad.any() for _, table in rolesafe.named_role_parameters(model))

    attention, hidden = model.model.layers[0].self_attn, torch.randn(1, 4, 64)
    with pytest.raises(ValueError, match="`role_ids` did not reach NemotronAttention"):
        attention(hidden, position_embeddings=model.model.rotary_emb(hidden, torch.arange(4)[None]))


@pytest.mark.parametrize("name", ["encoder_hidden_states", "encoder_outputs"])
def test_output_of_encoder_raises(name: str) -> None:
    model, batch = role_model("bart" if name == "encoder_hidden_states" else "whisper"), random_batch()
    with pytest.raises(ValueError, match=r"`encoder_hidden_states`: .*cross-attention has no roles"):
        model(**batch, **{name: torch.randn(2, 5, 64)})


@pytest.mark.parametrize("impl", ["sdpa", "triton"])
@pytest.mark.parametrize("family", ["doge", "inkling_text"])
def test_scores_of_the_model_need_reference(family: str, impl: str) -> None:
    with torch.no_grad():
        auto = logits(role_model(family), random_batch())
        assert torch.equal(logits(role_model(family, RoleConfig(impl="reference")), random_batch()), auto)
        with pytest.raises((ValueError, RuntimeError), match="`impl`: "):
            logits(role_model(family, RoleConfig(impl=impl)), random_batch())


BAD: dict[str, tuple[RoleConfig, str]] = {
    "layer": (RoleConfig(layers=(0, 2)), r"`layers`: expected indices below 2.*got 2"),
    "heads": (RoleConfig(dedicated_heads=5), r"`dedicated_heads`: .*4 heads.*got 5"),
    "integrity in some layers": (RoleConfig(integrity=True, layers=(1,)), "`integrity`"),
    "backend": (RoleConfig(impl="triton"), "`impl`: 'triton' needs the package triton"),
}


@pytest.mark.parametrize("what", BAD)
@few
def test_patch_unfitting_config_changes_nothing(family: str, what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rolesafe.attention.backends.HAS_TRITON", False)
    config, message = BAD[what]
    model, before = base_model(family), base_model(family)
    with pytest.raises((ValueError, RuntimeError), match=message):
        rolesafe.patch(model, config)
    assert not is_patched(model)
    assert type(model) is type(before)
    assert model.config.to_dict() == before.config.to_dict()
    assert model.config._attn_implementation == before.config._attn_implementation
    assert list(model.state_dict()) == list(before.state_dict())
    batch = plain(random_batch())
    with torch.no_grad():
        assert torch.equal(logits(model, batch), logits(before, batch))


@pytest.mark.parametrize("family", ["jamba", "bamba", "qwen3_next", "lfm2_moe"])
def test_integrity_without_attention_in_layer_raises(family: str) -> None:
    model = tiny_model(family)
    with pytest.raises(ValueError, match=r"`integrity`: .* mixes tokens without role-aware attention"):
        rolesafe.patch(model, RoleConfig.preset("channel"))
    assert not is_patched(model)
    rolesafe.patch(model, RoleConfig.preset("channel", integrity=False))


@few
def test_patch_twice_with_other_config_raises(family: str) -> None:
    model = rolesafe.patch(base_model(family), RoleConfig())
    with pytest.raises(ValueError, match=r"`model`: .*another configuration.*rolesafe\.unpatch"):
        rolesafe.patch(model, RoleConfig.preset("channel"))
    assert model.rolesafe_config == RoleConfig()
    rolesafe.patch(rolesafe.unpatch(model), RoleConfig.preset("channel"))
    assert model.rolesafe_config == RoleConfig.preset("channel")


def test_unpatch_plain_model_raises() -> None:
    with pytest.raises(ValueError, match="expected a model patched by rolesafe, got LlamaForCausalLM"):
        rolesafe.unpatch(base_model("llama"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.int64])
@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3_text", "doge"])
def test_4d_mask_not_bool_raises(family: str, dtype: torch.dtype) -> None:
    """The meaning of additive masks or numbers would be a guess."""
    for trained in (False, True):
        model, batch = role_model(family, trained=trained), random_batch()
        batch["attention_mask"] = torch.ones(14, 14).tril().to(dtype).expand(2, 1, 14, 14)
        with pytest.raises(ValueError, match=r"`attention_mask`: .*expected a bool mask \(B, 1, T, S\)"):
            model(**batch)


@pytest.mark.parametrize("config", [RoleConfig(), RoleConfig.preset("channel", share=0.3)], ids=["bias", "channel"])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_4d_bool_mask_equals_padding(family: str, config: RoleConfig) -> None:
    model, batch = role_model(family, config), random_batch()
    real = batch["attention_mask"].bool()
    with torch.no_grad():
        expected = model(**batch).logits
        for mask in (real, batch["attention_mask"].float(), batch["attention_mask"].to(torch.uint8)):
            assert torch.equal(model(**{**batch, "attention_mask": mask}).logits[real], expected[real])
        own = torch.ones(14, 14, dtype=torch.bool).tril() & real[:, None, None, :]
        positions = {"position_ids": torch.arange(14)[None].expand(2, 14)}
        got = model(**{**batch, "attention_mask": own}, **positions).logits
        expected = model(**batch, **positions).logits
    assert torch.equal(got[real], expected[real])


def test_4d_bool_mask_separates_packed_rows() -> None:
    """Two conversations packed into one row do not see each other."""
    model, batch = role_model("llama", RoleConfig.preset("channel", share=0.3)), random_batch(padding=0)
    block = torch.block_diag(torch.ones(6, 6), torch.ones(8, 8)).bool().tril()
    batch["attention_mask"] = block.expand(2, 1, 14, 14)
    other = {name: value.clone() for name, value in batch.items()}
    other["input_ids"][:, :6] = 40
    other["role_ids"][:, :6] = 0
    with torch.no_grad():
        before, after = model(**batch).logits, model(**other).logits
    torch.testing.assert_close(before[:, 6:], after[:, 6:], rtol=0, atol=1e-6)
    assert (before - after)[:, :6].abs().max() > 1e-2


@few
def test_output_attentions_raises(family: str) -> None:
    model, batch = role_model(family), random_batch()
    with pytest.raises(ValueError, match="`output_attentions`"):
        model(**batch, output_attentions=True)
    with pytest.raises(ValueError, match="`output_attentions`"):
        model.generate(**batch, output_attentions=True, return_dict_in_generate=True, max_new_tokens=1)
    with pytest.raises(ValueError, match="output_attentions"):
        model.config.output_attentions = True


@few
def test_changed_head_count_raises(family: str) -> None:
    model = role_model(family)
    next(m for m in model.modules() if hasattr(m, "rolesafe_heads")).rolesafe_heads.heads = 3
    with pytest.raises(RuntimeError, match="has 4 heads, its role layer 3"):
        model(**random_batch())


@few
def test_cache_with_wrong_announced_length_raises(family: str) -> None:
    """A cache class that returns keys of unknown roles."""
    model, batch = role_model(family), random_batch()
    start = {name: value[:, :9] for name, value in batch.items()}
    with torch.no_grad():
        first = model(**start, use_cache=True)
    cache = copy.deepcopy(output_cache(first))
    for layer in cache.layers:
        layer.get_mask_sizes = lambda length: (length + 4, 0)
    with pytest.raises((RuntimeError, ValueError), match="role"):
        model(batch["input_ids"][:, 9:], role_ids=batch["role_ids"], **with_cache(cache))
