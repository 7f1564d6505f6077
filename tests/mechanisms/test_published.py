"""Each published mechanism in whole models, against its maths implemented again on the base model."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.masking_utils import sdpa_mask

import rolesafe
from rolesafe import RoleConfig
from tests.models import base_model, plain, random_batch, role_model

families = pytest.mark.parametrize("family", ["llama", "qwen3", "gemma", "gpt2", "mixtral"])
ROTARY = pytest.mark.parametrize("family", ["llama", "qwen3", "gemma", "mixtral"])
USER, TOOL = 2, 4
"""Ids of the data roles under the default roles."""


def real(output: Any, batch: dict[str, Tensor]) -> Tensor:
    return output.logits[batch["attention_mask"].bool()]


def same(patched: PreTrainedModel, reference: Any, batch: dict[str, Tensor]) -> None:
    """Assert that the logits of `patched` equal those of `reference`, and differ from the base."""
    with torch.no_grad():
        got, base = real(patched(**batch), batch), real(base_model(patched.config.model_type)(**plain(batch)), batch)
    torch.testing.assert_close(got, real(reference, batch), rtol=0, atol=2e-5)
    assert (got - base).abs().max() > 1e-3


def stack(model: PreTrainedModel) -> tuple[Any, Any]:
    """Return decoder layers and final norm, named by hand."""
    inner = model.transformer if hasattr(model, "transformer") else model.model
    return (inner.h, inner.ln_f) if hasattr(inner, "h") else (inner.layers, inner.norm)


@contextmanager
def changed_inputs(changes: list[tuple[Any, Callable[[Tensor], Tensor]]]) -> Iterator[None]:
    """Within the context, change the first input of each module by its function."""
    hooks = [
        module.register_forward_pre_hook(lambda m, a, f=change: (f(a[0]), *a[1:])) for module, change in changes
    ]  # fmt: skip
    yield
    for hook in hooks:
        hook.remove()


def parameters(model: PreTrainedModel, end: str) -> list[Tensor]:
    return [p.detach() for name, p in model.named_parameters() if "rolesafe" in name and name.endswith(end)]


# --------------------------------------------------------------------------------------------------- learned vectors


@families
def test_ise_is_token_plus_segment(family: str) -> None:
    batch, model = random_batch(seed=3), role_model(family, RoleConfig.preset("ise"))
    (segment,) = parameters(model, "weight")
    base = base_model(family)
    with torch.no_grad():
        embeds = base.get_input_embeddings()(batch["input_ids"]) + segment[batch["role_ids"]]
        reference = base(inputs_embeds=embeds, attention_mask=batch["attention_mask"])
    same(model, reference, batch)


@families
def test_air_adds_vectors_before_layers_and_norm(family: str) -> None:
    batch, model = random_batch(seed=3), role_model(family, RoleConfig.preset("air"))
    tables = parameters(model, "weight")
    base = base_model(family)
    layers, norm = stack(base)
    assert len(tables) == len(layers) + 1
    places = [*layers, norm]
    order = [name for name, _ in model.named_parameters() if "rolesafe" in name]
    assert order[-1].endswith("rolesafe_last.weight")
    added = [(m, lambda h, t=t: h + t[batch["role_ids"]]) for m, t in zip(places, tables, strict=True)]
    with torch.no_grad(), changed_inputs(added):
        reference = base(**plain(batch))
    same(model, reference, batch)


@families
def test_vectors_of_data_leave_other_text_unchanged(family: str, tmp_path: Path) -> None:
    model = role_model(family, RoleConfig.preset("air", embedding_roles=("tool",)))
    batch, base = random_batch(seed=3), base_model(family)
    with torch.no_grad():
        own, changed = real(base(**plain(batch)), batch), real(model(**batch), batch)
        batch["role_ids"][batch["role_ids"] == TOOL] = USER
        assert torch.equal(real(model(**batch), batch), own)
        assert (changed - own).abs().max() > 1e-3
        model.save_pretrained(tmp_path)
        batch["role_ids"][:, 3] = TOOL
        loaded = rolesafe.from_pretrained(tmp_path)
        assert loaded.rolesafe_config == model.rolesafe_config
        assert torch.equal(real(loaded(**batch), batch), real(model(**batch), batch))


@families
def test_drip_adds_a_linear_shift_to_data_tokens(family: str) -> None:
    batch, model = random_batch(seed=3), role_model(family, RoleConfig.preset("drip"))
    (weight,), (bias,) = parameters(model, "shift_weight"), parameters(model, "shift_bias")
    base = base_model(family)
    data = ((batch["role_ids"] == USER) | (batch["role_ids"] == TOOL)).unsqueeze(-1)
    with torch.no_grad(), changed_inputs([(stack(base)[0][0], lambda h: h + data * (h @ weight.T + bias))]):
        reference = base(**plain(batch))
    same(model, reference, batch)


# ------------------------------------------------------------------------------------------------------ fixed changes


def rotation_matrix(dim: int, angle: float) -> Tensor:
    """Build the block-diagonal matrix, one entry at a time."""
    matrix = torch.zeros(dim, dim)
    for i in range(0, dim, 2):
        matrix[i, i] = matrix[i + 1, i + 1] = math.cos(angle)
        matrix[i, i + 1], matrix[i + 1, i] = -math.sin(angle), math.sin(angle)
    return matrix


@pytest.mark.parametrize("angle, roles", [(math.pi / 2, None), (0.3, ("tool",))])
@ROTARY
def test_aside_rotates_the_embeddings_of_data_tokens(family: str, angle: float, roles: Any) -> None:
    batch, base = random_batch(seed=3), base_model(family)
    model = role_model(family, RoleConfig.preset("aside", rotation=angle, data_roles=roles))
    data = batch["role_ids"] == TOOL
    if roles is None:
        data = data | (batch["role_ids"] == USER)
    with torch.no_grad():
        embeds = base.get_input_embeddings()(batch["input_ids"])
        turned = embeds @ rotation_matrix(embeds.shape[-1], angle).T
        embeds = torch.where(data.unsqueeze(-1), turned, embeds)
        reference = base(inputs_embeds=embeds, attention_mask=batch["attention_mask"])
    same(model, reference, batch)
    assert not list(parameters(model, ""))


@families
def test_pft_moves_positions_of_other_tokens(family: str) -> None:
    batch, model = random_batch(seed=3), role_model(family, RoleConfig.preset("pft", position_gap=40))
    ordinary = (batch["attention_mask"].cumsum(1) - 1).clamp(min=0)
    positions = ordinary + 40 * (batch["role_ids"] >= 2)
    with torch.no_grad():
        reference = base_model(family)(**plain(batch), position_ids=positions)
    same(model, reference, batch)
    with torch.no_grad():  # the same where the ordinary positions are given
        given = model(**batch, position_ids=ordinary)
    torch.testing.assert_close(real(given, batch), real(reference, batch), rtol=0, atol=2e-5)


# ----------------------------------------------------------------------------------------------------------- steering


@contextmanager
def steered(base: PreTrainedModel, change: Callable[[Tensor, int], Tensor]) -> Iterator[None]:
    """Within the context, pass the eager attention weights (B, H, T, S) of `base` through `change`."""

    def attend(module: Any, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scaling: float, **_: Any) -> Any:
        groups = q.shape[1] // k.shape[1]
        k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
        scores = q @ k.transpose(2, 3) * scaling
        visible = torch.ones(scores.shape[-2:], dtype=torch.bool).tril() if mask is None else mask
        scores = scores.masked_fill(~visible, -1e30)  # rows of padding see nothing; nobody reads them
        weights = change(scores.softmax(-1), module.layer_idx)
        return (weights @ v).transpose(1, 2).contiguous(), None

    AttentionInterface.register("steered_in_test", attend)
    AttentionMaskInterface.register("steered_in_test", sdpa_mask)
    base.config._attn_implementation = "steered_in_test"
    yield


def renormalised(weights: Tensor) -> Tensor:
    return weights / weights.sum(-1, keepdim=True)


def privileged_keys(batch: dict[str, Tensor]) -> Tensor:
    return ((batch["role_ids"] < 2) & batch["attention_mask"].bool())[:, None, None, :]


def check_steering(family: str, config: RoleConfig, change: Callable[[Tensor, int, Tensor], Tensor]) -> None:
    batch, base = random_batch(seed=3), base_model(family)
    keys = privileged_keys(batch)
    with torch.no_grad(), steered(base, lambda w, layer: change(w, layer, keys)):
        reference = base(**plain(batch))
    for impl in ("sdpa", "reference"):
        model = role_model(family, RoleConfig(**{**vars(config), "impl": impl}))
        same(model, reference, batch)
        assert not list(parameters(model, ""))


@families
def test_instaboost_boosts_privileged_keys(family: str) -> None:
    check_steering(
        family, RoleConfig.preset("instaboost", boost=5.0), lambda w, _, keys: renormalised(w * (1 + 4 * keys.float()))
    )


@families
def test_pasta_dampens_other_keys_on_chosen_heads(family: str) -> None:
    config = RoleConfig.preset("pasta", dampen=0.01, steered_heads=((0, 1), (1, 0), (1, 3)))

    def change(weights: Tensor, layer: int, keys: Tensor) -> Tensor:
        chosen = torch.zeros(4, dtype=torch.bool)
        chosen[[1] if layer == 0 else [0, 3]] = True
        damped = renormalised(torch.where(keys, weights, 0.01 * weights))
        return torch.where(chosen[:, None, None], damped, weights)

    check_steering(family, config, change)


@families
def test_spotlight_raises_mass_to_target(family: str) -> None:
    """As published: add log(target / mass) to the scores of the span where its mass is lower, then softmax."""

    def change(weights: Tensor, _: int, keys: Tensor) -> Tensor:
        mass = (weights * keys).sum(-1, keepdim=True)
        factor = torch.where((mass > 0) & (mass < 0.6), 0.6 / mass, 1.0)
        return renormalised(torch.where(keys, weights * factor, weights))

    check_steering(family, RoleConfig.preset("spotlight", mass_target=0.6), change)


def test_steering_adds_to_learned_table() -> None:
    batch = random_batch(seed=3)
    learned = role_model("llama", RoleConfig())
    both = role_model("llama", RoleConfig(boost=4.0, dampen=0.5))
    with torch.no_grad():
        for name, table in learned.named_parameters():
            if name.endswith("rolesafe_heads.bias"):
                table[..., :2] += math.log(4.0)
                table[..., 2:] += math.log(0.5)
        torch.testing.assert_close(real(both(**batch), batch), real(learned(**batch), batch), rtol=0, atol=2e-5)
