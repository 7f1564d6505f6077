"""GCG: loss, reported loss, roles, and texts that encode to their tokens."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from rolesafe.attacks import ATTACKS, GCGConfig, attack, contains, replies
from rolesafe.attacks.gradient.gcg import draw, rank_correlation
from rolesafe.attacks.gradient.losses import OBJECTIVES
from rolesafe.roles.encoding import encode_one
from tests.attacks.gradient import (
    CONFIGS,
    bytes_tokenizer,
    direct_loss,
    example,
    gradient_search,
    make,
    pieces_tokenizer,
    spied,
    words_tokenizer,
)

TOKENIZERS = {"words": words_tokenizer, "bytes": bytes_tokenizer, "pieces": pieces_tokenizer}


def search(model: Any, tokenizer: Any, **changes: Any) -> Any:
    return gradient_search(GCGConfig, model, tokenizer, **{"num_steps": 8, "search_width": 24, "topk": 32, **changes})


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("name", [None, "bias", "channel"])
def test_gcg_loss_decreases(name: str | None, objective: str) -> None:
    model, tokenizer = make(name)
    found = search(model, tokenizer, objective=objective)
    assert found.n_steps == 8
    assert len(found.losses) == 9
    assert list(found.losses) == sorted(found.losses, reverse=True)
    # a random model with half of its heads dedicated is moved little, but it is moved
    assert found.losses[-1] < found.losses[0] - (0 if name == "channel" else 0.02)
    assert found.typed
    assert found.reply is None


@pytest.mark.parametrize("kind", sorted(TOKENIZERS))
@pytest.mark.parametrize("place", ["suffix", "prefix"])
def test_gcg_loss_equals_loss_of_final_text(place: str, kind: str) -> None:
    model, tokenizer = make("channel", TOKENIZERS[kind]())
    found = search(model, tokenizer, place=place)
    expected = direct_loss(model, tokenizer, found.messages, example().wanted)
    assert found.losses[-1] == pytest.approx(expected, abs=1e-4)
    started = search(model, tokenizer, place=place, num_steps=1, search_width=1)
    assert found.losses[0] == started.losses[0]
    content = found.messages[-1]["content"]
    assert content.startswith(example().request) if place == "suffix" else content.endswith(example().request)
    assert found.messages[:-1] == example().messages[:-1]
    assert all(c.isascii() for c in content)


def test_gcg_with_same_seed_is_equal() -> None:
    model, tokenizer = make("channel")
    torch.manual_seed(1)
    first = search(model, tokenizer, buffer_size=3)
    torch.manual_seed(2)
    state = torch.get_rng_state()
    assert search(model, tokenizer, buffer_size=3) == first
    assert torch.equal(torch.get_rng_state(), state)
    assert search(model, tokenizer, buffer_size=3, seed="another").messages != first.messages


@pytest.mark.parametrize("prefix_cache", [True, False])
def test_gcg_in_batches_without_cache_is_equal(prefix_cache: bool) -> None:
    model, tokenizer = make("channel")
    found = search(model, tokenizer, batch_size=24)
    other = search(model, tokenizer, batch_size=5, prefix_cache=prefix_cache)
    assert other.messages == found.messages
    assert other.losses == pytest.approx(found.losses, abs=1e-4)


@pytest.mark.parametrize("name", list(CONFIGS))
def test_gcg_passes_roles_in_every_forward(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """All roles a patched model is given, in every forward pass: the slot's tokens are never privileged."""
    model, tokenizer = make(name)
    calls = spied(model, monkeypatch)
    found = search(model, tokenizer, num_steps=3)
    encoded = encode_one(tokenizer, found.messages, config=model.rolesafe_config, add_generation_prompt=True)
    roles = encoded.role_ids + [model.rolesafe_config.generated_id] * 16
    assert len(calls) > 6
    for given in calls:
        assert (given == torch.tensor(roles[: given.shape[1]])).all()
    assert sum(role in model.rolesafe_config.privileged_ids for role in roles) == sum(
        role == 0 for role in encode_one(tokenizer, example().messages, config=model.rolesafe_config).role_ids
    )


def test_gcg_role_shift_changes_slot_roles_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """That loss asks what privileged tokens would look like; the reply is never computed from them."""
    model, tokenizer = make("channel")
    calls = spied(model, monkeypatch)
    found = search(model, tokenizer, num_steps=2, objective="role-shift")
    encoded = encode_one(tokenizer, found.messages, config=model.rolesafe_config, add_generation_prompt=True)
    honest = torch.tensor(encoded.role_ids + [model.rolesafe_config.generated_id] * 16)
    pretended = [roles for roles in calls if not (roles == honest[: roles.shape[1]]).all()]
    assert pretended
    slot_ends = [k for k, role in enumerate(encoded.role_ids) if role == 2][-1]
    assert all(roles.shape[1] <= slot_ends + 1 for roles in pretended)


@pytest.mark.parametrize("n_replace", [1, 3])
def test_draw_exchanges_tokens_for_steepest(n_replace: int) -> None:
    generator = torch.Generator().manual_seed(0)
    allowed = torch.arange(10, 60)
    ids = torch.tensor([1, 2, 3, 4, 5])
    scores = torch.randn(5, 50, generator=generator)
    drawn = draw(ids, scores, allowed, 200, 4, n_replace, generator)
    assert drawn.shape == (200, 5)
    changed = drawn != ids
    assert (changed.sum(1) == n_replace).all()
    steepest = [set(allowed[scores[p].argsort()[:4]].tolist()) for p in range(5)]
    seen: list[set[int]] = [set() for _ in range(5)]
    for row, mask in zip(drawn.tolist(), changed.tolist(), strict=True):
        for place in (p for p in range(5) if mask[p]):
            seen[place].add(row[place])
    assert seen == steepest


def test_gcg_queries_are_counted() -> None:
    """One gradient and `search_width` candidates a step; a buffer of k takes k - 1 more at the start."""
    model, tokenizer = make("bias")
    assert search(model, tokenizer, num_steps=4).n_queries == 4 * (24 + 1)
    assert search(model, tokenizer, num_steps=4, buffer_size=3).n_queries == 4 * (24 + 1) + 2 + _moved(model, tokenizer)
    shift = search(model, tokenizer, num_steps=4, objective="role-shift")
    assert shift.n_queries == 2 * 4 * (24 + 1)


def _moved(model: Any, tokenizer: Any) -> int:
    """One gradient more where the first slot is not the best of the buffer's."""
    alone, buffered = (search(model, tokenizer, num_steps=4, buffer_size=k).losses[0] for k in (1, 3))
    return int(buffered < alone)


def test_gcg_early_stop_ends_at_success() -> None:
    """The word that counts is one that the model says anyway, or after some steps."""
    model, tokenizer = make("bias")
    said = replies(model, tokenizer, [search(model, tokenizer, num_steps=1, search_width=1).messages])[0].split()[0]
    at_once = search(model, tokenizer, success=said, early_stop=True)
    assert at_once.n_steps == 0
    assert len(at_once.losses) == 1
    never = search(model, tokenizer, success="xylophone", early_stop=True, check_every=3)
    assert never.n_steps == 8
    free = search(model, tokenizer, num_steps=30)
    last = replies(model, tokenizer, [free.messages], max_new_tokens=6)[0]
    word = next((w for w in last.split() if w.isalpha() and not contains(
        replies(model, tokenizer, [at_once.messages], max_new_tokens=6)[0], w)), None)  # fmt: skip
    assert word is not None
    free = search(model, tokenizer, num_steps=30, success=word)  # slots that do not hold the word
    stopped = search(model, tokenizer, num_steps=30, success=word, early_stop=True, check_every=1)
    assert 0 < stopped.n_steps <= 30
    assert stopped.losses == free.losses[: stopped.n_steps + 1]
    assert contains(replies(model, tokenizer, [stopped.messages], max_new_tokens=6)[0], word)
    assert stopped.n_queries > stopped.n_steps * 25


def test_gcg_with_draft_runs_fewer_candidates() -> None:
    model, tokenizer = make("channel")
    whole = search(model, tokenizer, num_steps=6, search_width=64)
    probed = search(model, tokenizer, num_steps=6, search_width=64, draft=model)
    assert probed.n_queries == 6 * (1 + 64 // 16 + 1)  # a draft that agrees with itself leaves one
    assert list(probed.losses) == sorted(probed.losses, reverse=True)
    assert probed.losses[-1] == pytest.approx(
        direct_loss(model, tokenizer, probed.messages, example().wanted), abs=1e-4
    )
    plain, _ = make(None, seed=5)
    other = search(model, tokenizer, num_steps=6, search_width=64, draft=plain)
    assert probed.n_queries < other.n_queries < whole.n_queries
    assert other.losses[-1] < other.losses[0]
    assert other.losses[-1] == pytest.approx(direct_loss(model, tokenizer, other.messages, example().wanted), abs=1e-4)
    watched = search(model, tokenizer, num_steps=2, search_width=32, draft=plain, objective="attention")
    assert watched.losses[-1] < watched.losses[0]
    small, _ = make(None, pieces_tokenizer())
    with pytest.raises(ValueError, match="`draft`: expected a model of the same tokenizer"):
        search(model, tokenizer, draft=small)


def test_gcg_with_draft_path_reads_the_draft(tmp_path: Path) -> None:
    """The draft is named by its path, so that a configuration stays JSON; a role-aware one keeps its role layer."""
    model, tokenizer = make("channel")
    model.save_pretrained(tmp_path / "draft")
    budget = {"num_steps": 2, "search_width": 32, "length": 3}

    def queries(draft: str) -> int:
        config = GCGConfig(**budget, draft=draft, max_new_tokens=6)
        (outcome,) = attack(model, tokenizer, [example()], config, check_goal=False).outcomes
        return outcome.n_queries

    assert queries(str(tmp_path / "draft")) < queries("")
    with pytest.raises(ValueError, match="`draft`: `model`: expected a directory or hub id"):
        queries(str(tmp_path / "nothing"))


def test_rank_correlation_is_spearmans() -> None:
    x = torch.tensor([0.1, 5.0, 2.0, 3.0, 100.0])
    assert rank_correlation(x, x.square()) == pytest.approx(1.0)
    assert rank_correlation(x, -x) == pytest.approx(-1.0)
    # ranks 0 3 1 2 4 and 4 1 3 0 2: 1 - 6 (16 + 4 + 4 + 4 + 4) / (5 * 24)
    assert rank_correlation(x, torch.tensor([9.0, 2.0, 8.0, 1.0, 3.0])) == pytest.approx(1 - 6 * 32 / 120)
    assert rank_correlation(x[:1], x[:1]) == -1.0


def test_gcg_logs_every_ten_steps(caplog: pytest.LogCaptureFixture) -> None:
    model, tokenizer = make("bias")
    search(model, tokenizer, num_steps=1)
    assert not caplog.records
    with caplog.at_level("INFO", logger="rolesafe.attacks"):
        found = search(model, tokenizer, num_steps=12)
    lines = [record.getMessage() for record in caplog.records]
    assert [line.split(",")[0] for line in lines] == [f"{example().id}: step {step}/12" for step in (10, 12)]
    assert f"loss {found.losses[-1]:.4f}, " in lines[-1]


def test_gcg_restores_training_mode() -> None:
    model, tokenizer = make("bias")
    model.train()
    search(model, tokenizer, num_steps=1)
    assert model.training
    assert all(p.grad is None for p in model.parameters())


def test_gcg_with_injection_carrier_states_it() -> None:
    model, tokenizer = make("bias")
    content = search(model, tokenizer, num_steps=1, carrier="injection").messages[-1]["content"]
    assert content.startswith(f"{example().request} {example().injection()} ")


@pytest.mark.parametrize(
    "options, match",
    [
        ({"wanted": ""}, "`wanted`: expected the reply that the attacker wants, got ''"),
        ({"success": "..."}, "`success`: expected a text with at least one word"),
        ({"num_steps": 0}, "`num_steps`: expected a whole number >= 1, got 0"),
        ({"search_width": 1.5}, "`search_width`: expected a whole number >= 1, got 1.5"),
        ({"topk": True}, "`topk`: expected a whole number >= 1, got True"),
        ({"buffer_size": -1}, "`buffer_size`: expected a whole number >= 0, got -1"),
        ({"n_replace": 7}, "`n_replace`: expected at most the slot's 6 tokens, got 7"),
        ({"objective": "dpo"}, "`objective`: expected one of"),
        ({"seed": 0.5}, "`seed`: expected a whole number or a text, got 0.5"),
        ({"length": 3000}, "`length`: expected at most 2048 tokens .* with a slot of 3000"),
        ({"place": "middle"}, "`place`: expected one of"),
    ],
)
def test_gcg_with_bad_arguments_names_them(options: dict[str, Any], match: str) -> None:
    model, tokenizer = make("bias")
    with pytest.raises(ValueError, match=match):
        search(model, tokenizer, **options)


def test_gcg_on_benign_example_raises() -> None:
    model, tokenizer = make(None)
    benign = dataclasses.replace(example(), kind="benign", wanted="")
    with pytest.raises(ValueError, match=r"`wanted`: .* is benign; only protected ones have it"):
        search(model, tokenizer, example=benign)


@pytest.mark.parametrize(
    "name, parameters",
    [
        ("gcg", {"num_steps": 2, "search_width": 8, "topk": 8, "length": 4}),
        ("beam", {"length": 2, "beams": 2, "branches": 3}),
        ("soft-prompt", {"num_steps": 2, "length": 4}),
    ],
)
def test_attack_with_gradient_config_returns_outcomes(name: str, parameters: dict[str, Any]) -> None:
    model, tokenizer = make("channel")
    config = ATTACKS[name](**parameters, max_new_tokens=6)
    result = attack(model, tokenizer, [example(), example("tool")], config, check_goal=False)
    assert result.complete
    assert len(result.outcomes) == 2
    for outcome in result.outcomes:
        assert outcome.typed is (name != "soft-prompt")
        assert outcome.losses[-1] <= outcome.losses[0]
        assert outcome.n_queries > 2
