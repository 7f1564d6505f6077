"""Every named family: equality at rest, effect of roles, unpatching."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

import rolesafe
from rolesafe import RoleConfig
from rolesafe.patching import is_patched
from rolesafe.patching.caches import output_cache
from rolesafe.patching.guards import accept_roles
from tests.models import EAGER_ONLY, NAMED, base_model, logits, plain, random_batch, randomise, role_model, with_cache

named = pytest.mark.parametrize("family", NAMED)
BASES = [(f, a) for f in NAMED for a in ("sdpa", "eager") if a == "eager" or f not in EAGER_ONLY]


def rotate(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the same tokens with every role changed."""
    return {**batch, "role_ids": (batch["role_ids"] + 1) % 5}


@pytest.mark.parametrize("padding", [0, 3])
@pytest.mark.parametrize("family, attn", BASES)
def test_patch_at_rest_logits_equal_base_bit_exact(family: str, attn: str, padding: int) -> None:
    base, model = base_model(family, attn), role_model(family, attn=attn, trained=False)
    batch = random_batch(padding=padding)
    with torch.no_grad():
        assert torch.equal(logits(model, batch), logits(base, plain(batch)))
    # With gradients the bias table needs a path of its own, which must not move the value either.
    assert torch.equal(logits(model, batch), logits(base, plain(batch)))


@pytest.mark.parametrize("family, attn", BASES)
def test_patch_at_rest_token_by_token_equals_base(family: str, attn: str) -> None:
    base, model = base_model(family, attn), role_model(family, attn=attn, trained=False)
    batch = random_batch(padding=0)
    ids, roles = batch["input_ids"], batch["role_ids"]
    with torch.no_grad():
        assert torch.equal(model(ids, role_ids=roles).logits, base(ids).logits)
        ours = model(ids[:, :12], role_ids=roles[:, :12], use_cache=True)
        theirs = base(ids[:, :12], use_cache=True)
        for i in (12, 13):
            new = ids[:, i : i + 1]
            ours = model(new, role_ids=roles[:, : i + 1], **with_cache(output_cache(ours)))
            theirs = base(new, **with_cache(output_cache(theirs)))
            assert torch.equal(ours.logits, theirs.logits)


@named
def test_parts_at_rest_equal_base(family: str) -> None:
    config = RoleConfig(embedding="layers", bias=True)
    batch = random_batch()
    with torch.no_grad():
        assert torch.equal(
            logits(role_model(family, config, trained=False), batch), logits(base_model(family), plain(batch))
        )


@named
def test_roles_change_output_only_when_trained(family: str) -> None:
    batch = random_batch()
    with torch.no_grad():
        resting = role_model(family, trained=False)
        assert torch.equal(logits(resting, batch), logits(resting, rotate(batch)))
        model = randomise(resting)
        assert (logits(model, batch) - logits(model, rotate(batch))).abs().max() > 1e-3


@pytest.mark.parametrize(
    "config",
    [
        RoleConfig(bias=False, embedding="input"),
        RoleConfig(bias=False, embedding="layers"),
        RoleConfig(bias=True),
        RoleConfig(bias=False, share=0.5),
        RoleConfig(bias=False, dedicated_heads=0.5),
        RoleConfig(bias=False, dedicated_heads=4),
        RoleConfig(bias=False, integrity=True),
        RoleConfig(layers=(1,)),
    ],
    ids=["input", "layers", "bias", "share", "dedicated", "all_dedicated", "integrity", "one_layer"],
)
@pytest.mark.parametrize("family", ["llama", "gemma3_text", "gpt2", "gpt_oss"])
def test_each_part_changes_output(family: str, config: RoleConfig) -> None:
    batch = random_batch()
    model = role_model(family, config)
    with torch.no_grad():
        difference = (logits(model, batch) - logits(model, rotate(batch))).abs().max()
    assert difference > 1e-4


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_backends_agree_inside_a_model(family: str) -> None:
    batch = random_batch()
    outputs = []
    for impl in ("reference", "sdpa"):
        with torch.no_grad():
            model = role_model(family, RoleConfig.preset("channel", share=0.3, impl=impl))
            outputs.append(logits(model.double(), batch))
    torch.testing.assert_close(*outputs, rtol=0, atol=1e-10)


@pytest.mark.parametrize("family, attn", BASES)
def test_unpatch_restores_class_output_and_config(family: str, attn: str) -> None:
    base = base_model(family, attn)
    model = copy.deepcopy(base)
    rolesafe.patch(model, RoleConfig.preset("channel", share=0.3))
    randomise(model)
    assert model.config._attn_implementation == "rolesafe"
    returned = rolesafe.unpatch(model)
    assert returned is model
    assert type(model) is type(base)
    assert not is_patched(model)
    assert model.config.to_dict() == base.config.to_dict()
    assert [m.config._attn_implementation for m in model.modules() if isinstance(m, PreTrainedModel)] == [
        m.config._attn_implementation for m in base.modules() if isinstance(m, PreTrainedModel)
    ]
    assert list(model.state_dict()) == list(base.state_dict())
    assert set(model.__dict__) == set(base.__dict__)
    accept_roles(model)  # the one hook that stays: roles that are given now raise
    assert [len(m._forward_pre_hooks) for m in model.modules()] == [len(m._forward_pre_hooks) for m in base.modules()]
    batch = plain(random_batch())
    with torch.no_grad():
        assert torch.equal(logits(model, batch), logits(base, batch))


@named
def test_patch_returns_model_and_is_idempotent(family: str) -> None:
    model = base_model(family)
    config = RoleConfig.preset("channel")
    assert rolesafe.patch(model, config) is model
    randomise(model)
    before = {name: p.clone() for name, p in rolesafe.named_role_parameters(model)}
    assert rolesafe.patch(model, RoleConfig.preset("channel")) is model
    after = dict(rolesafe.named_role_parameters(model))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert sum(len(m._forward_pre_hooks) for m in model.modules()) == 3  # one per layer, one where the tokens enter


@named
def test_patched_class_has_role_ids_in_signature(family: str) -> None:
    base, model = base_model(family), role_model(family)
    assert isinstance(model, type(base))
    assert type(model).__name__ == f"RoleAware{type(base).__name__}"
    assert "role_ids" in model.forward.__signature__.parameters
    assert type(role_model(family)) is type(model)


@named
def test_role_parameters_are_ordinary_parameters(family: str) -> None:
    model = role_model(family, RoleConfig.preset("channel", share=0.3), trained=False)
    ours = dict(rolesafe.named_role_parameters(model))
    everything = dict(model.named_parameters())
    assert all(everything[name] is p for name, p in ours.items())
    assert len(ours) == 2 * 3  # per layer: embedding, bias, share
    base = set(dict(base_model(family).named_parameters()))
    assert base == set(everything) - set(ours)


@named
def test_deepcopy_is_independent(family: str) -> None:
    batch = random_batch()
    model = role_model(family, RoleConfig.preset("channel", share=0.3))
    twin = copy.deepcopy(model)
    with torch.no_grad():
        expected = logits(model, batch)
        assert torch.equal(logits(twin, batch), expected)
        randomise(twin, seed=7)
        assert not torch.equal(logits(twin, batch), expected)
        assert torch.equal(logits(model, batch), expected)
        rolesafe.unpatch(twin)
        assert torch.equal(logits(model, batch), expected)
        with pytest.raises(ValueError, match="role_ids"):
            model(**plain(batch))


@pytest.mark.parametrize("family", ["llama", "gemma3_text", "gpt2"])
def test_models_sharing_config_stay_independent(family: str) -> None:
    config = base_model(family).config
    first, second = (AutoModelForCausalLM.from_config(config).eval() for _ in range(2))
    second.config = first.config  # from_config copies it; two models of one user's code may share one
    batch = random_batch()
    with torch.no_grad():
        expected = logits(second, plain(batch))
        before = second.config.to_dict()
        rolesafe.patch(first, RoleConfig.preset("channel"))
        assert second.config.to_dict() == before
        assert second.config._attn_implementation == "sdpa"
        assert torch.equal(logits(second, plain(batch)), expected)
        logits(first, batch)


@named
def test_bfloat16(family: str) -> None:
    batch = random_batch()
    base = base_model(family).to(torch.bfloat16)
    model = rolesafe.patch(copy.deepcopy(base), RoleConfig())
    assert {p.dtype for _, p in rolesafe.named_role_parameters(model)} == {torch.float32}
    with torch.no_grad():
        resting, expected = logits(model, batch), logits(base, plain(batch))
        if family == "gpt_oss":  # its base subtracts the largest score in bf16, which rounds; the role layer does not
            torch.testing.assert_close(resting, expected, rtol=0.02, atol=0.02)
        else:
            assert torch.equal(resting, expected)
        randomise(model)
        low = logits(model, batch).float()
        assert torch.isfinite(low).all()
        # As near to its own fp32 self as the rounding of a bf16 model goes.
        exact = logits(model.float(), batch)
        assert (low - exact).abs().max() < 0.1 * exact.abs().max().clamp(min=1)
        assert (low - logits(rolesafe.unpatch(model), plain(batch))).abs().max() > 1e-3
