"""The losses of gradient attacks against direct forward passes, and their gradients against finite differences."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from rolesafe.attacks import GCGConfig
from rolesafe.attacks.gradient.losses import (
    OBJECTIVES,
    gradient,
    losses,
    make_loss,
    readable_attention,
    token_scores,
)
from rolesafe.attacks.gradient.victim import Victim
from tests.attacks.gradient import CONFIGS, PUBLISHED, direct_loss, example, make, target_of

NAMES = [None, *CONFIGS, *PUBLISHED]


def victim_of(model: Any, tokenizer: Any, *, cached: bool = True, **options: Any) -> Victim:
    return Victim(model, target_of(model, tokenizer, 1, **options), cached=cached)


def slots_of(victim: Victim, n: int = 5, seed: int = 0) -> Tensor:
    allowed = victim.target.allowed
    return allowed[torch.randint(len(allowed), (n, 6), generator=torch.Generator().manual_seed(seed))]


@pytest.mark.parametrize("place", ["suffix", "prefix"])
@pytest.mark.parametrize("name", NAMES)
def test_losses_equal_loss_of_the_text(name: str | None, place: str) -> None:
    model, tokenizer = make(name)
    victim = victim_of(model, tokenizer, place=place)
    slots = slots_of(victim)
    found = losses(victim, make_loss("ce"), slots, 2)
    for ids, value in zip(slots.tolist(), found.tolist(), strict=True):
        expected = direct_loss(model, tokenizer, victim.target.messages(ids), example().wanted)
        assert value == pytest.approx(expected, abs=1e-4)


def test_mellowmax_is_between_mean_and_maximum() -> None:
    model, tokenizer = make("bias")
    victim = victim_of(model, tokenizer)
    slot = victim.target.start[None]
    with torch.no_grad():
        scores = torch.log_softmax(victim.reply_logits(victim.forward(slot))[0].double(), -1)
        values = -scores[torch.arange(len(scores)), victim.target.wanted]
        for alpha in (0.1, 1.0, 5.0):
            expected = math.log(sum(math.exp(alpha * float(v)) for v in values) / len(values)) / alpha
            assert float(make_loss("mellowmax", alpha=alpha)(victim, slot)) == pytest.approx(expected, abs=1e-4)
        mild, sharp = (float(make_loss("mellowmax", alpha=a)(victim, slot)) for a in (1e-2, 100.0))
        assert float(values.mean()) == pytest.approx(mild, abs=0.02)
        assert float(values.max()) == pytest.approx(sharp, abs=0.05)


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("name", NAMES)
def test_losses_in_batches_with_cache_are_equal(name: str | None, objective: str) -> None:
    model, tokenizer = make(name)
    with readable_attention(model, objective):
        fast, slow = victim_of(model, tokenizer), victim_of(model, tokenizer, cached=False)
        loss = make_loss(objective, weight=2.0)
        slots = slots_of(fast)
        expected = losses(slow, loss, slots, 1)
        torch.testing.assert_close(losses(fast, loss, slots, 3), expected, rtol=1e-4, atol=1e-4)
        assert fast.n_queries == slots.shape[0] * (2 if objective == "role-shift" and name else 1)
        if objective != "role-shift":
            slots[:3] = fast.target.start
            slots[1, 4] = slots[3, 0]
            expected = losses(slow, loss, slots, 1)
            torch.testing.assert_close(losses(fast, loss, slots, 2, fast.target.start), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("name", NAMES)
def test_gradient_matches_finite_differences(name: str | None, objective: str) -> None:
    """The slope of the loss along the way from one token's embedding to another's is their scores' difference."""
    model, tokenizer = make(name)
    model = model.double()
    with readable_attention(model, objective):
        victim = victim_of(model, tokenizer)
        loss = make_loss(objective, weight=1.5)
        ids = victim.target.start
        value, slope = gradient(victim, loss, ids)
        scores = token_scores(victim, slope)
        assert scores.shape == (6, len(victim.target.allowed))
        embed = model.get_input_embeddings()
        own = embed(ids).detach()
        assert value == pytest.approx(float(loss(victim, own[None]).detach()), abs=1e-6)
        generator = torch.Generator().manual_seed(3)
        step = 1e-3  # the model's norms are fp32 inside
        for place in range(6):
            column = int(torch.randint(len(victim.target.allowed), (1,), generator=generator))
            here = int((victim.target.allowed == ids[place]).nonzero())
            way = (embed(victim.target.allowed[column]) - own[place]).detach()
            ends = []
            for sign in (1, -1):
                moved = own.clone()
                moved[place] += sign * step * way
                with torch.no_grad():
                    ends.append(float(loss(victim, moved[None])))
            numeric = (ends[0] - ends[1]) / (2 * step)
            assert numeric == pytest.approx(float(scores[place, column] - scores[place, here]), rel=1e-2, abs=1e-3)


@pytest.mark.parametrize("name", NAMES)
def test_attention_term_is_mass_on_the_slot(name: str | None) -> None:
    """Against weights taken with the mass on all other keys: the two add up to one."""
    model, tokenizer = make(name)
    with readable_attention(model, "attention"):
        victim = victim_of(model, tokenizer)
        slots = slots_of(victim, 3)
        plain = losses(victim, make_loss("ce"), slots, 3)
        terms = plain - losses(victim, make_loss("attention", weight=1.0), slots, 3)
        assert ((terms >= -1e-6) & (terms < 1)).all()
        if name == "all dedicated":  # no head looks at unprivileged keys at all
            torch.testing.assert_close(terms, torch.zeros(3), rtol=0, atol=1e-6)
        else:
            assert (terms > 0.01).all()
        if name is None:
            whole = torch.cat(
                [victim.target.before.expand(3, -1), slots, victim.target.after.expand(3, -1),
                 victim.target.wanted[:-1].expand(3, -1)], 1,
            )  # fmt: skip
            low, count = len(victim.target.before), len(victim.target.wanted)
            with torch.no_grad():
                masses = model(input_ids=whole, output_attentions=True).attentions
            expected = torch.stack([m[:, :, -count:, low : low + 6].sum(-1).mean((1, 2)) for m in masses]).mean(0)
            torch.testing.assert_close(terms, expected, rtol=1e-4, atol=1e-5)


def test_readable_attention_is_restored() -> None:
    model, _ = make(None)
    before = model.config._attn_implementation
    assert before != "eager"
    with readable_attention(model, "attention"):
        assert model.config._attn_implementation == "eager"
    assert model.config._attn_implementation == before
    with readable_attention(model, "ce"):
        assert model.config._attn_implementation == before


def test_role_shift_is_distance_to_privileged_role() -> None:
    model, tokenizer = make("embeddings")
    victim = victim_of(model, tokenizer)
    slots = slots_of(victim, 3)
    term = losses(victim, make_loss("role-shift", weight=1.0), slots, 3) - losses(victim, make_loss("ce"), slots, 3)
    low, total = len(victim.target.before), len(victim.target.before) + 6
    whole = torch.cat([victim.target.before.expand(3, -1), slots], 1)
    states = []
    for role in (None, 0):
        with torch.no_grad():
            roles = victim.role_ids(6, role)[:, :total].expand(3, -1)
            out = model(input_ids=whole, role_ids=roles, output_hidden_states=True)
        states.append(torch.stack(out.hidden_states[1:])[:, :, low:])
    expected = (1 - torch.cosine_similarity(*states, dim=-1)).mean((0, 2))
    assert (expected > 0.01).all()
    torch.testing.assert_close(term, expected, rtol=1e-3, atol=1e-5)
    with torch.no_grad():  # without what tells roles apart there is nothing to cancel
        for parameter in (p for n, p in model.named_parameters() if "rolesafe" in n):
            parameter.zero_()
    term = losses(victim, make_loss("role-shift"), slots, 3) - losses(victim, make_loss("ce"), slots, 3)
    torch.testing.assert_close(term, torch.zeros(3), rtol=0, atol=1e-5)


def test_role_shift_on_plain_model_is_cross_entropy() -> None:
    model, tokenizer = make(None)
    victim = victim_of(model, tokenizer)
    slots = slots_of(victim)
    assert torch.equal(losses(victim, make_loss("role-shift"), slots, 5), losses(victim, make_loss("ce"), slots, 5))


def test_integrity_keeps_privileged_states() -> None:
    """A system text after the slot could attend to it, and under integrity does not."""
    model, tokenizer = make("all dedicated")
    victim = victim_of(model, tokenizer)
    target = victim.target
    system = target.before[: int((target.roles_before == 0).sum())]
    slots = slots_of(victim, 2)
    roles = torch.cat([torch.full((6,), target.role), torch.zeros(len(system), dtype=torch.long)])
    with torch.no_grad():
        out = model(
            input_ids=torch.cat([slots, system.expand(2, -1)], 1),
            role_ids=roles.expand(2, -1),
            output_hidden_states=True,
        )
    states = torch.stack(out.hidden_states)
    assert not torch.equal(states[:, 0, :6], states[:, 1, :6])
    assert torch.equal(states[:, 0, 6:], states[:, 1, 6:])


def test_make_loss_with_bad_values_names_them() -> None:
    with pytest.raises(ValueError, match=r"`objective`: expected one of .*, got 'dpo'"):
        make_loss("dpo")
    with pytest.raises(ValueError, match="`weight`: expected a finite number >= 0, got -1"):
        GCGConfig(objective="attention", weight=-1)
    with pytest.raises(ValueError, match="`mellowmax_alpha`: expected a finite number > 0, got 0"):
        GCGConfig(objective="mellowmax", mellowmax_alpha=0)
