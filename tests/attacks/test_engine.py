"""The engine of `attack`: searches, lack of memory, interruptions, and bad input."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

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
    SearchAttackConfig,
    SearchContext,
    attack,
    attackable,
    replies,
)
from rolesafe.attacks.memory import Batches, OutOfMemoryError, is_out_of_memory
from rolesafe.tasks import Example, generate
from tests.attacks.stubs import Scripted, make_model, make_tokenizer

ALL = generate("test", 24, 0)
EXAMPLES = attackable(ALL)
TOKENIZER = make_tokenizer()
CUDA_SAYS = "CUDA out of memory. Tried to allocate 2.00 GiB.\nGPU 0 has a total capacity of 1 GiB"


def found(example: Example, text: str = "Done.", **changes: Any) -> Found:
    messages = example.with_target(f"{example.request} {text}")
    return Found(
        **{"messages": messages, "reply": None, "n_queries": 7, "n_steps": 3, "losses": (2.0, 1.0, 0.5), **changes}
    )


@pytest.fixture
def register(monkeypatch: pytest.MonkeyPatch) -> Callable[..., AttackConfig]:
    """Registers a search as the attack "mine" and returns its configuration."""

    def add(search: Callable[..., Found], *, typed: bool = True, **settings: Any) -> AttackConfig:
        @dataclass(frozen=True, kw_only=True)
        class MineConfig(SearchAttackConfig):
            name = "mine"
            grid = ({"budget": 5},)
            budget: int = 5

            def search(self, context: SearchContext) -> Found:
                return search(context)

        MineConfig.typed = typed
        monkeypatch.setitem(ATTACKS, "mine", MineConfig)
        return MineConfig(**{"batch_size": 8, "max_new_tokens": 12, **settings})

    return add


def run(model: Any, config: AttackConfig, goal: str | None = None, **options: Any) -> AttackResult:
    return attack(model, TOKENIZER, ALL, config, goal=goal, **{"check_goal": False, **options})


def giving_in_to(text: str) -> Callable[[str], str]:
    def answer(prompt: str) -> str:
        example = next(e for e in EXAMPLES if e.messages[0]["content"].replace(".", " .") in prompt)
        return f"It is {example.violation}." if text in prompt else "Done."

    return answer


class Tight(torch.nn.Module):
    """Scripted, but only `room` conversations fit into memory; none of those with `heavy` in them."""

    def __init__(self, room: int, heavy: str = "nowhere", error: type[Exception] = RuntimeError) -> None:
        super().__init__()
        self.inner = Scripted(giving_in_to("Done"))
        self.room, self.heavy, self.error = room, heavy, error
        self.sizes: list[int] = []

    def generate(self, input_ids: torch.Tensor, **keywords: Any) -> torch.Tensor:
        self.sizes.append(len(input_ids))
        if len(input_ids) > self.room or any(self.heavy in t for t in TOKENIZER.batch_decode(input_ids)):
            raise self.error(CUDA_SAYS)
        return self.inner.generate(input_ids=input_ids, **keywords)


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


# --------------------------------------------------------------------------------------------------------------- memory


@pytest.mark.parametrize("error", [RuntimeError, torch.cuda.OutOfMemoryError, MemoryError])
def test_memory_error_halves_batches(error: type[Exception]) -> None:
    config = DilutionConfig(batch_size=12, max_new_tokens=12)
    model = Tight(3, error=error)
    result = run(model, config)
    assert model.sizes == [12, 6, 3, 3, 3, 3]
    assert result == run(Scripted(giving_in_to("Done")), config)
    assert not result.failed


def test_memory_error_in_batch_of_one_is_failed() -> None:
    heavy = EXAMPLES[3]
    config = DilutionConfig(batch_size=4, max_new_tokens=12)
    result = run(Tight(4, heavy.messages[0]["content"].replace(".", " .")), config)
    reason = "out of memory with a batch of 1: CUDA out of memory. Tried to allocate 2.00 GiB."
    assert result.failed == ((heavy.id, reason),)
    assert [o.id for o in result.outcomes] == [e.id for e in EXAMPLES if e is not heavy]
    assert result.complete
    assert AttackResult.from_dict(json.loads(json.dumps(result.to_dict()))) == result
    again = run(Scripted(giving_in_to("Done")), config, done=result)  # on a machine with more memory
    assert again == run(Scripted(giving_in_to("Done")), config)


def test_memory_error_in_search_halves_its_batches(register: Callable[..., AttackConfig]) -> None:
    sizes: list[int] = []

    def search(context: SearchContext) -> Found:
        sizes.append(context.batch_size)
        if context.batch_size > 2 or context.example is EXAMPLES[1]:
            raise torch.cuda.OutOfMemoryError(CUDA_SAYS)
        return found(context.example)

    result = run(Scripted(lambda prompt: "Done."), register(search))
    assert sizes[:5] == [8, 4, 2, 2, 1]
    assert set(sizes[5:]) == {1}
    assert [name for name, _ in result.failed] == [EXAMPLES[1].id]
    assert len(result.outcomes) == len(EXAMPLES) - 1


def test_memory_error_in_clean_check_halves_batches() -> None:
    config = DilutionConfig(batch_size=12, max_new_tokens=12)
    assert run(Tight(2), config, check_goal=True).rate.n == len(EXAMPLES)


def test_other_runtime_errors_are_raised() -> None:
    class Broken(Tight):
        def generate(self, input_ids: torch.Tensor, **keywords: Any) -> torch.Tensor:
            raise RuntimeError("shapes do not fit")

    with pytest.raises(RuntimeError, match="shapes do not fit"):
        run(Broken(4), DilutionConfig())


def test_is_out_of_memory_knows_allocator_messages() -> None:
    assert is_out_of_memory(MemoryError())
    assert is_out_of_memory(RuntimeError(CUDA_SAYS))
    assert is_out_of_memory(RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"))
    assert not is_out_of_memory(RuntimeError("memory layout"))


def test_memory_error_of_torch_halves_batches() -> None:
    """A tensor of 4 EiB: what torch itself raises is understood."""

    def ask(size: int) -> int:
        if size > 2:
            torch.empty(2**62, dtype=torch.uint8)
        return size

    assert Batches(8).run(ask) == 2
    batches = Batches(8)
    assert batches.run(ask, 5) == 2
    with pytest.raises(OutOfMemoryError):
        Batches(1).run(lambda size: torch.empty(2**62, dtype=torch.uint8))


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
    with pytest.raises(ValueError, match="unknown role 'tool'"):
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
