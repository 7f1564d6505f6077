"""Strength: the base at 0, the role layer at 1, mixtures between; saved and loaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import rolesafe
from rolesafe import RoleConfig
from rolesafe.attention.reference import reference_channels
from rolesafe.mechanisms import get_strength, set_strength
from rolesafe.patching.observe import observing
from tests.models import base_model, cached_logits, logits, plain, random_batch, role_model

EVERYTHING = RoleConfig.preset(
    "separate", embedding="all", share=0.3, rotation=1.0, shift=True, position_gap=10, boost=3.0, dampen=0.1,
    mass_target=0.4,
)  # fmt: skip
NAMES = ("llama", "qwen3", "gemma2", "gpt2", "mixtral", "gpt_oss")
FAMILIES = pytest.mark.parametrize("family", NAMES)


@pytest.mark.parametrize(
    ("family", "attn"),
    # of Gemma 2 and gpt-oss transformers has no sdpa: caps on the scores, sinks
    [(family, "eager") for family in NAMES] + [(f, "sdpa") for f in NAMES if f not in ("gemma2", "gpt_oss")],
)
def test_strength_0_equals_base_bit_exact(family: str, attn: str) -> None:
    """Logits of one pass, of cached chunks, and generation, with all parts."""
    base, model, batch = base_model(family, attn), role_model(family, EVERYTHING, attn=attn), random_batch()
    with torch.no_grad():
        trained = logits(model, batch)
        set_strength(model, 0.0)
        assert torch.equal(logits(model, batch), logits(base, plain(batch)))
        assert torch.equal(cached_logits(model, batch), cached_logits(base, plain(batch)))
        options = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
        assert torch.equal(model.generate(**batch, **options), base.generate(**plain(batch), **options))
        set_strength(model, 1.0)
        assert torch.equal(logits(model, batch), trained)
        assert not torch.allclose(trained, logits(base, plain(batch)), atol=1e-2)


@FAMILIES
def test_strength_is_continuous_at_both_ends(family: str) -> None:
    """A step of 1e-4 changes the logits by that order, also with dedicated heads, -inf and integrity."""
    config = RoleConfig.preset(
        "channel", embedding="all", share=0.3, rotation=1.0, shift=True, boost=3.0, dampen=0.1, mass_target=0.4
    )
    model, batch = role_model(family, config), random_batch()
    with torch.no_grad():
        for name, table in rolesafe.named_role_parameters(model):
            if name.endswith("rolesafe_heads.bias"):
                table[0, 2, 0] = -torch.inf
            elif not name.endswith("share"):
                table *= 0.1
        found = {}
        for strength in (0.0, 1e-4, 0.5, 1 - 1e-4, 1.0):
            set_strength(model, strength)
            found[strength] = logits(model, batch)
            assert torch.isfinite(found[strength]).all()
    whole = (found[1.0] - found[0.0]).abs().max()
    assert whole > 0.01
    for near, end in ((1e-4, 0.0), (1 - 1e-4, 1.0)):
        assert (found[near] - found[end]).abs().max() < 0.01 * whole
    for end in (0.0, 1.0):
        assert (found[0.5] - found[end]).abs().max() > 0.1 * whole


@pytest.mark.parametrize("strength", [0.25, 0.9])
def test_strength_mixes_attention_weights(strength: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """In one layer: output = mixture of the plain and the role-aware attention weights, times the values."""
    model, batch = role_model("llama", RoleConfig.preset("channel", share=0.3)), random_batch(padding=0)
    problems: dict[int, Any] = {}
    with torch.no_grad(), observing(model, lambda module, problem: problems.setdefault(module.layer_idx, problem)):
        model(**batch)
    set_strength(model, strength)
    outputs: list[Tensor] = []
    first = model.model.layers[0].self_attn
    hook = first.o_proj.register_forward_pre_hook(lambda m, a: outputs.append(a[0]))
    embedding: nn.Module = model.model.layers[0].rolesafe_embedding
    embedding.strength = 1.0  # type: ignore[assignment]  # the same input of the layer as above
    with torch.no_grad(), pytest.raises(RuntimeError, match="one strength of all parts"):  # raised after the layers
        model(**batch)
    hook.remove()
    p = problems[0]
    plain_mass, role_mass = reference_channels(p.without_roles())[1], reference_channels(p)[1]
    mass = (1 - strength) * plain_mass + strength * role_mass
    expected = (mass @ p.v.repeat_interleave(2, dim=1)).transpose(1, 2).flatten(2)
    torch.testing.assert_close(outputs[0], expected, rtol=0, atol=1e-5)
    # what a dedicated head keeps of plain attention, and what a share is at least
    privileged = p.roles.privileged_keys[:, None, None, :]
    unprivileged_mass = (mass * ~privileged).sum(-1)[:, : p.dedicated]
    torch.testing.assert_close(
        unprivileged_mass, (1 - strength) * (plain_mass * ~privileged).sum(-1)[:, : p.dedicated], rtol=0, atol=1e-6
    )
    sees = (privileged & torch.ones(14, 14, dtype=torch.bool).tril()).any(-1)
    assert ((mass * privileged).sum(-1) >= strength * p.share[None, :, None] * sees - 1e-6)[:, p.dedicated :].all()


def test_strength_gradients_equal_finite_differences() -> None:
    # gpt2 computes all of it in double precision, where llama has norms and rotations in single
    model, batch = role_model("gpt2", EVERYTHING).double(), random_batch()
    set_strength(model, 0.6)
    weights = torch.randn(97, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def value() -> Tensor:
        return (logits(model, batch) @ weights).sum()

    value().backward()
    make = torch.Generator().manual_seed(1)
    for name, parameter in rolesafe.named_role_parameters(model):
        assert parameter.grad is not None, name
        direction = torch.randn(parameter.shape, generator=make, dtype=torch.float64)
        with torch.no_grad():
            parameter += 1e-6 * direction
            above = value()
            parameter -= 2e-6 * direction
            below = value()
            parameter += 1e-6 * direction
        expected = ((above - below) / 2e-6).item()
        assert (parameter.grad * direction).sum().item() == pytest.approx(expected, rel=1e-4, abs=1e-5), name


# --------------------------------------------------------------------------------------------------------- it is kept


@pytest.mark.parametrize("alone", [False, True], ids=["whole model", "role layer alone"])
@pytest.mark.parametrize("strength", [0.0, 0.37, 1.0])
def test_strength_is_saved_and_loaded(tmp_path: Path, strength: float, alone: bool) -> None:
    model, batch = role_model("llama", EVERYTHING), random_batch()
    set_strength(model, strength)
    if alone:
        rolesafe.save_role_layer(model, tmp_path, base_model="somewhere")
        source = {"base_model": base_model("llama")}
    else:
        model.save_pretrained(tmp_path)
        source = {}
    if strength < 1:
        with pytest.raises(ValueError, match=rf"`strength`: .* saved with strength {strength} of 1"):
            rolesafe.from_pretrained(tmp_path, **source)
    loaded = rolesafe.from_pretrained(tmp_path, strength=strength if strength < 1 else None, **source)
    assert get_strength(loaded) == strength
    with torch.no_grad():
        assert torch.equal(logits(loaded, batch), logits(model, batch))


@pytest.mark.parametrize("value", [None, 2, "1", True])
def test_checkpoint_without_strength_raises(tmp_path: Path, value: object) -> None:
    role_model("llama").save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    about = json.loads(path.read_text())
    path.write_text(json.dumps({**about, "strength": value}))
    with pytest.raises(ValueError, match=r"`path`: expected `strength`, a number in \[0, 1\]"):
        rolesafe.from_pretrained(tmp_path)


def test_checkpoint_format_1_loads_at_full_strength(tmp_path: Path) -> None:
    model = role_model("llama", RoleConfig.preset("channel"))
    model.save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    about = json.loads(path.read_text())
    del about["strength"]
    new = ("rotation", "shift", "data_roles", "position_gap", "own_positions", "boost", "dampen", "steered_heads")
    about["format_version"] = about["rolesafe"]["format_version"] = 1
    about["rolesafe"] = {k: v for k, v in about["rolesafe"].items() if k not in (*new, "mass_target")}
    path.write_text(json.dumps(about))
    with pytest.raises(ValueError, match=r"rolesafe_seal.json.*verify=False"):
        rolesafe.from_pretrained(tmp_path)
    loaded = rolesafe.from_pretrained(tmp_path, verify=False)
    assert get_strength(loaded) == 1.0
    assert loaded.rolesafe_config == model.rolesafe_config


def test_unpatch_forgets_strength() -> None:
    base, batch = base_model("llama"), random_batch()
    model = role_model("llama", EVERYTHING)
    set_strength(model, 0.5)
    rolesafe.unpatch(model)
    with torch.no_grad():
        assert torch.equal(logits(model, plain(batch)), logits(base, plain(batch)))
    assert get_strength(rolesafe.patch(model, RoleConfig())) == 1.0


# ------------------------------------------------------------------------------------------------------------- errors


def test_wrong_arguments_raise() -> None:
    model = role_model("llama")
    for bad in (-0.1, 1.1, float("nan"), True, "1", None):
        with pytest.raises(ValueError, match=r"`strength`: expected a number in \[0, 1\], got"):
            set_strength(model, bad)
    for thing in (base_model("llama"), "model"):
        with pytest.raises(ValueError, match="`model`: expected a model patched by rolesafe"):
            set_strength(thing, 0.5)
        with pytest.raises(ValueError, match="`model`: expected a model patched by rolesafe"):
            get_strength(thing)


def test_strength_works_through_wrapper() -> None:
    model = role_model("llama")
    set_strength(nn.Sequential(model), 0.25)
    assert get_strength(model) == 0.25


def test_observing_below_full_strength_raises() -> None:
    model = role_model("llama")
    set_strength(model, 0.5)
    with pytest.raises(ValueError, match=r"full strength, got 0.5"), observing(model, print):
        pass
