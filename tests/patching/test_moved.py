"""Listed dedicated heads: the same function as without moving heads, saved, loaded, undone, or refused."""

from __future__ import annotations

import copy
import dataclasses
import itertools
from pathlib import Path
from typing import Any

import pytest
import torch

import rolesafe
from rolesafe import RoleConfig
from rolesafe.mechanisms import set_strength
from rolesafe.patching.families import FAMILIES
from rolesafe.patching.moved import MARK, head_order
from tests.models import (
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

PAIRS = ((0, 2), (0, 3), (0, 1), (1, 3))
"""Of 4 heads in 2 groups: the second group and the second head of the first; the last head."""
CONFIG = RoleConfig(bias=False, dedicated_heads=PAIRS)
FULL = RoleConfig.preset("channel", dedicated_heads=PAIRS)
FITS = ("llama", "qwen2", "qwen3", "mistral", "gemma", "gemma2", "gemma3_text", "smollm3", "mixtral")


def privileged_start(**changes: Any) -> dict[str, torch.Tensor]:
    """Return a batch whose first token is privileged, so that every query sees a privileged key."""
    batch = random_batch(padding=0, **changes)
    batch["role_ids"][:, 0] = 0
    return batch


def by_share(family: str, pairs: Any) -> Any:
    """Return a model whose heads `pairs` read privileged keys only because of a share of 1, in their own places."""
    model = role_model(family, RoleConfig(bias=False, share=1.0, learn_share=False), trained=False)
    with torch.no_grad():
        for i, layer in enumerate(model.model.layers):
            share = layer.self_attn.rolesafe_heads.share
            share.copy_(torch.tensor([float((i, head) in pairs) for head in range(4)]))
    return model


@pytest.mark.parametrize("family", FITS)
def test_listed_heads_are_dedicated_and_all_else_is_kept(family: str) -> None:
    expected, model, base = by_share(family, PAIRS), role_model(family, CONFIG), base_model(family)
    batch = privileged_start()
    with torch.no_grad():
        want = logits(expected, batch)
        torch.testing.assert_close(logits(model, batch), want, rtol=1e-4, atol=2e-5)
        torch.testing.assert_close(cached_logits(model, batch), want, rtol=1e-4, atol=2e-5)
        own = logits(base, plain(batch))
        assert (want - own).abs().max() > 1e-3
        set_strength(model, 0.0)
        torch.testing.assert_close(logits(model, batch), own, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("impl", ["reference", "sdpa"])
def test_listed_heads_never_see_other_keys(impl: str) -> None:
    """A change of unprivileged text moves no output of a listed head, in the places of the base."""
    config = dataclasses.replace(CONFIG, impl=impl)  # type: ignore[arg-type]
    model = role_model("llama", config)
    outputs: list[torch.Tensor] = []
    first = model.model.layers[0].self_attn.o_proj
    first.register_forward_pre_hook(lambda module, args: outputs.append(args[0].unflatten(-1, (4, 16))))
    batch = privileged_start()
    batch["role_ids"][:] = 2
    batch["role_ids"][:, :3] = 0
    with torch.no_grad():
        model(**batch, use_cache=False)
        batch["input_ids"][:, 5:9] = 3
        model(**batch, use_cache=False)
    same = (outputs[0] == outputs[1])[:, 9:].all(dim=-1).all(dim=1).all(dim=0)
    assert same.tolist() == [True, True, True, False]  # at the front after the move


def test_first_heads_listed_move_nothing() -> None:
    base, model = base_model("llama"), role_model("llama", RoleConfig(bias=False, dedicated_heads=((0, 0), (0, 1))))
    for (name, p), q in zip(base.named_parameters(), model.parameters(), strict=True):
        assert torch.equal(p, q), name


@pytest.mark.parametrize("family", sorted(FAMILIES & set(causal_lm_families())))
def test_every_family_moves_heads_or_refuses(family: str) -> None:
    model, batch = tiny_model(family), random_batch()
    before = copy.deepcopy(model)
    config = RoleConfig(bias=False, dedicated_heads=((1, 3),))
    try:
        rolesafe.patch(model, config)
    except ValueError as error:
        refused = str(error)
    else:
        refused = None
    if refused is not None:
        assert refused.startswith("`dedicated_heads`: ")
        assert all(torch.equal(p, q) for p, q in zip(before.parameters(), model.parameters(), strict=True))
        return
    rolesafe.patch(before, RoleConfig(bias=False))
    set_strength(model, 0.0)
    with torch.no_grad():
        torch.testing.assert_close(logits(model, batch), logits(before, batch), rtol=1e-4, atol=5e-5)


def test_head_order_exists_where_at_most_one_group_is_divided() -> None:
    for groups in (1, 2, 3, 6):
        each = 6 // groups
        for count in range(7):
            for listed in itertools.combinations(range(6), count):
                divided = sum(0 < len([h for h in listed if h // each == g]) < each for g in range(groups))
                order = head_order(6, groups, listed)
                assert (order is None) == (divided > 1)
                if order is None:
                    continue
                assert sorted(order[:count]) == list(listed)
                assert sorted(order) == list(range(6))
                blocks = [[h // each for h in order[i : i + each]] for i in range(0, 6, each)]
                assert all(len(set(block)) == 1 for block in blocks)


# ----------------------------------------------------------------------------------------------------------- ways out


def test_unpatch_returns_heads() -> None:
    base, model = base_model("llama"), role_model("llama", FULL)
    assert any(not torch.equal(p, model.get_parameter(name)) for name, p in base.named_parameters())
    rolesafe.unpatch(model)
    assert all(torch.equal(p, model.get_parameter(name)) for name, p in base.named_parameters())
    assert not hasattr(model.config, MARK)
    batch = plain(random_batch())
    with torch.no_grad():
        assert torch.equal(logits(model, batch), logits(base, batch))


@pytest.mark.parametrize("alone", [False, True], ids=["whole model", "role layer alone"])
def test_moved_heads_are_saved_and_loaded(tmp_path: Path, alone: bool) -> None:
    """Twice, so that no load moves heads again."""
    model, batch = role_model("llama", FULL), random_batch()
    source: dict[str, Any] = {}
    for step in ("a", "b"):
        if alone:
            rolesafe.save_role_layer(model, tmp_path / step, base_model="somewhere")
            source = {"base_model": base_model("llama")}
        else:
            model.save_pretrained(tmp_path / step)
        loaded = rolesafe.from_pretrained(tmp_path / step, **source)
        assert loaded.rolesafe_config == FULL
        with torch.no_grad():
            assert torch.equal(logits(loaded, batch), logits(model, batch))
        model = loaded
    rolesafe.unpatch(model)
    base = base_model("llama")
    assert all(torch.equal(p, model.get_parameter(name)) for name, p in base.named_parameters())


def test_adapter_on_moved_heads(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    lora = peft.LoraConfig(r=2, target_modules=["q_proj", "o_proj"], task_type="CAUSAL_LM", init_lora_weights=False)
    model, batch = peft.get_peft_model(role_model("llama", CONFIG), lora), random_batch()
    model.save_pretrained(tmp_path)
    again = peft.PeftModel.from_pretrained(role_model("llama", CONFIG), tmp_path).eval()
    with torch.no_grad():
        assert torch.equal(again(**batch).logits, model.eval()(**batch).logits)
    other = role_model("llama", RoleConfig(bias=False, dedicated_heads=((0, 0),)))
    with pytest.raises(RuntimeError, match="trained with another role layer"):
        peft.PeftModel.from_pretrained(other, tmp_path)
    with pytest.raises(ValueError, match=r"return listed dedicated heads .* Merge or remove adapters"):
        rolesafe.unpatch(model.base_model.model)
    merged = model.merge_and_unload()
    rolesafe.unpatch(merged)


def test_moved_heads_train_with_gradient_checkpointing() -> None:
    model = role_model("llama", FULL).train()
    twin = copy.deepcopy(model)
    (getattr(twin, "activation_checkpointing_enable", None) or twin.gradient_checkpointing_enable)(
        {"use_reentrant": False}
    )
    batch = random_batch()
    for one in (model, twin):
        one(**batch, labels=batch["input_ids"], use_cache=False).loss.backward()
    for (name, p), q in zip(model.named_parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-5, atol=1e-7, msg=lambda m, n=name: f"{n}: {m}")


def test_count_parameters_with_listed_heads() -> None:
    config = RoleConfig(share=0.3, dedicated_heads=((0, 0), (0, 1), (0, 2), (0, 3)))
    model = role_model("llama", config)
    learned = sum(p.numel() for _, p in rolesafe.named_role_parameters(model))
    assert learned == config.count_parameters(layers=2, hidden=64, heads=4) == 2 * 4 * 25 + 4


# -------------------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("family", "pairs", "message"),
    [
        ("llama", ((2, 0),), r"expected a layer below 2, got the pair \(2, 0\)"),
        ("llama", ((0, 4),), r"expected a head below 4 in layer 0, got the pair \(0, 4\)"),
        ("llama", ((0, 0), (0, 2)), r"expected whole groups of 2 heads .* got the heads \(0, 2\) of 4"),
        ("gpt2", ((0, 1),), "expected an attention with the linear projections"),
        ("olmo2", ((0, 1),), "no other parameter by head"),
        ("gpt_oss", ((0, 1),), "no other parameter by head"),
        ("jamba", ((0, 1),), r"expected an attention layer, got the pair \(0, 1\)"),
    ],
)
def test_unfit_list_raises_and_changes_nothing(family: str, pairs: Any, message: str) -> None:
    model = tiny_model(family)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=f"`dedicated_heads`: .*{message}"):
        rolesafe.patch(model, RoleConfig(bias=False, dedicated_heads=pairs))
    assert not rolesafe.patching.is_patched(model)
    assert before.keys() == model.state_dict().keys()
    assert all(torch.equal(x, before[name]) for name, x in model.state_dict().items())


def test_weights_outside_memory_raise() -> None:
    with torch.device("meta"):
        model = tiny_model("llama")
    with pytest.raises(ValueError, match=r"`dedicated_heads`: .* in memory"):
        rolesafe.patch(model, RoleConfig(bias=False, dedicated_heads=((0, 3),)))


def test_lists_compare_and_become_tuples() -> None:
    config = RoleConfig(dedicated_heads=[[0, 3], [1, 2]])  # type: ignore[arg-type]
    assert config.dedicated_heads == ((0, 3), (1, 2))
    assert RoleConfig.from_dict(config.to_dict()) == config
    assert (config.listed_heads(0), config.listed_heads(5)) == ((3,), ())
    assert (config.count_dedicated(4, 0), config.count_dedicated(4, 5)) == (1, 0)
    model = randomise(role_model("llama", RoleConfig(dedicated_heads=((0, 3),))))
    assert [layer.self_attn.rolesafe_heads.dedicated for layer in model.model.layers] == [1, 0]
