"""Every causal language model of the installed transformers passes, or `patch` raises with the reason."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch
import transformers
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel

import rolesafe
from benchmarks import families as record
from rolesafe import RoleConfig
from rolesafe.patching import is_patched
from rolesafe.patching.families import CHOOSES_KEYS, FAMILIES, MIXES_OUTSIDE_ATTENTION, STREAMS
from tests.models import cached_logits, causal_lm_families, logits, plain, random_batch, randomise, tiny_model
from tests.patching.test_channel import BETWEEN, conversation, edited

INSTALLED = causal_lm_families()
KNOWN = sorted(FAMILIES & set(INSTALLED))
UNKNOWN = sorted(set(INSTALLED) - FAMILIES)

LARGEST = 20_000_000
"""Parameters above which a family is not built: some take hundreds of GB whatever their configuration says."""

INEXACT = {"granite_swa": 1e-6, "granitemoe_swa": 1e-6}
"""How far from the base at rest: their base computes sinks in another order."""

MIXES_IN_OTHER_LAYERS = frozenset(
    ("bailing_hybrid", "bamba", "granitemoehybrid", "jamba", "kimi_linear", "lara_mini", "lfm2_moe", "minimax",
     "nemotron_h", "olmo_hybrid", "qwen3_5_moe_text", "qwen3_5_text", "qwen3_next", "zamba", "zamba2")
)  # fmt: skip
"""Families that have layers without attention here."""

NO_INTEGRITY = MIXES_IN_OTHER_LAYERS | MIXES_OUTSIDE_ATTENTION | CHOOSES_KEYS

UNBUILT = {
    "gemma3n": "its images need another package",
    "gemma4_assistant": "no inputs per layer",
    "gemma4_unified_assistant": "it reads the keys of another model",
    "gpt_neo": "its layers are a list of its own form",
    "mamba2": "the sizes of its heads are tied to the hidden size",
    "musicgen": "a decoder of an audio model",
    "musicgen_melody": "a decoder of an audio model",
    "qwen4_exp": "sizes of its own",
    "reformer": "factors of its positions are tied to the hidden size",
    "xlnet": "the size of its heads has another name",
}
"""What the generic configuration cannot build, and why. No family that `patch` takes is among them."""

pytestmark = pytest.mark.filterwarnings("ignore")


def build_on_meta(family: str) -> PreTrainedModel:
    with torch.device("meta"):
        return tiny_model(family)


def test_families_number_at_least_125() -> None:
    assert len(KNOWN) >= 125


def test_families_record_is_up_to_date() -> None:
    """The record holds what `patch` does in the transformers that it was made with."""
    saved = json.loads(record.RESULTS.read_text(encoding="utf-8"))
    if saved["transformers"] != transformers.__version__:
        pytest.skip(f"recorded with transformers {saved['transformers']}")
    assert saved == record.record()
    assert [kind for kind, result in saved["families"].items() if result == record.PASSES] == KNOWN


def with_positions(model: PreTrainedModel, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return `batch` with positions counted from the first token, for families with positions."""
    if "position_ids" not in model.forward.__signature__.parameters:
        return batch
    return {**batch, "position_ids": (batch["attention_mask"].cumsum(1) - 1).clamp(min=0)}


CACHE_ERRORS: dict[str, float] = {}


def cache_error(family: str, base: PreTrainedModel, batch: dict[str, Tensor]) -> float:
    """Return how far chunked prefill of `base` is from one call, on `random_batch()` with positions; computed once.

    Left padding stands before some recurrent layers' tokens, so the base itself may differ through its cache.
    """
    if family not in CACHE_ERRORS:
        CACHE_ERRORS[family] = (cached_logits(base, plain(batch)) - logits(base, plain(batch))).abs().max().item()
    return CACHE_ERRORS[family]


@pytest.mark.parametrize("family", KNOWN)
def test_known_family_passes(family: str) -> None:
    assert sum(p.numel() for p in build_on_meta(family).parameters()) < LARGEST
    base = tiny_model(family)
    batch = random_batch()
    with torch.no_grad():
        expected = logits(base, plain(batch))
        model = rolesafe.patch(copy.deepcopy(base), RoleConfig())
        found = logits(model, batch)
        if family in INEXACT:
            torch.testing.assert_close(found, expected, rtol=0, atol=INEXACT[family])
        else:
            assert torch.equal(found, expected)

        randomise(model)
        other = {**batch, "role_ids": (batch["role_ids"] + 1) % 5}
        full = logits(model, batch)
        assert (full - logits(model, other)).abs().max() > 1e-4

        batch = with_positions(model, batch)
        own = cache_error(family, base, batch)
        difference = (cached_logits(model, batch) - logits(model, batch)).abs().max().item()
        assert difference <= 1e-5 + 5 * own
        assert own < 1e-3


@pytest.mark.parametrize("family", KNOWN)
def test_known_family_trains_saves_and_generates(family: str, tmp_path: Path) -> None:
    model = randomise(rolesafe.patch(tiny_model(family), RoleConfig()))
    batch = random_batch(batch=1, padding=0)
    trained = logits(model, batch)
    trained.square().mean().backward()
    tables = [table for _, table in rolesafe.named_role_parameters(model)]
    assert all(table.grad is not None and table.grad.isfinite().all() and table.grad.any() for table in tables)

    model.save_pretrained(tmp_path)
    with torch.no_grad():
        loaded = rolesafe.from_pretrained(tmp_path)
        assert torch.equal(logits(loaded, batch), trained)
        for table in tables:  # every layer alone
            for other in dict(rolesafe.named_role_parameters(loaded)).values():
                other.zero_()
            rest = logits(loaded, batch)
            name = next(name for name, one in rolesafe.named_role_parameters(model) if one is table)
            dict(rolesafe.named_role_parameters(loaded))[name].copy_(table)
            assert (logits(loaded, batch) - rest).abs().max() > 1e-6

        model.generation_config = GenerationConfig(pad_token_id=0)  # no forced tokens
        tokens = model.generate(**batch, max_new_tokens=2)
        roles = torch.nn.functional.pad(batch["role_ids"], (0, 1), value=model.rolesafe_config.generated_id)
        whole = {"input_ids": tokens[:, :-1], "attention_mask": torch.ones_like(roles), "role_ids": roles}
        scores = logits(model, with_positions(model, whole))[-2:]
        taken = scores.gather(1, tokens[0, -2:, None])[:, 0]
        assert (scores.amax(1) - taken).max() <= 1e-5  # the greedy token, up to a tie


def channel(family: str) -> RoleConfig:
    """Return the recommended configuration as far as `family` supports it."""
    return RoleConfig.preset(
        "channel", integrity=family not in NO_INTEGRITY, embedding="none" if family in STREAMS else "layers"
    )


@pytest.mark.parametrize("family", KNOWN)
def test_known_family_keeps_channel(family: str) -> None:
    base = tiny_model(family)
    model = randomise(rolesafe.patch(copy.deepcopy(base), channel(family)))
    batch = random_batch()
    with torch.no_grad():
        other = {**batch, "role_ids": (batch["role_ids"] + 1) % 5}
        assert (logits(model, batch) - logits(model, other)).abs().max() > 1e-3

        batch = with_positions(model, batch)
        own = cache_error(family, base, batch)
        assert (cached_logits(model, batch) - logits(model, batch)).abs().max().item() <= 1e-5 + 5 * own

        if family in NO_INTEGRITY:
            return
        batch = conversation(BETWEEN)
        privileged = batch["role_ids"] < 2
        # Experts work on the tokens that chose them, so rounding depends on the rest.
        near = 1e-6 if any("expert" in name for name, _ in model.named_modules()) else 0.0
        before = model(**batch, use_cache=False).logits
        for seed in range(2):
            after = model(**edited(batch, seed), use_cache=False).logits
            assert (before - after)[~privileged].abs().max() > 1e-3
            torch.testing.assert_close(after[privileged], before[privileged], rtol=0, atol=near)


@pytest.mark.parametrize("family", KNOWN)
def test_known_family_with_long_prompt(family: str) -> None:
    """Longer than the blocks of families that compress or chunk."""
    model = randomise(rolesafe.patch(tiny_model(family, max_position_embeddings=256), channel(family)))
    batch = random_batch(batch=1, length=200, padding=0)
    rows = {name: torch.cat([x, x]) for name, x in batch.items()}
    rows["role_ids"][1] = (rows["role_ids"][1] + 1) % 5
    with torch.no_grad():
        found, other = logits(model, rows).unflatten(0, (2, 200))
    assert torch.isfinite(found).all()
    assert (found - other)[-1].abs().max() > 1e-4


@pytest.mark.parametrize("family", sorted(NO_INTEGRITY))
def test_integrity_with_other_mixing_raises(family: str) -> None:
    with pytest.raises(ValueError, match=r"`integrity`: .*Use integrity=False"):
        rolesafe.patch(build_on_meta(family), RoleConfig(integrity=True))


@pytest.mark.parametrize("family", sorted(STREAMS))
@pytest.mark.parametrize("embedding", ["input", "layers"])
def test_embedding_with_several_streams_raises(family: str, embedding: str) -> None:
    with pytest.raises(ValueError, match="`embedding`: expected 'none', got"):
        rolesafe.patch(build_on_meta(family), RoleConfig(embedding=embedding))


def test_families_are_all_built() -> None:
    assert set(UNBUILT) & set(causal_lm_families()) <= set(UNKNOWN)


@pytest.mark.parametrize("family", UNKNOWN)
def test_unknown_family_raises_with_reason(family: str) -> None:
    if family in UNBUILT:
        pytest.skip(f"the generic configuration builds no {family}: {UNBUILT[family]}")
    model = build_on_meta(family)
    if model.config.model_type in FAMILIES:  # the text part of a model with images: known under a name of its own
        assert is_patched(rolesafe.patch(model, RoleConfig()))
        return
    with pytest.raises(ValueError, match=r"Missing: |may work") as raised:
        rolesafe.patch(model, RoleConfig())
    assert repr(model.config.model_type) in str(raised.value)
    assert not is_patched(model)
