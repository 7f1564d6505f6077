"""BEAST: loss, seeds, roles and queries."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from rolesafe.attacks import BeastConfig
from rolesafe.attacks.gradient.beam import _grow
from rolesafe.attacks.gradient.losses import losses, make_loss
from rolesafe.attacks.gradient.victim import Victim
from tests.attacks.gradient import (
    CONFIGS,
    bytes_tokenizer,
    direct_loss,
    example,
    gradient_search,
    make,
    pieces_tokenizer,
    target_of,
)


def search(model: Any, tokenizer: Any, **changes: Any) -> Any:
    return gradient_search(BeastConfig, model, tokenizer, **{"beams": 4, "branches": 6, **changes})


@pytest.mark.parametrize("name", [None, *CONFIGS])
def test_beast_beats_as_many_random_slots(name: str | None) -> None:
    model, tokenizer = make(name)
    found = search(model, tokenizer, beams=6, branches=8)
    generator = torch.Generator().manual_seed(0)
    target = target_of(model, tokenizer, generator)
    victim = Victim(model, target)
    candidates = 6 * 8 * 6
    slots = target.allowed[torch.randint(len(target.allowed), (candidates, 6), generator=generator)]
    random = losses(victim, make_loss("ce"), slots, 64)
    if name == "all dedicated":  # the reply cannot see the slot, only how far away the system text is
        assert float(random.std()) < 1e-4
        assert found.losses[-1] == pytest.approx(float(random.min()), abs=0.05)
    else:
        assert found.losses[-1] < float(random.mean()) - 2 * float(random.std())


@pytest.mark.parametrize("kind", ["words", "bytes", "pieces"])
def test_beast_loss_equals_loss_of_final_text(kind: str) -> None:
    makers = {"bytes": bytes_tokenizer, "pieces": pieces_tokenizer}
    model, tokenizer = make("channel", makers[kind]() if kind in makers else None)
    found = search(model, tokenizer)
    assert found.losses[-1] == pytest.approx(direct_loss(model, tokenizer, found.messages, example().wanted), abs=1e-4)
    assert list(found.losses) == sorted(found.losses, reverse=True)
    assert found.typed


def test_beast_with_same_seed_is_equal_and_counted() -> None:
    model, tokenizer = make("bias")
    found = search(model, tokenizer)
    assert found == search(model, tokenizer)
    assert found.messages != search(model, tokenizer, seed=1).messages
    # first step: 24 first tokens from one prompt; then 4 slots are asked for 6 tokens each
    assert found.n_queries == (1 + 24) + 5 * (4 + 24)
    assert found.n_steps == len(found.losses) == 6


def test_beast_draws_likely_tokens() -> None:
    """With a low temperature it draws the likeliest allowed tokens; roles decide what they are."""
    model, tokenizer = make("channel")
    generator = torch.Generator().manual_seed(0)
    target = target_of(model, tokenizer, generator)
    victim = Victim(model, target)
    held = target.start[None, :3]
    drawn = _grow(victim, held, 5, 0.01, generator)
    assert (drawn[:, :3] == held).all()
    whole = torch.cat([target.before, held[0]])[None]
    with torch.no_grad():
        logits = model(input_ids=whole, role_ids=victim.role_ids(3)[:, : whole.shape[1]]).logits[0, -1]
    likely = target.allowed[logits[target.allowed].topk(5).indices]
    assert set(drawn[:, 3].tolist()) == set(likely.tolist())


def test_beast_with_bad_arguments_names_them() -> None:
    model, tokenizer = make(None)
    for options, match in (
        ({"beams": 0}, "`beams`: expected a whole number >= 1"),
        ({"branches": 0}, "`branches`: expected a whole number >= 1"),
        ({"temperature": 0}, "`temperature`: expected a finite number > 0"),
        ({"wanted": ""}, "`wanted`: expected"),
    ):
        with pytest.raises(ValueError, match=match):
            search(model, tokenizer, **options)
