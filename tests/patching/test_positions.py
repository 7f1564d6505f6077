"""Positions per channel: correct for chunks, caches and padding, and independent of other text."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import rolesafe
from rolesafe import RoleConfig
from rolesafe.mechanisms import set_strength
from rolesafe.patching.caches import output_cache
from rolesafe.patching.positions import role_positions
from tests.models import (
    CACHE,
    VOCAB,
    base_model,
    cached_logits,
    logits,
    new_config,
    random_batch,
    randomise,
    role_model,
    tiny_model,
    with_cache,
)

OWN = RoleConfig(own_positions=True)
SEPARATE = RoleConfig.preset("separate", share=0.3)


# ------------------------------------------------------------------------------------------------------- the function


def literal(config: RoleConfig, roles: list[int], real: list[int], given: list[int] | None) -> list[int]:
    """Compute the positions of one row, token by token."""
    found, counts, before = [], {True: -1, False: -1}, None
    for i, role in enumerate(roles):
        step = 1 if given is None or before is None else given[i] - given[before]
        if not config.own_positions:
            ordinary = sum(real[: i + 1]) - 1 if given is None else given[i]
        elif real[i]:
            counts[role < 2] += step
            ordinary = max(counts[role < 2], 0)
        else:
            ordinary = None
        if real[i]:
            before = i
        found.append(None if ordinary is None else ordinary + (config.position_gap if role >= 2 else 0))
    return found


@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.data())
def test_role_positions_equal_loop(data: Any) -> None:
    gap, own = data.draw(st.sampled_from([(0, True), (7, False), (7, True)]))
    config = RoleConfig(position_gap=gap, own_positions=own)
    length = data.draw(st.integers(1, 12))
    pads, right = data.draw(st.integers(0, length - 1)), data.draw(st.booleans())
    roles = data.draw(st.lists(st.integers(0, 4), min_size=length, max_size=length))
    real = [1] * (length - pads) + [0] * pads if right else [0] * pads + [1] * (length - pads)
    given_positions = None
    if data.draw(st.booleans()):
        steps = data.draw(st.lists(st.integers(0, 5), min_size=length, max_size=length))
        given_positions = torch.tensor(steps).cumsum(0).tolist()
    expected = literal(config, roles, real, given_positions)
    whole = role_positions(
        config,
        1.0,
        torch.tensor([roles]),
        torch.tensor([real]),
        0,
        length,
        None if given_positions is None else torch.tensor([given_positions]),
    )
    assert [p for p, r in zip(whole[0].tolist(), real, strict=True) if r] == [
        p for p, r in zip(expected, real, strict=True) if r
    ]
    if given_positions is None:  # the end of it, asked for beside a cache
        past = data.draw(st.integers(0, length - 1))
        for where in (past, torch.tensor(past)):
            rest = role_positions(config, 1.0, torch.tensor([roles]), torch.tensor([real]), where, length - past)
            assert torch.equal(rest, whole[:, past:])


def test_role_positions_interpolate_with_strength() -> None:
    roles = torch.tensor([[2, 2, 2, 2, 0, 0, 2]])
    config = RoleConfig(own_positions=True, position_gap=10)
    assert role_positions(config, 1.0, roles, None, 0, 7).tolist() == [[10, 11, 12, 13, 0, 1, 14]]
    assert role_positions(config, 0.5, roles, None, 0, 7).tolist() == [[5, 6, 7, 8, 2, 3, 10]]
    assert role_positions(config, 0.0, roles, None, 0, 7).tolist() == [[0, 1, 2, 3, 4, 5, 6]]


# ------------------------------------------------------------------------------------------------------- independence


def sharp(family: str, config: RoleConfig) -> Any:
    """Return a patched model with large weights, so that its attention clearly depends on positions."""
    model = tiny_model(family, config=new_config(family, initializer_range=0.15))
    return randomise(rolesafe.patch(model, config))


def around(place: str, seed: int, extra: int = 0) -> tuple[Tensor, Tensor]:
    """Return ids and roles (1, N) of a system prompt with other text before, within and after it, by `place`."""
    make = torch.Generator().manual_seed(5)
    system = torch.randint(3, VOCAB, (6,), generator=make)
    system_roles = torch.tensor([0, 0, 1, 1, 0, 0])
    other = torch.randint(3, VOCAB, (7 + extra,), generator=torch.Generator().manual_seed(seed))
    other_roles = torch.randint(2, 5, other.shape, generator=torch.Generator().manual_seed(seed))
    cut = {"first": (0, 0), "middle": (4, 4), "last": (99, 99), "split": (1, 3), "none": (0, 0)}[place]
    if place == "none":
        other, other_roles = other[:0], other_roles[:0]

    def joined(s: Tensor, o: Tensor) -> Tensor:
        at = 3 if place == "split" else 6
        return torch.cat([o[: cut[0]], s[:at], o[cut[0] : cut[1]], s[at:], o[cut[1] :]])[None]

    return joined(system, other), joined(system_roles, other_roles)


def privileged_states(model: Any, ids: Tensor, roles: Tensor, **more: Any) -> list[Tensor]:
    with torch.no_grad():
        output = model(ids, role_ids=roles, output_hidden_states=True, use_cache=False, **more)
    return [x[roles < 2] for x in (*output.hidden_states, output.logits)]


@pytest.mark.parametrize("impl", ["reference", "sdpa"])
@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma", "gpt2", "opt", "gpt_neox", "olmo2", "phi3"])
def test_place_of_other_text_keeps_privileged_states(family: str, impl: str) -> None:
    """First, in the middle, last, around, absent; short and long; other words and other roles."""
    model = sharp(family, RoleConfig.preset("separate", share=0.3, impl=impl))
    expected = privileged_states(model, *around("none", 0))
    for place in ("first", "middle", "last", "split"):
        for seed, extra in ((0, 0), (1, 0), (2, 20)):
            got = privileged_states(model, *around(place, seed, extra))
            for x, y in zip(got, expected, strict=True):
                torch.testing.assert_close(x, y, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_place_of_other_text_matters_otherwise(family: str) -> None:
    """Rotary positions depend on other text within the system prompt, learned ones on any other text."""
    model = sharp(family, RoleConfig.preset("channel", share=0.3))
    place = "split" if family == "llama" else "last"
    moved = privileged_states(model, *around(place, 0))[-1]
    assert (moved - privileged_states(model, *around("none", 0))[-1]).abs().max() > 0.02


def test_prefix_cache_serves_any_place_of_text() -> None:
    """Own positions give the same privileged keys in every conversation, at any place of other text."""
    model = role_model("llama", SEPARATE)
    caches = []
    for place in ("first", "last", "split"):
        ids, roles = around(place, 3)
        with torch.no_grad():
            cache = output_cache(model(ids, role_ids=roles, use_cache=True))
        caches.append([layer.keys[0][:, (roles < 2)[0]] for layer in cache.layers])
    for other in caches[1:]:
        for x, y in zip(caches[0], other, strict=True):
            torch.testing.assert_close(x, y, rtol=0, atol=2e-6)


# ------------------------------------------------------------------------------------------------- every way they come

MOVED = {
    "own": OWN,
    "gap": RoleConfig(position_gap=30),
    "own and gap": RoleConfig.preset("separate", share=0.3, position_gap=30),
}
families = pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2", "mixtral", "gpt_oss"])
moved = pytest.mark.parametrize("config", MOVED.values(), ids=MOVED)


@moved
@families
def test_cached_equals_uncached(family: str, config: RoleConfig) -> None:
    """Left padding, random roles, chunked prefill."""
    model, batch = role_model(family, config), random_batch()
    with torch.no_grad():
        expected = logits(model, batch)
        torch.testing.assert_close(cached_logits(model, batch), expected, rtol=0, atol=2e-5)
        if config.own_positions:  # plain positions beside a cache, padding counted or not, say nothing new
            for positions in (torch.arange(14).expand(2, 14), (batch["attention_mask"].cumsum(1) - 1).clamp(min=0)):
                given = cached_logits(model, {**batch, "position_ids": positions})
                torch.testing.assert_close(given, expected, rtol=0, atol=2e-5)


@moved
@families
def test_generation_with_any_cache_equals_without(family: str, config: RoleConfig) -> None:
    model, batch = role_model(family, config), random_batch(length=11)
    options = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    expected = model.generate(**batch, use_cache=False, **options)
    for implementation in ("static", "dynamic"):
        assert torch.equal(model.generate(**batch, cache_implementation=implementation, **options), expected)
    alone = model.generate(
        **{name: x[1:] for name, x in batch.items()}, **options
    )  # no padding: generate drops the mask
    assert torch.equal(alone, expected[1:])
    alone = model.generate(**{name: x[:1, 3:] for name, x in batch.items()}, **options)
    assert torch.equal(alone[0], expected[0, 3:])


@moved
def test_second_turn_on_kept_cache(config: RoleConfig) -> None:
    model, make = role_model("llama", config), torch.Generator().manual_seed(1)
    ids = torch.randint(3, VOCAB, (1, 9), generator=make)
    roles = torch.tensor([[0, 0, 0, 2, 2, 2, 2, 3, 3]])
    options = {"max_new_tokens": 4, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    first = model.generate(ids, role_ids=roles, return_dict_in_generate=True, **options)
    turn = torch.cat([first.sequences, torch.randint(3, VOCAB, (1, 5), generator=make)], 1)
    roles = torch.cat([roles, torch.tensor([[3, 3, 3, 3, 2, 2, 1, 2, 3]])], 1)
    kept = model.generate(turn, role_ids=roles, **with_cache(output_cache(first)), **options)
    assert torch.equal(kept, model.generate(turn, role_ids=roles, use_cache=False, **options))


def test_training_jumps_are_counted_per_channel() -> None:
    """Compare jumps of `RoleCollator(position_gap=...)` with positions made by hand for the base."""
    batch = random_batch(padding=0)
    at, gap = 6, 40
    positions = torch.arange(14) + gap * (torch.arange(14) >= at)
    model = role_model("llama", RoleConfig(own_positions=True), trained=False)
    expected = torch.tensor([literal(OWN, row.tolist(), [1] * 14, positions.tolist()) for row in batch["role_ids"]])
    assert int(expected.max()) > gap
    with torch.no_grad():
        got = model(**batch, position_ids=positions[None]).logits
        base = base_model("llama")(
            batch["input_ids"], attention_mask=batch["attention_mask"], position_ids=expected
        ).logits
    assert torch.equal(got, base)


def test_position_jumps_are_no_packed_sequences() -> None:
    """Without a mask transformers reads a jump as the start of another document and masks earlier tokens."""
    model, batch = role_model("llama", SEPARATE), random_batch(padding=0)
    without = {name: x for name, x in batch.items() if name != "attention_mask"}
    with torch.no_grad():
        torch.testing.assert_close(model(**without, use_cache=False).logits, model(**batch).logits, rtol=0, atol=1e-6)


def test_batch_rows_are_independent() -> None:
    model, batch = role_model("gpt2", MOVED["own and gap"]), random_batch()
    with torch.no_grad():
        both = model(**batch).logits
        alone = model(**{name: x[:1, 3:] for name, x in batch.items()}).logits
    torch.testing.assert_close(both[:1, 3:], alone, rtol=0, atol=1e-5)


def test_torch_compile() -> None:
    torch._dynamo.reset()
    model, batch = role_model("llama", MOVED["own and gap"], layers=1), random_batch()
    with torch.no_grad():
        expected = model(**batch).logits
        compiled = torch.compile(model, backend="eager")(**batch).logits
    torch.testing.assert_close(compiled[1], expected[1], rtol=0, atol=1e-5)


# ------------------------------------------------------------------------------------------------------------- errors


def test_packed_sequences_raise() -> None:
    batch, positions = random_batch(padding=0), torch.cat([torch.arange(7), torch.arange(7)])[None]
    for config in MOVED.values():
        with pytest.raises(ValueError, match=r"`position_ids`: expected positions that never go down within a row"):
            role_model("llama", config)(batch["input_ids"], role_ids=batch["role_ids"], position_ids=positions)


def test_position_jumps_with_cache_raise() -> None:
    model, batch = role_model("llama", OWN), random_batch(padding=0)
    cache = output_cache(model(**{name: x[:, :9] for name, x in batch.items()}, use_cache=True))
    step = {**batch, "input_ids": batch["input_ids"][:, 9:], CACHE: cache}
    with pytest.raises(ValueError, match=r"`position_ids`: expected consecutive positions with a cache"):
        model(**step, position_ids=torch.arange(9, 14)[None] + 20)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"position_ids": torch.zeros(3, 2, 14, dtype=torch.long)}, "`position_ids`: expected shape (2, 14)"),
        ({"attention_mask": torch.ones(2, 9)}, "`attention_mask`: expected shape (2, 14)"),
        (
            {"attention_mask": torch.ones(2, 1, 14, 14, dtype=torch.bool)},
            "`attention_mask`: expected shape (B, N), one number per token",
        ),
    ],
)
def test_position_arguments_of_wrong_shape_raise(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as error:
        role_model("llama", OWN)(**{**random_batch(padding=0), **changes})
    assert message in str(error.value)


@pytest.mark.parametrize("config", [OWN, RoleConfig(position_gap=3)], ids=["own_positions", "position_gap"])
@pytest.mark.parametrize(
    "family, reason",
    [
        ("jamba", "uses no positions in its attention"),
        ("granitemoehybrid", "uses no positions in its attention"),
        ("nemotron_h", "uses no positions in its attention"),
    ],
)
def test_families_without_positions_raise(family: str, reason: str, config: RoleConfig) -> None:
    part = "own_positions" if config.own_positions else "position_gap"
    with pytest.raises(ValueError, match=f"`{part}`: .* {reason}"):
        rolesafe.patch(tiny_model(family), config)


def test_immovable_positions_raise() -> None:
    model = tiny_model("llama")
    model.config.rope_parameters = {**model.config.rope_parameters, "mrope_section": [4, 2, 2]}
    with pytest.raises(ValueError, match="several dimensions"):
        rolesafe.patch(model, OWN)
    model = tiny_model("llama")
    model.config.alibi = True
    with pytest.raises(ValueError, match="ALiBi"):
        rolesafe.patch(model, OWN)
    with pytest.raises(ValueError, match=r"`position_gap`: expected less than the 128 positions .*, got 512"):
        rolesafe.patch(tiny_model("llama"), RoleConfig.preset("pft"))
    assert not rolesafe.patching.is_patched(model)


def test_positions_depending_on_length_raise() -> None:
    rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = tiny_model("llama", config=new_config("llama", rope_parameters=rope))
    with pytest.raises(ValueError, match=r"`own_positions`: .*\(dynamic\) depend on the length of the whole sequence"):
        rolesafe.patch(model, OWN)
    rolesafe.patch(model, RoleConfig(position_gap=3))


def test_strength_interpolates_positions() -> None:
    """At 0 the positions are those of the base, in between they are interpolated."""
    batch, model = random_batch(padding=0), role_model("llama", RoleConfig(position_gap=20, bias=False))
    base = base_model("llama")
    for strength, gap in ((0.0, 0), (0.25, 5), (1.0, 20)):
        set_strength(model, strength)
        positions = torch.arange(14) + gap * (batch["role_ids"] >= 2)
        with torch.no_grad():
            expected = base(batch["input_ids"], attention_mask=batch["attention_mask"], position_ids=positions).logits
            assert torch.equal(model(**batch).logits, expected)
