"""Whole models: integrity of the privileged channel, reserved share, equality with caches."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

import rolesafe.attention.sdpa
import rolesafe.patching.attention
from rolesafe import RoleConfig
from rolesafe.attention import Problem
from rolesafe.attention.reference import reference_channels
from rolesafe.patching.caches import output_cache
from tests.models import MIXTURES, NAMED, VOCAB, cached_logits, logits, random_batch, role_model, with_cache

named = pytest.mark.parametrize("family", NAMED)
FULL = RoleConfig.preset("channel", share=0.3)

# Which tokens are privileged: in front of the others as usual, or with the others in between.
FRONT = [0, 0, 1, 0, 1, 0, 2, 3, 2, 4, 3, 2, 2, 3]
BETWEEN = [0, 2, 1, 2, 3, 4, 0, 2, 3, 2, 1, 1, 2, 0]
LAYOUTS = pytest.mark.parametrize("layout", [FRONT, BETWEEN], ids=["front", "between"])


def conversation(layout: list[int], seed: int = 0, padding: int = 0) -> dict[str, Tensor]:
    batch = random_batch(seed, padding=padding)
    return {**batch, "role_ids": torch.tensor([layout, layout])}


def edited(batch: dict[str, Tensor], seed: int) -> dict[str, Tensor]:
    """Replace every unprivileged token by another one, and its role by another unprivileged role."""
    generator = torch.Generator().manual_seed(seed)
    ids, roles = batch["input_ids"], batch["role_ids"]
    other_ids = (ids - 3 + torch.randint(1, VOCAB - 3, ids.shape, generator=generator)) % (VOCAB - 3) + 3
    other_roles = torch.randint(2, 5, roles.shape, generator=generator)
    free = roles >= 2
    return {
        **batch,
        "input_ids": torch.where(free, other_ids, ids),
        "role_ids": torch.where(free, other_roles, roles),
    }


def states(model: PreTrainedModel, batch: dict[str, Tensor]) -> list[Tensor]:
    """Return the hidden states (B, T, d) after the embedding and every layer, then the logits."""
    output = model(**batch, output_hidden_states=True, use_cache=False)
    return [*output.hidden_states, output.logits]


@LAYOUTS
@named
def test_integrity_keeps_privileged_channel(family: str, layout: list[int]) -> None:
    model = role_model(family, FULL)
    batch = conversation(layout)
    privileged = batch["role_ids"] < 2
    with torch.no_grad():
        before = states(model, batch)
        for seed in range(3):
            after = states(model, edited(batch, seed))
            assert not torch.equal(before[-1][~privileged], after[-1][~privileged])
            for x, y in zip(before, after, strict=True):
                if family in MIXTURES:  # experts work on the tokens that chose them, so rounding depends on the rest
                    torch.testing.assert_close(x[privileged], y[privileged], rtol=0, atol=1e-5)
                else:
                    assert torch.equal(x[privileged], y[privileged])


@named
def test_privileged_states_change_without_integrity(family: str) -> None:
    model = role_model(family, RoleConfig.preset("channel", share=0.3, integrity=False))
    batch = conversation(BETWEEN)
    privileged = batch["role_ids"] < 2
    with torch.no_grad():
        before, after = states(model, batch)[-1], states(model, edited(batch, 0))[-1]
    assert (before - after)[privileged].abs().max() > 2e-5


@pytest.mark.parametrize("family", ["llama", "gemma3_text", "gpt2", "phi3", "cohere2"])
def test_privileged_channel_is_equal_through_cache(family: str) -> None:
    """As in prefix caching: keep the keys and values of the system prompt for any text after it."""
    model = role_model(family, FULL)
    batch = conversation(FRONT)
    ids, roles = batch["input_ids"][:1], batch["role_ids"][:1]
    with torch.no_grad():
        whole = model(ids, role_ids=roles).logits
        first = model(ids[:, :6], role_ids=roles[:, :6], use_cache=True)
        torch.testing.assert_close(first.logits, whole[:, :6], rtol=0, atol=1e-5)
        rest = model(ids[:, 6:], role_ids=roles, **with_cache(output_cache(first)))
        torch.testing.assert_close(rest.logits, whole[:, 6:], rtol=0, atol=1e-5)


@LAYOUTS
@named
def test_privileged_mass_is_at_least_share(family: str, layout: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """In every layer, head and row, computed from the attention problems of the model."""
    problems: list[tuple[Problem, Tensor, str]] = []
    real = rolesafe.patching.attention.run

    def record(problem: Problem, impl: str, *rest: Any) -> Tensor:
        output = real(problem, impl, *rest)
        problems.append((problem, output, impl))
        return output

    monkeypatch.setattr(rolesafe.patching.attention, "run", record)
    model = role_model(family, FULL)
    with torch.no_grad():
        model(**conversation(layout, padding=3), use_cache=False)
    assert len(problems) == 2
    for problem, output, impl in problems:
        # With one-hot values the backend's output is the mass it gives to every key: (B, H, T, S).
        b, g, s, _ = problem.k.shape
        mass = real(dataclasses.replace(problem, v=torch.eye(s).expand(b, g, s, s)), impl)
        v = problem.v.repeat_interleave(mass.shape[1] // g, dim=1)
        real_rows = torch.ones(b, 1, 14, 1) if problem.mask is None else problem.mask.any(-1, keepdim=True)
        torch.testing.assert_close(output * real_rows, mass @ v * real_rows, rtol=0, atol=1e-5)
        torch.testing.assert_close(mass * real_rows, reference_channels(problem)[1] * real_rows, rtol=0, atol=1e-5)
        privileged = problem.roles.privileged_keys[:, None, None, :]
        visible = torch.ones(14, 14, dtype=torch.bool).tril()
        if problem.mask is not None:
            visible = visible & problem.mask
        sees = (visible & privileged).any(-1)  # (B, 1 | H, T)
        on_privileged = (mass * privileged).sum(-1)
        share = problem.share
        assert share is not None
        floor = torch.where(torch.arange(share.numel()) < problem.dedicated, 1.0, share)[None, :, None] * sees
        assert (on_privileged >= floor - 1e-5).all()
        dedicated = mass[:, : problem.dedicated]
        assert not dedicated.masked_select(~privileged.expand_as(dedicated)).any()


@pytest.mark.parametrize("length, chunks", [(14, (9, 1, 1, 3)), (30, (9, 1, 1, 3, 1, 1, 12, 1, 1))])
@named
def test_cached_equals_uncached(family: str, length: int, chunks: tuple[int, ...]) -> None:
    """Left padding, random roles, longer than the sliding window of 8, in small and large chunks."""
    model = role_model(family, FULL)
    batch = random_batch(length=length)
    with torch.no_grad():
        torch.testing.assert_close(cached_logits(model, batch, chunks), logits(model, batch), rtol=0, atol=2e-5)


@named
def test_cached_equals_uncached_with_position_ids(family: str) -> None:
    model = role_model(family, FULL)
    batch = random_batch(seed=3)
    batch["position_ids"] = (batch["attention_mask"].cumsum(1) - 1).clamp(min=0)
    with torch.no_grad():
        torch.testing.assert_close(cached_logits(model, batch), logits(model, batch), rtol=0, atol=2e-5)


@named
def test_static_cache_generates_as_without_cache(family: str) -> None:
    model = role_model(family, FULL)
    batch = random_batch(length=11)
    options = {"max_new_tokens": 12, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    expected = model.generate(**batch, use_cache=False, **options)
    assert expected.shape == (2, 23)
    for implementation in ("static", "dynamic"):
        got = model.generate(**batch, cache_implementation=implementation, **options)
        assert torch.equal(got, expected), implementation


@named
def test_padding_content_does_not_matter(family: str) -> None:
    """Padded tokens get other ids and other roles, privileged ones too."""
    model = role_model(family, FULL)
    batch = random_batch()
    other = {name: value.clone() for name, value in batch.items()}
    other["input_ids"][0, :3] = 50
    other["role_ids"][0, :3] = (other["role_ids"][0, :3] + 2) % 5
    with torch.no_grad():
        before, after = logits(model, batch), logits(model, other)
    if family in MIXTURES:
        torch.testing.assert_close(before, after, rtol=0, atol=1e-5)
    else:
        assert torch.equal(before, after)


@pytest.mark.parametrize("preset", ["channel", "ise"], ids=["two channels", "plain attention"])
def test_layers_share_one_float_mask(preset: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch would convert the bool mask in every call, with the same result."""
    monkeypatch.setattr(rolesafe.attention.sdpa, "FEW", 0)
    # as for windows and packed rows, whose masks are not causal order and padding
    monkeypatch.setattr(rolesafe.patching.attention, "padding_of", lambda mask: None)
    model = role_model("llama", RoleConfig.preset(preset))
    batch = conversation(BETWEEN, padding=3)
    masks: list[Tensor | None] = []
    attend = torch.nn.functional.scaled_dot_product_attention

    def watched(q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None = None, *args: object, **kwargs: object):
        masks.append(attn_mask)
        return attend(q, k, v, attn_mask, *args, **kwargs)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", watched)
    with torch.no_grad():
        shared = model(**batch).logits
        assert len(masks) >= model.config.num_hidden_layers > 1
        assert all(mask is not None and mask.dtype == torch.float32 for mask in masks)
        assert len({id(mask) for mask in masks}) == (2 if preset == "channel" else 1)
        masks.clear()
        for module in (rolesafe.attention.sdpa, rolesafe.patching.attention):
            monkeypatch.setattr(module, "added", lambda roles, mask, dtype: mask)
        each = model(**batch).logits
    assert all(mask is not None and mask.dtype == torch.bool for mask in masks)
    assert torch.equal(shared, each)
