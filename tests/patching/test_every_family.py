"""Every causal language model of the installed transformers: it passes, or `patch` refuses it and says why."""

from __future__ import annotations

import copy

import pytest
import torch
from transformers import PreTrainedModel

import rolesafe
from rolesafe import RoleConfig
from rolesafe.patching import is_patched
from rolesafe.patching.families import FAMILIES
from tests.models import cached_logits, causal_lm_families, logits, plain, random_batch, randomise, tiny_model

INSTALLED = causal_lm_families()
KNOWN = sorted(FAMILIES & set(INSTALLED))
UNKNOWN = sorted(set(INSTALLED) - FAMILIES)

LARGEST = 20_000_000
"""Parameters above which a family is not built: some take hundreds of GB whatever their configuration says."""

INEXACT = {"granite_swa": 1e-6, "granitemoe_swa": 1e-6}
"""How far from the base at rest: their base computes sinks in another order."""

pytestmark = pytest.mark.filterwarnings("ignore")


def build_on_meta(family: str) -> PreTrainedModel:
    with torch.device("meta"):
        return tiny_model(family)


def test_at_least_a_hundred_families_are_tested() -> None:
    assert len(KNOWN) >= 100


@pytest.mark.parametrize("family", KNOWN)
def test_a_known_family(family: str) -> None:
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

        # Left padding stands before some recurrent layers' tokens, so the base itself may differ through its cache.
        if "position_ids" in model.forward.__signature__.parameters:
            batch["position_ids"] = (batch["attention_mask"].cumsum(1) - 1).clamp(min=0)
        own = (cached_logits(base, plain(batch)) - logits(base, plain(batch))).abs().max().item()
        difference = (cached_logits(model, batch) - logits(model, batch)).abs().max().item()
        assert difference <= 1e-5 + 5 * own
        assert own < 1e-3


@pytest.mark.parametrize("family", UNKNOWN)
def test_an_unknown_family_is_refused_with_the_reason(family: str) -> None:
    try:
        model = build_on_meta(family)
    except Exception as error:
        pytest.skip(f"the generic configuration builds no {family}: {type(error).__name__}")
    if model.config.model_type in FAMILIES:  # the text part of a model with images: known under a name of its own
        assert is_patched(rolesafe.patch(model, RoleConfig()))
        return
    with pytest.raises(ValueError, match=r"Missing: |may work") as raised:
        rolesafe.patch(model, RoleConfig())
    assert repr(model.config.model_type) in str(raised.value)
    assert not is_patched(model)
