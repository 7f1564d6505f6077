"""A reserved share that rises from zero to a floor: start, middle, guarantee, saved strength, training."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import rolesafe
import rolesafe.patching.attention
from rolesafe import RoleConfig
from rolesafe.attention import Problem
from rolesafe.attention.reference import reference_channels
from rolesafe.mechanisms import set_strength
from tests.models import base_model, logits, plain, random_batch, role_model

FLOOR = 0.4
ALONE = RoleConfig(bias=False, share=FLOOR, share_floor=FLOOR)
BIASED = RoleConfig(share=FLOOR, share_floor=FLOOR)
BOTH = pytest.mark.parametrize("config", [ALONE, BIASED], ids=["alone", "with bias"])


def shares(model: Any) -> list[Tensor]:
    return [p for name, p in rolesafe.named_role_parameters(model) if name.endswith("share")]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[Problem]:
    """Record the problems that reach a backend."""
    found: list[Problem] = []
    real = rolesafe.patching.attention.run

    def record(problem: Problem, impl: str, *rest: Any) -> Tensor:
        found.append(problem)
        return real(problem, impl, *rest)

    monkeypatch.setattr(rolesafe.patching.attention, "run", record)
    return found


@BOTH
@pytest.mark.parametrize("family", ["llama", "qwen3", "gpt2", "mixtral"])
def test_share_at_strength_0_is_base_without_role_call(family: str, config: RoleConfig, calls: list[Problem]) -> None:
    base, model, batch = base_model(family), role_model(family, config), random_batch()
    set_strength(model, 0.0)
    with torch.no_grad():
        assert torch.equal(logits(model, batch), logits(base, plain(batch)))
    assert not calls


@pytest.mark.parametrize("family", ["llama", "gpt_oss", "gemma2"])
def test_share_alone_between_is_one_call_and_the_mixture(family: str, calls: list[Problem]) -> None:
    """A strength of 0.5 is a share of half the size: the mixture of both outputs in one call."""
    model, batch = role_model(family, ALONE), random_batch()
    half = copy.deepcopy(model)
    with torch.no_grad():
        for share in shares(half):
            share.copy_(share.clamp(FLOOR, 1) * 0.5)
        for module in half.modules():
            if hasattr(module, "share_floor"):
                module.share_floor = 0.0
        expected = logits(half, batch)
        set_strength(model, 0.5)
        calls.clear()
        got = logits(model, batch)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-6)
    assert len(calls) == 2  # one a layer
    for problem in calls:
        assert problem.share is not None
        assert problem.share.min() >= 0.5 * FLOOR


@BOTH
def test_share_floor_holds_whatever_training_left(config: RoleConfig, calls: list[Problem]) -> None:
    """Attention mass on privileged keys of every row, for shares far below the floor."""
    model, batch = role_model("llama", config), random_batch(padding=0)
    with torch.no_grad():
        for share in shares(model):
            share.copy_(torch.tensor([-3.0, 0.0, 0.39, 0.8]))
        model(**batch, use_cache=False)
    assert len(calls) == 2
    for problem in calls:
        mass = reference_channels(dataclasses.replace(problem, mask=None))[1]
        privileged = problem.roles.privileged_keys[:, None, None, :]
        sees = (privileged & torch.ones(14, 14, dtype=torch.bool).tril()).any(-1)
        on_privileged = (mass * privileged).sum(-1)
        assert (on_privileged >= FLOOR * sees - 1e-6).all()
        assert (on_privileged[:, 3] >= 0.8 * sees[:, 0] - 1e-6).all()


@BOTH
def test_share_gets_gradient_above_strength_0(config: RoleConfig) -> None:
    model, batch = role_model("llama", config, trained=False).train(), random_batch()
    with torch.no_grad():
        for share in shares(model):
            share.fill_(0.6)
    for strength, learns in ((0.0, False), (1e-3, True), (0.5, True), (1.0, True)):
        model.zero_grad()
        set_strength(model, strength)
        model(**batch, labels=batch["input_ids"], use_cache=False).loss.backward()
        assert all((share.grad is not None and bool(share.grad.any())) == learns for share in shares(model))


@pytest.mark.parametrize("alone", [False, True], ids=["whole model", "role layer alone"])
def test_unfinished_schedule_is_named_on_loading(tmp_path: Path, alone: bool) -> None:
    model = role_model("llama", BIASED)
    set_strength(model, 0.5)
    if alone:
        rolesafe.save_role_layer(model, tmp_path, base_model="somewhere")
        source: dict[str, Any] = {"base_model": base_model("llama")}
    else:
        model.save_pretrained(tmp_path)
        source = {}
    with pytest.raises(ValueError, match=r"strength 0.5 of 1, .* \(its reserved share has reached 0\.2 of 0\.4\)"):
        rolesafe.from_pretrained(tmp_path, **source)
    loaded = rolesafe.from_pretrained(tmp_path, strength=1.0, **source)
    assert loaded.rolesafe_config.share_floor == FLOOR
    set_strength(model, 1.0)
    with torch.no_grad():
        assert torch.equal(logits(loaded, random_batch()), logits(model, random_batch()))


def test_checkpoint_with_other_floor_is_refused(tmp_path: Path) -> None:
    model = role_model("llama", BIASED)
    model.save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    file.write_text(file.read_text().replace('"share_floor": 0.4', '"share_floor": 0.0'))
    with pytest.raises(ValueError, match=r"config\.json in .* differs from its digest"):
        rolesafe.from_pretrained(tmp_path)


@BOTH
def test_share_floor_trains_with_gradient_checkpointing(config: RoleConfig) -> None:
    model = role_model("llama", config).train()
    twin = copy.deepcopy(model)
    (getattr(twin, "activation_checkpointing_enable", None) or twin.gradient_checkpointing_enable)(
        {"use_reentrant": False}
    )
    batch = random_batch()
    for one in (model, twin):
        set_strength(one, 0.5)
        one(**batch, labels=batch["input_ids"], use_cache=False).loss.backward()
    for (name, p), q in zip(model.named_parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-5, atol=1e-7, msg=lambda m, n=name: f"{n}: {m}")
