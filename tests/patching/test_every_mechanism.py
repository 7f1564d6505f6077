"""All parts at once in every known family, and equality with the base at strength 0."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

import rolesafe
from rolesafe import RoleConfig
from rolesafe.mechanisms import set_strength
from rolesafe.patching.families import NO_POSITIONS, STREAMS
from tests.models import cached_logits, logits, plain, random_batch, randomise, tiny_model
from tests.patching.test_every_family import INEXACT, KNOWN, NO_INTEGRITY, cache_error, with_positions

UNMOVED = NO_POSITIONS | {"granitemoehybrid", "zamba2"}
"""Families whose positions cannot be moved, or only with other settings than the defaults."""
UNTAKEN = {
    "bart", "bigbird_pegasus", "blenderbot", "blenderbot-small", "marian", "mbart", "pegasus", "plbart", "whisper",
}  # fmt: skip
"""Families whose models take no `position_ids`."""

pytestmark = pytest.mark.filterwarnings("ignore")


def everything(family: str, **changes: Any) -> RoleConfig:
    """Return all parts that `family` supports."""
    parts: dict[str, Any] = {"boost": 2.0, "dampen": 0.5, "mass_target": 0.4, "integrity": family not in NO_INTEGRITY}
    if family in STREAMS:
        parts["embedding"] = "none"
    else:
        parts |= {"embedding": "all", "rotation": 1.0, "shift": True}
    if family not in UNMOVED | UNTAKEN:
        parts |= {"own_positions": True, "position_gap": 10}
    return RoleConfig.preset("channel", **{**parts, **changes})


@pytest.mark.parametrize("family", KNOWN)
def test_all_parts_in_known_family(family: str) -> None:
    base = tiny_model(family)
    model = randomise(rolesafe.patch(copy.deepcopy(base), everything(family)))
    batch = with_positions(model, random_batch())
    with torch.no_grad():
        whole, own = logits(model, batch), logits(base, plain(batch))
        assert torch.isfinite(whole).all()
        assert (whole - own).abs().max() > 1e-3
        inexact = cache_error(family, base, batch)
        assert (cached_logits(model, batch) - whole).abs().max().item() <= 5e-5 + 5 * inexact
        set_strength(model, 0.5)
        assert torch.isfinite(logits(model, batch)).all()
        set_strength(model, 0.0)
        torch.testing.assert_close(logits(model, batch), own, rtol=0, atol=INEXACT.get(family, 0.0))


@pytest.mark.parametrize("family", sorted(set(KNOWN) - UNMOVED - UNTAKEN))
def test_positions_move_in_families_with_positions(family: str) -> None:
    base = tiny_model(family, sliding_window=64)
    model = rolesafe.patch(copy.deepcopy(base), RoleConfig(position_gap=20))
    batch = random_batch(padding=0)
    positions = torch.arange(14) + 20 * (batch["role_ids"] >= 2)
    with torch.no_grad():
        moved = base(**plain(batch), position_ids=positions).logits
        torch.testing.assert_close(model(**batch).logits, moved, rtol=0, atol=INEXACT.get(family, 0.0))
        changed = (moved - base(**plain(batch)).logits).abs().max()
    # flint turns keys and queries in sliding layers alone, which the generic configuration has none of, and the keys of
    # zaya are zero before training
    assert (changed > 1e-7) == (family not in ("flint", "zaya"))


@pytest.mark.parametrize("family", sorted(UNMOVED))
def test_positions_without_effect_raise(family: str) -> None:
    """Checked on the base: moving positions by hand changes nothing."""
    base, batch = tiny_model(family), random_batch(padding=0)
    with torch.no_grad():
        moved = base(**plain(batch), position_ids=torch.arange(14)[None] * 3).logits
        assert torch.equal(moved, base(**plain(batch)).logits)
    with pytest.raises(ValueError, match=r"`position_gap`: .* uses no positions in its attention"):
        rolesafe.patch(base, RoleConfig(position_gap=5))


@pytest.mark.parametrize("family", sorted(UNTAKEN))
def test_positions_that_a_model_does_not_take_raise(family: str) -> None:
    with pytest.raises(ValueError, match=r"`position_gap`: .* takes no `position_ids`"):
        rolesafe.patch(tiny_model(family), RoleConfig(position_gap=5))
