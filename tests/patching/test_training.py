"""Training: gradients reach every part from the first step, with and without checkpointing."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

import rolesafe
from rolesafe import RoleConfig
from tests.models import NAMED, base_model, plain, random_batch, randomise, role_model, tiny_model

named = pytest.mark.parametrize("family", NAMED)
FULL = RoleConfig.preset("channel", share=0.3)


def loss_of(model: PreTrainedModel, batch: dict[str, Tensor]) -> Tensor:
    """Return the next-token loss without padding, in the model's own precision."""
    real = batch["attention_mask"].bool()
    both = real[:, 1:] & real[:, :-1]
    predicted = model(**batch, use_cache=False).logits[:, :-1][both]
    return torch.nn.functional.cross_entropy(predicted, batch["input_ids"][:, 1:][both])


def gradients(model: PreTrainedModel, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the gradients of the loss by parameter name, without parameters that have none."""
    model.zero_grad()
    loss_of(model, batch).backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("state", ["at rest", "trained"])
@pytest.mark.parametrize("config", [FULL, RoleConfig(), RoleConfig(embedding="layers")], ids=["full", "bias", "air"])
@named
def test_gradients_reach_every_role_parameter(family: str, config: RoleConfig, state: str) -> None:
    model = role_model(family, config, trained=state == "trained").train()
    found = gradients(model, random_batch())
    names = [name for name, _ in rolesafe.named_role_parameters(model)]
    assert names
    for name in names:
        assert name in found, name
        assert torch.isfinite(found[name]).all(), name
        assert found[name].abs().max() > 0, name


@named
def test_first_step_has_base_gradients(family: str) -> None:
    """At rest the base parameters get the gradients of a plain model."""
    batch = random_batch()
    expected = gradients(base_model(family).train(), plain(batch))
    found = gradients(role_model(family, trained=False).train(), batch)
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox", "opt", "starcoder2"])
def test_gradient_at_rest_equals_finite_difference(family: str) -> None:
    """Value and gradient come from two computations at rest; compared with a finite difference, in fp64.

    Families with a LayerNorm: an RMSNorm always computes in fp32.
    """
    model = role_model(family, trained=False).double()
    batch = random_batch()
    found = gradients(model, batch)
    name, parameter = next(iter(rolesafe.named_role_parameters(model)))
    direction = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    losses = []
    for sign in (1, -1):
        with torch.no_grad():
            parameter.copy_(sign * 1e-5 * direction)
            losses.append(loss_of(model, batch))
    slope = (losses[0] - losses[1]) / 2e-5
    torch.testing.assert_close((found[name] * direction).sum(), slope, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("state", ["at rest", "trained"])
@named
def test_gradient_checkpointing_keeps_gradients(family: str, state: str, reentrant: bool) -> None:
    model = role_model(family, FULL, trained=state == "trained").train()
    twin = copy.deepcopy(model)
    # The name of newer releases, and that of the others.
    enable = getattr(twin, "activation_checkpointing_enable", None) or twin.gradient_checkpointing_enable
    enable({"use_reentrant": reentrant})
    batch = random_batch()
    expected, found = gradients(model, batch), gradients(twin, batch)
    assert expected.keys() == found.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_oss"])
def test_training_only_role_layer_lowers_loss(family: str) -> None:
    """Frozen base, a target that depends on the roles alone."""
    model = role_model(family, RoleConfig(embedding="layers"), trained=False).requires_grad_(False).train()
    parameters = [p.requires_grad_() for _, p in rolesafe.named_role_parameters(model)]
    optimizer = torch.optim.Adam(parameters, lr=0.05)
    ids = random_batch(padding=0)["input_ids"]
    ids[1] = ids[0]
    model.get_output_embeddings().weight.data.mul_(20)  # a random one could not be sure of anything
    roles = torch.stack([torch.full((14,), 2), torch.full((14,), 4)])
    target = torch.tensor([5, 6])  # the same tokens, another answer
    losses = []
    for _ in range(30):
        loss = torch.nn.functional.cross_entropy(model(ids, role_ids=roles).logits[:, -1], target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.3  # without roles it stays above log 2


@pytest.mark.parametrize("config", [RoleConfig(), FULL], ids=["bias", "full"])
@pytest.mark.parametrize("state", ["at rest", "trained"])
@pytest.mark.parametrize("family, option", [("llama", "attention_dropout"), ("gpt2", "attn_pdrop")])
def test_attention_dropout_only_in_training(family: str, option: str, state: str, config: RoleConfig) -> None:
    model = rolesafe.patch(tiny_model(family, **{option: 0.5}), config)
    if state == "trained":
        randomise(model)
    batch = random_batch()
    with torch.no_grad():
        assert torch.equal(model.eval()(**batch).logits, model(**batch).logits)
        torch.manual_seed(0)
        assert not torch.equal(model.train()(**batch).logits, model(**batch).logits)
    found = gradients(model, batch)
    assert all(
        torch.isfinite(found[name]).all() and found[name].any() for name, _ in rolesafe.named_role_parameters(model)
    )


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_constant_share_is_not_trained(family: str) -> None:
    model = role_model(family, RoleConfig.preset("channel", share=0.3, learn_share=False), trained=False)
    shares = [p for name, p in rolesafe.named_role_parameters(model) if name.endswith("share")]
    assert shares
    assert not any(p.requires_grad for p in shares)
    found = gradients(model.train(), random_batch())
    assert not any(name.endswith("rolesafe_heads.share") for name in found)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_mixed_precision(family: str) -> None:
    """fp32 parameters under bf16 autocast, as the Trainer runs them."""
    model = randomise(role_model(family, FULL)).train()
    batch = random_batch()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = model(**batch, labels=batch["input_ids"], use_cache=False).loss
    loss.backward()
    for name, p in rolesafe.named_role_parameters(model):
        assert p.grad is not None, name
        assert torch.isfinite(p.grad).all(), name


def test_role_parameters_old_name_warns() -> None:
    model = role_model("llama", FULL)
    with pytest.warns(DeprecationWarning, match="named_role_parameters"):
        found = list(rolesafe.role_parameters(model))
    assert found == list(rolesafe.named_role_parameters(model))


def test_print_trainable_parameters_as_peft_prints_it(capsys: pytest.CaptureFixture[str]) -> None:
    model: Any = role_model("llama", FULL)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("rolesafe_" in name)
    model.print_trainable_parameters()
    roles = sum(p.numel() for _, p in rolesafe.named_role_parameters(model))
    total = sum(p.numel() for p in model.parameters())
    expected = f"trainable params: {roles:,d} || all params: {total:,d} || trainable%: {100 * roles / total:.4f}"
    assert capsys.readouterr().out == f"{expected} || role params: {roles:,d}\n"
