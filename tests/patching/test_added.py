"""Heads that are added to the layers of a model."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import CompileConfig, PreTrainedModel

import rolesafe
from rolesafe import RoleConfig
from rolesafe.mechanisms import set_strength
from rolesafe.patching.families import FAMILIES
from tests.models import (
    NAMED,
    base_model,
    cached_logits,
    causal_lm_families,
    logits,
    plain,
    random_batch,
    randomise,
    role_model,
    tiny_model,
)

CONFIG = RoleConfig(bias=False, added_heads=2)
FULL = RoleConfig.preset("channel", added_heads=3)
WITHOUT = dict.fromkeys(("phi3", "gpt2", "gpt_neox"), "with the projections")
FIXED = ("olmo2", "opt", "diffllama")
"""Families whose attention is written for one number of heads."""


@pytest.mark.parametrize("family", [f for f in NAMED if f not in WITHOUT and f not in FIXED])
def test_added_heads_at_rest_change_nothing(family: str) -> None:
    base, model = base_model(family), role_model(family, CONFIG, trained=False)
    batch = random_batch()
    with torch.no_grad():
        assert torch.equal(logits(model, batch), logits(base, plain(batch)))
        assert torch.equal(cached_logits(model, batch), cached_logits(base, plain(batch)))
        randomise(model)
        changed = logits(model, batch)
        assert (changed - logits(base, plain(batch))).abs().max() > 1e-3
        torch.testing.assert_close(cached_logits(model, batch), changed, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("family", [*WITHOUT, *FIXED])
def test_added_heads_unfit_family_raises(family: str) -> None:
    model = tiny_model(family)
    before = model.state_dict().keys()
    with pytest.raises(ValueError, match=f"`added_heads`: .*{WITHOUT.get(family, 'any number of heads')}"):
        rolesafe.patch(model, CONFIG)
    assert not rolesafe.patching.is_patched(model)
    assert model.state_dict().keys() == before


@pytest.mark.parametrize("family", sorted(FAMILIES & set(causal_lm_families())))
def test_added_heads_every_family_is_whole_or_refused(family: str) -> None:
    """At rest the patched model is its base; a family that cannot have them says so when it is patched."""
    model, batch = tiny_model(family), random_batch()
    try:
        patched = rolesafe.patch(copy.deepcopy(model), CONFIG)
    except ValueError as error:
        refused = str(error)
    else:
        refused = None
    if refused is not None:
        assert refused.startswith("`added_heads`: ")
        return
    rolesafe.patch(model, RoleConfig(bias=False))
    with torch.no_grad():
        torch.testing.assert_close(logits(patched, batch), logits(model, batch), rtol=0, atol=1e-6)


def test_added_heads_are_copies_of_heads() -> None:
    model = role_model("llama", CONFIG, trained=False)  # 4 heads on 2 groups, of 16
    attention: Any = model.model.layers[0].self_attn
    added = attention.rolesafe_added
    q, k, v = attention.q_proj.weight, attention.k_proj.weight, attention.v_proj.weight
    assert torch.equal(added.q_weight, torch.cat([q[:16], q[32:48]]))
    assert torch.equal(added.k_weight, k)
    assert torch.equal(added.v_weight, v)
    assert not added.o_weight.any()


def test_added_heads_read_privileged_keys_alone() -> None:
    """With integrity, privileged states are those of the privileged tokens alone; added heads do not break it."""
    model = role_model("llama", RoleConfig(bias=False, integrity=True, added_heads=2))
    batch = random_batch(padding=0)
    batch["role_ids"][:] = 2
    batch["role_ids"][:, :6] = 0
    other = {**batch, "input_ids": batch["input_ids"].clone()}
    other["input_ids"][:, 6:] += 1
    with torch.no_grad():
        assert torch.equal(model(**batch).logits[:, :6], model(**other).logits[:, :6])
        # An unprivileged token reads no other unprivileged token through added heads: without base attention it is
        # a function of itself and of the privileged tokens.
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.zero_()
        other["input_ids"] = batch["input_ids"].clone()
        other["input_ids"][:, 6:9] += 1
        assert torch.equal(model(**batch).logits[:, 9:], model(**other).logits[:, 9:])
        other["input_ids"][:, 0] += 1
        assert not torch.equal(model(**batch).logits[:, 9:], model(**other).logits[:, 9:])


def test_added_heads_without_privileged_key_add_nothing() -> None:
    model, base = role_model("llama", CONFIG), base_model("llama")
    batch = random_batch()
    batch["role_ids"][:] = 2
    with torch.no_grad():
        assert torch.equal(logits(model, batch), logits(base, plain(batch)))


@pytest.mark.parametrize("config", [CONFIG, FULL])
def test_added_heads_backends_agree(config: RoleConfig) -> None:
    base = tiny_model("llama", dtype=torch.float64)
    batch = random_batch()
    found = {}
    for impl in ("reference", "sdpa"):
        model = randomise(rolesafe.patch(copy.deepcopy(base), RoleConfig(**{**vars(config), "impl": impl})))
        out = logits(model, batch)
        out.square().sum().backward()
        grads = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        assert any("rolesafe_added.q_weight" in name for name in grads)
        found[impl] = out.detach(), grads
    torch.testing.assert_close(found["sdpa"][0], found["reference"][0], rtol=1e-9, atol=1e-9)
    for name, gradient in found["reference"][1].items():
        torch.testing.assert_close(found["sdpa"][1][name], gradient, rtol=1e-7, atol=1e-7, msg=name)


def test_added_heads_strength_takes_them_in_by_degrees() -> None:
    model, base, batch = role_model("llama", CONFIG), base_model("llama"), random_batch()
    with torch.no_grad():
        set_strength(model, 0.0)
        assert torch.equal(logits(model, batch), logits(base, plain(batch)))
        set_strength(model, 0.5)
        half = logits(model, batch)
        for layer in model.model.layers:
            layer.self_attn.rolesafe_added.o_weight *= 0.5
        set_strength(model, 1.0)
        torch.testing.assert_close(logits(model, batch), half)


@pytest.mark.parametrize("alone", [False, True])
def test_added_heads_saved_and_loaded(alone: bool, tmp_path: Path) -> None:
    model, batch = role_model("qwen2", FULL), random_batch()  # its projections have biases
    base = base_model("qwen2")
    if alone:
        rolesafe.save_role_layer(model, tmp_path, base_model="base")
        loaded = rolesafe.from_pretrained(tmp_path, base_model=base)
    else:
        model.save_pretrained(tmp_path)
        loaded = rolesafe.from_pretrained(tmp_path)
    with torch.no_grad():
        assert torch.equal(logits(loaded, batch), logits(model, batch))


def test_added_heads_unpatched_leave_no_trace() -> None:
    model, base, batch = role_model("llama", FULL), base_model("llama"), random_batch()
    rolesafe.unpatch(model)
    hooks = [name for name, m in model.named_modules() if m._forward_hooks or len(m._forward_pre_hooks) > (not name)]
    assert not hooks
    assert model.state_dict().keys() == base.state_dict().keys()
    with torch.no_grad():
        assert torch.equal(logits(model, plain(batch)), logits(base, plain(batch)))


def test_added_heads_projection_without_its_hook_raises() -> None:
    model, batch = role_model("llama", CONFIG), random_batch()
    with torch.no_grad():
        logits(model, batch)
        model.model.layers[1].self_attn.q_proj._forward_hooks.clear()
        with pytest.raises(RuntimeError, match="4 heads, its role layer 4 and 2 added"):
            model(**batch)


def test_added_heads_copy_of_a_model_has_its_own() -> None:
    model, batch = role_model("llama", CONFIG), random_batch()
    other = copy.deepcopy(model)
    with torch.no_grad():
        before = logits(model, batch)
        assert torch.equal(logits(other, batch), before)
        for layer in other.model.layers:
            layer.self_attn.rolesafe_added.v_weight.zero_()
        assert torch.equal(logits(model, batch), before)
        assert not torch.equal(logits(other, batch), before)


def test_added_heads_under_lora_train_and_merge() -> None:
    peft = pytest.importorskip("peft")
    model, batch = role_model("llama", CONFIG), random_batch()
    with torch.no_grad():
        before = logits(model, batch)
    config = peft.LoraConfig(target_modules=["q_proj", "v_proj"], modules_to_save=rolesafe.patching.role_modules(model))
    wrapped = peft.get_peft_model(model, config)
    assert torch.equal(logits(wrapped, batch), before)
    logits(wrapped, batch).square().sum().backward()
    trained = {name for name, p in wrapped.named_parameters() if p.grad is not None}
    assert any("rolesafe_added" in name and "q_weight" in name for name in trained)
    assert any("q_proj.lora_B" in name for name in trained)
    merged = wrapped.merge_and_unload()
    with torch.no_grad():
        torch.testing.assert_close(logits(merged, batch), before)


@pytest.mark.parametrize("cache", ["dynamic", "static"])
def test_added_heads_generate(cache: str) -> None:
    model, batch = role_model("llama", FULL), random_batch(length=8)
    options: dict[str, Any] = {"max_new_tokens": 5, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    found = model.generate(**batch, **options, cache_implementation=cache)
    assert torch.equal(found, model.generate(**batch, **options, use_cache=False))


def test_added_heads_static_cache_has_one_graph() -> None:
    model, batch = role_model("llama", CONFIG), random_batch(length=8, padding=0)
    options: dict[str, Any] = {"max_new_tokens": 5, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    graphs: list[Any] = []

    def backend(graph: Any, inputs: Any, **kwargs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    compiled = CompileConfig(backend=backend, fullgraph=True, mode=None)
    compiled._compile_all_devices = True
    got = model.generate(**batch, **options, cache_implementation="static", compile_config=compiled)
    assert torch.equal(got, model.generate(**batch, **options))
    assert len(graphs) == 1
    torch._dynamo.reset()


def test_added_heads_gradient_checkpointing_gives_the_same() -> None:
    def gradients(model: PreTrainedModel) -> dict[str, torch.Tensor]:
        model.train()
        model(**random_batch(), use_cache=False).logits.square().mean().backward()
        return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}

    model = role_model("llama", CONFIG)
    other = copy.deepcopy(model)
    other.gradient_checkpointing_enable({"use_reentrant": False})
    found, expected = gradients(other), gradients(model)
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, msg=name)


@pytest.mark.parametrize("wrong", [-1, 1.5, True, "2", float("nan")])
def test_added_heads_wrong_number_raises(wrong: Any) -> None:
    with pytest.raises(ValueError, match="`added_heads`: expected a share of the heads"):
        RoleConfig(added_heads=wrong)


def test_added_heads_more_than_the_layer_has_raises() -> None:
    with pytest.raises(ValueError, match="`added_heads`: expected at most the 4 heads of the model's attention"):
        rolesafe.patch(tiny_model("llama"), RoleConfig(added_heads=5))
    with pytest.raises(ValueError, match="`privileged`: expected at least one role with `added_heads`"):
        RoleConfig(privileged=(), added_heads=1)
