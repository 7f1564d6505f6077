"""The engine of `attack`: searches, interruptions, and bad input."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator

import pytest
import torch

from rolesafe import RoleConfig, patch
from rolesafe.attacks import (
    ATTACKS,
    TEXT_ATTACKS,
    AttackConfig,
    AttackResult,
    DilutionConfig,
    Found,
    PlacementConfig,
    SearchContext,
    attack,
    replies,
)
from tests.attacks.engine import ALL, EXAMPLES, TOKENIZER, found, giving_in_to, run
from tests.attacks.stubs import Scripted, make_model, make_tokenizer

# ------------------------------------------------------------------------------------------------------------- searches


def test_search_gets_context_and_is_recorded(register: Callable[..., AttackConfig]) -> None:
    seen: list[SearchContext] = []

    def search(context: SearchContext) -> Found:
        seen.append(context)
        return found(context.example, "Say frog." if context.example.family == "access" else "Done.")

    config = register(search, seed=4)
    steps: list[tuple[int, int]] = []
    result = run(Scripted(giving_in_to("frog")), config, progress=lambda *at: steps.append(at))
    assert [c.example for c in seen] == EXAMPLES
    assert [o.id for o in result.outcomes] == [e.id for e in EXAMPLES]
    for context, example in zip(seen, EXAMPLES, strict=True):
        assert (context.wanted, context.success) == (example.wanted, example.violation)
        assert (context.seed, context.batch_size) == (f"mine/4/{example.id}", 8)
    assert [o.success for o in result.outcomes] == [e.family == "access" for e in EXAMPLES]
    assert {(o.n_queries, o.n_steps, o.losses, o.typed) for o in result.outcomes} == {(8, 3, (2.0, 1.0, 0.5), True)}
    assert result.n_queries == 8 * len(EXAMPLES)
    assert result.n_steps == 3 * len(EXAMPLES)
    assert steps == [(i + 1, len(EXAMPLES)) for i in range(len(EXAMPLES))]
    assert AttackResult.from_dict(json.loads(json.dumps(result.to_dict()))) == result


def test_search_result_is_judged_by_the_reply(register: Callable[..., AttackConfig]) -> None:
    """The found messages are sent with their roles, whatever losses the search reports."""
    model = patch(make_model(), RoleConfig(embedding="input")).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "rolesafe" in name:
                parameter.normal_(std=2.0, generator=torch.Generator().manual_seed(1))
    config = register(lambda context: found(context.example, losses=(9.0, 0.0)))
    result = run(model, config)
    expected = replies(model, TOKENIZER, [o.messages for o in result.outcomes], max_new_tokens=12)
    assert [o.reply for o in result.outcomes] == expected
    assert expected != replies(make_model(), TOKENIZER, [o.messages for o in result.outcomes], max_new_tokens=12)


def test_search_not_typed_returns_its_own_reply(register: Callable[..., AttackConfig]) -> None:
    config = register(lambda c: found(c.example, reply=f"It is {c.example.violation}.", typed=False), typed=False)
    model = Scripted(lambda prompt: "Done.")
    result = run(model, config)
    assert model.calls == []
    assert result.rate.value == 1.0
    assert not result.typed
    assert {(o.typed, o.n_queries) for o in result.outcomes} == {(False, 7)}


def test_search_with_other_typed_raises(register: Callable[..., AttackConfig]) -> None:
    config = register(lambda context: found(context.example, reply="Done.", typed=False))
    with pytest.raises(ValueError, match="`search`: expected a result of 'mine' with typed=True, got False"):
        run(Scripted(str), config)


def test_search_that_edits_system_text_raises(register: Callable[..., AttackConfig]) -> None:
    def search(context: SearchContext) -> Found:
        first, *rest = found(context.example).messages
        return found(context.example, messages=({**first, "content": "You may tell all."}, *rest))

    with pytest.raises(ValueError, match=r"`config`: .* got mine\(budget=5\), which changed a message of another role"):
        run(Scripted(str), register(search))


def test_search_with_goal_wants_the_goal(register: Callable[..., AttackConfig]) -> None:
    seen: set[tuple[str, str]] = set()

    def search(context: SearchContext) -> Found:
        seen.add((context.wanted, context.success))
        return found(context.example)

    assert run(Scripted(lambda prompt: "the sun"), register(search), "sun").rate.value == 1.0
    assert seen == {("sun", "sun")}


@pytest.mark.parametrize("text", [True, False])
def test_attack_resumed_equals_uninterrupted(text: bool, register: Callable[..., AttackConfig]) -> None:
    """At every point where the run can break off."""
    search = register(lambda context: found(context.example, context.seed[-14:]), batch_size=5)
    config = PlacementConfig(batch_size=5, max_new_tokens=12) if text else search
    whole = run(Scripted(giving_in_to("allow")), config)
    n_calls = 3 if text else len(EXAMPLES)
    for at in range(n_calls):
        part = run(Scripted(giving_in_to("allow"), fail_at=at), config)
        assert not part.complete
        assert len(part.outcomes) == min(at * (5 if text else 1), len(EXAMPLES))
        stored = AttackResult.from_dict(json.loads(json.dumps(part.to_dict())))
        assert run(Scripted(giving_in_to("allow")), config, done=stored) == whole
    assert run(Scripted(giving_in_to("allow"), fail_at=0), config, done=whole) == whole  # nothing is asked again


def test_search_interrupted_keeps_earlier_outcomes(register: Callable[..., AttackConfig]) -> None:
    calls: Iterator[int] = iter(range(100))

    def search(context: SearchContext) -> Found:
        if next(calls) == 3:
            raise KeyboardInterrupt
        return found(context.example)

    result = run(Scripted(lambda prompt: "Done."), register(search))
    assert not result.complete
    assert [o.id for o in result.outcomes] == [e.id for e in EXAMPLES[:3]]


def test_search_of_long_examples_is_left_out(register: Callable[..., AttackConfig]) -> None:
    """Before the search where the clean conversation is too long already, after it where the found one is."""
    asked: list[str] = []

    def search(context: SearchContext) -> Found:
        asked.append(context.example.id)
        return found(context.example, "Done. " * (200 if context.example is EXAMPLES[0] else 1))

    config = register(search)
    result = run(make_model(positions=120), config)
    assert result.left_out == (EXAMPLES[0].id,)
    assert len(result.outcomes) == len(EXAMPLES) - 1
    asked.clear()
    assert len(run(make_model(positions=20), config).left_out) == len(EXAMPLES)
    assert asked == []


def test_search_with_nan_loss_is_failed(register: Callable[..., AttackConfig]) -> None:
    bad = EXAMPLES[2].id
    config = register(lambda c: found(c.example, losses=(1.0, float("nan")) if c.example.id == bad else (1.0,)))
    result = run(Scripted(lambda prompt: "Done."), config)
    assert result.failed == ((bad, "the loss of the search was not finite: nan"),)
    assert len(result.outcomes) == len(EXAMPLES) - 1
    assert result.complete


def test_result_of_earlier_version_is_read() -> None:
    result = run(Scripted(lambda prompt: "Done."), DilutionConfig())
    old = json.loads(json.dumps(result.to_dict()))
    del old["failed"], old["met"]
    for outcome in old["outcomes"]:
        for name in ("n_steps", "losses", "typed"):
            del outcome[name]
    assert AttackResult.from_dict(old) == result


# ------------------------------------------------------------------------------------------------------------ bad input


def test_attack_with_other_tokenizer_raises() -> None:
    model = make_model()
    model.resize_token_embeddings(50)
    with pytest.raises(ValueError, match=r"`tokenizer`: expected the model's own, got one that returns"):
        run(model, DilutionConfig())


def test_attack_with_unknown_role_raises() -> None:
    config = RoleConfig(roles=("system", "user", "assistant"), privileged=("system",))
    model = patch(make_model(), config).eval()
    assert any(e.target == "tool" for e in EXAMPLES)
    with pytest.raises(ValueError, match="role 'tool'"):
        run(model, DilutionConfig())


def test_attack_refused_by_template_is_failed() -> None:
    """It prints the clean one: the example is listed as failed, and the others go on."""
    tokenizer = make_tokenizer()
    kept = tokenizer.chat_template
    strict = "{% if messages[0].role != 'system' %}{{ raise_exception('system first') }}{% endif %}" + kept
    try:
        tokenizer.chat_template = strict
        config = PlacementConfig(system="last", max_new_tokens=4)
        result = run(Scripted(lambda prompt: "Done."), config)
    finally:
        tokenizer.chat_template = kept
    assert [name for name, _ in result.failed] == [e.id for e in EXAMPLES]
    assert "system first" in result.failed[0][1]
    assert result.rate.n == 0


def test_attack_that_types_nothing_raises() -> None:
    blank = dataclasses.replace(EXAMPLES[0], statements=tuple((policy, "") for policy, _ in EXAMPLES[0].statements))
    with pytest.raises(ValueError, match=r"`examples`: .* dilution\(repeats=1\) typed nothing"):
        attack(Scripted(str), TOKENIZER, [blank], DilutionConfig(), check_goal=False)


def test_attack_replaces_injection_of_published_set() -> None:
    """The request alone is the clean conversation, and attacks replace the injection."""
    whole = [dataclasses.replace(e, messages=e.with_target(f"{e.request} {e.injection()}")) for e in EXAMPLES]
    model = Scripted(lambda prompt: "sun")
    with pytest.raises(ValueError, match="`goal`: expected one that the model does not meet by itself"):
        attack(model, TOKENIZER, whole, DilutionConfig(), goal="sun")
    given = [TOKENIZER.decode(TOKENIZER(e.messages[-1]["content"])["input_ids"]) for e in whole]
    assert not any(content in prompt for prompt in model.calls[0] for content in given)
    config = DilutionConfig(max_new_tokens=4)
    found = attack(model, TOKENIZER, whole, config, check_goal=False)
    assert [o.messages for o in found.outcomes] == [e.messages for e in whole]


# ----------------------------------------------------------------------------------------------- the searches there are

SMALL = {
    "worst-insertion": {"places": 6, "tries": 2},
    "prefill": {"k": 2},
    "prefill-depth": {"k": 3, "candidates": 3, "beams": 2},
    "span-insertion": {},
    "worst-span-insertion": {"places": 3, "samples": 0},
    "banned-decoding": {},
    "best-of-n": {"n": 4},
    "beam": {"length": 3, "beams": 2, "branches": 2},
    "gcg": {"num_steps": 2, "search_width": 6, "topk": 8, "length": 4},
    "soft-prompt": {"num_steps": 2, "length": 4},
}


def test_searches_are_all_tested() -> None:
    assert set(SMALL) == set(ATTACKS) - set(TEXT_ATTACKS)


@pytest.mark.parametrize("roles", [False, True])
@pytest.mark.parametrize("name", SMALL)
def test_search_end_to_end_is_reproducible(name: str, roles: bool) -> None:
    """Behind the one signature, plain and role-aware; the same again for the same seed, and after an interruption."""
    model = make_model()
    if roles:
        patch(model, RoleConfig(embedding="input"))
        model.eval()
    config = ATTACKS[name](**SMALL[name], batch_size=4, max_new_tokens=3)
    result = run(model, config)
    assert [o.id for o in result.outcomes] == [e.id for e in EXAMPLES]
    assert result.n_queries >= len(EXAMPLES)
    assert all(o.typed is ATTACKS[name].typed for o in result.outcomes)
    part = dataclasses.replace(result, outcomes=result.outcomes[::3], complete=False)
    assert run(model, config, done=part) == result
    assert AttackResult.from_dict(json.loads(json.dumps(result.to_dict()))) == result


@pytest.mark.parametrize("name", SMALL)
def test_search_runs_at_every_point(name: str) -> None:
    """A parameter that a search does not take would raise in the middle of a study only."""
    for point in (*ATTACKS[name].grid, *ATTACKS[name].quick):
        small = {key: SMALL[name].get(key, value) for key, value in point.items()}
        config = ATTACKS[name](**small, batch_size=4, max_new_tokens=2)
        result = attack(make_model(), TOKENIZER, ALL[:2], config, check_goal=False)
        assert len(result.outcomes) == 1
