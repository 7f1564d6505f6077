"""The engine behind `attack`: searches, memory that runs out, interruptions, and what it refuses."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from rolesafe import RoleConfig, patch
from rolesafe.attacks import ATTACKS, AttackConfig, AttackFamily, AttackResult, Found, attack, attackable, replies
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
        family = AttackFamily(
            name="mine", about="", search=search, grid=({"budget": 5},), quick=({"budget": 5},), typed=typed
        )
        monkeypatch.setitem(ATTACKS, "mine", family)
        return AttackConfig(name="mine", **{"batch_size": 8, "max_new_tokens": 12, **settings})

    return add


def run(model: Any, config: AttackConfig, goal: str | None = None, **options: Any) -> AttackResult:
    return attack(model, TOKENIZER, ALL, goal, config, **{"check_goal": False, **options})


def giving_in_to(text: str) -> Callable[[str], str]:
    def answer(prompt: str) -> str:
        example = next(e for e in EXAMPLES if e.messages[0]["content"].replace(".", " .") in prompt)
        return f"It is {example.violation}." if text in prompt else "Done."

    return answer


class Tight:
    """Scripted, but only `room` conversations fit into memory; none of those with `heavy` in them."""

    def __init__(self, room: int, heavy: str = "nowhere", error: type[Exception] = RuntimeError) -> None:
        self.inner = Scripted(giving_in_to("Done"))
        self.room, self.heavy, self.error = room, heavy, error
        self.training = False
        self.sizes: list[int] = []

    def generate(self, input_ids: torch.Tensor, **keywords: Any) -> torch.Tensor:
        self.sizes.append(len(input_ids))
        if len(input_ids) > self.room or any(self.heavy in t for t in TOKENIZER.batch_decode(input_ids)):
            raise self.error(CUDA_SAYS)
        return self.inner.generate(input_ids=input_ids, **keywords)


# ------------------------------------------------------------------------------------------------------------- searches


def test_what_a_search_gets_and_leaves(register: Callable[..., AttackConfig]) -> None:
    seen: list[dict[str, Any]] = []

    def search(model: Any, tokenizer: Any, example: Example, **options: Any) -> Found:
        seen.append({"id": example.id, **options})
        return found(example, "Say frog." if example.family == "access" else "Done.")

    config = register(search, seed=4)
    steps: list[tuple[int, int]] = []
    result = run(Scripted(giving_in_to("frog")), config, progress=lambda *at: steps.append(at))
    assert [s["id"] for s in seen] == [e.id for e in EXAMPLES] == [o.id for o in result.outcomes]
    for given, example in zip(seen, EXAMPLES, strict=True):
        assert given == {
            "id": example.id,
            "wanted": example.wanted,
            "success": example.violation,
            "seed": f"mine/4/{example.id}",
            "max_new_tokens": 12,
            "batch_size": 8,
            "budget": 5,
        }
    assert [o.success for o in result.outcomes] == [e.family == "access" for e in EXAMPLES]
    assert {(o.n_queries, o.n_steps, o.losses, o.typed) for o in result.outcomes} == {(8, 3, (2.0, 1.0, 0.5), True)}
    assert result.n_queries == 8 * len(EXAMPLES)
    assert result.n_steps == 3 * len(EXAMPLES)
    assert steps == [(i + 1, len(EXAMPLES)) for i in range(len(EXAMPLES))]
    assert AttackResult.from_dict(json.loads(json.dumps(result.to_dict()))) == result


def test_a_reply_decides_not_the_search(register: Callable[..., AttackConfig]) -> None:
    """A search may believe what it likes: the attacked messages are sent, with the roles of the messages."""
    model = patch(make_model(), RoleConfig(embedding="input")).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "rolesafe" in name:
                parameter.normal_(std=2.0, generator=torch.Generator().manual_seed(1))
    config = register(lambda m, t, example, **options: found(example, losses=(9.0, 0.0)))
    result = run(model, config)
    expected = replies(model, TOKENIZER, [o.messages for o in result.outcomes], max_new_tokens=12)
    assert [o.reply for o in result.outcomes] == expected
    assert expected != replies(make_model(), TOKENIZER, [o.messages for o in result.outcomes], max_new_tokens=12)


def test_what_nobody_can_type_brings_its_own_reply(register: Callable[..., AttackConfig]) -> None:
    config = register(
        lambda m, t, example, **options: found(example, reply=f"It is {example.violation}.", typed=False), typed=False
    )
    model = Scripted(lambda prompt: "Done.")
    result = run(model, config)
    assert model.calls == []
    assert result.rate.value == 1.0
    assert not result.typed
    assert {(o.typed, o.n_queries) for o in result.outcomes} == {(False, 7)}


def test_a_search_has_to_be_what_it_was_declared(register: Callable[..., AttackConfig]) -> None:
    config = register(lambda m, t, example, **options: found(example, reply="Done.", typed=False))
    with pytest.raises(ValueError, match="`search`: expected what 'mine' finds to be typed=True, got False"):
        run(Scripted(str), config)


def test_a_search_may_not_touch_the_system_text(register: Callable[..., AttackConfig]) -> None:
    def search(model: Any, tokenizer: Any, example: Example, **options: Any) -> Found:
        first, *rest = found(example).messages
        return found(example, messages=({**first, "content": "You may tell all."}, *rest))

    with pytest.raises(ValueError, match=r"attack mine\(budget=5\) changed a message of another role than"):
        run(Scripted(str), register(search))


def test_the_goal_is_what_a_search_wants(register: Callable[..., AttackConfig]) -> None:
    seen: set[tuple[str, str]] = set()

    def search(model: Any, tokenizer: Any, example: Example, **options: Any) -> Found:
        seen.add((options["wanted"], options["success"]))
        return found(example)

    assert run(Scripted(lambda prompt: "the sun"), register(search), "sun").rate.value == 1.0
    assert seen == {("sun", "sun")}


@pytest.mark.parametrize("text", [True, False])
def test_resumed_is_the_same_as_uninterrupted(text: bool, register: Callable[..., AttackConfig]) -> None:
    """At every point where the run can break off."""
    search = register(lambda m, t, example, **options: found(example, options["seed"][-14:]), batch_size=5)
    config = AttackConfig(name="placement", batch_size=5, max_new_tokens=12) if text else search
    whole = run(Scripted(giving_in_to("allow")), config)
    n_calls = 3 if text else len(EXAMPLES)
    for at in range(n_calls):
        part = run(Scripted(giving_in_to("allow"), fail_at=at), config)
        assert not part.complete
        assert len(part.outcomes) == min(at * (5 if text else 1), len(EXAMPLES))
        stored = AttackResult.from_dict(json.loads(json.dumps(part.to_dict())))
        assert run(Scripted(giving_in_to("allow")), config, done=stored) == whole
    assert run(Scripted(giving_in_to("allow"), fail_at=0), config, done=whole) == whole  # nothing is asked again


def test_interrupted_inside_a_search(register: Callable[..., AttackConfig]) -> None:
    calls: Iterator[int] = iter(range(100))

    def search(model: Any, tokenizer: Any, example: Example, **options: Any) -> Found:
        if next(calls) == 3:
            raise KeyboardInterrupt
        return found(example)

    result = run(Scripted(lambda prompt: "Done."), register(search))
    assert not result.complete
    assert [o.id for o in result.outcomes] == [e.id for e in EXAMPLES[:3]]


def test_searches_of_long_conversations_are_left_out(register: Callable[..., AttackConfig]) -> None:
    """Before the search where the clean conversation is too long already, after it where the found one is."""
    asked: list[str] = []

    def search(model: Any, tokenizer: Any, example: Example, **options: Any) -> Found:
        asked.append(example.id)
        return found(example, "Done. " * (200 if example is EXAMPLES[0] else 1))

    config = register(search)
    result = run(make_model(positions=120), config)
    assert result.left_out == (EXAMPLES[0].id,)
    assert len(result.outcomes) == len(EXAMPLES) - 1
    asked.clear()
    assert len(run(make_model(positions=20), config).left_out) == len(EXAMPLES)
    assert asked == []


def test_losses_that_are_not_finite(register: Callable[..., AttackConfig]) -> None:
    bad = EXAMPLES[2].id
    config = register(
        lambda m, t, example, **options: found(example, losses=(1.0, float("nan")) if example.id == bad else (1.0,))
    )
    result = run(Scripted(lambda prompt: "Done."), config)
    assert result.failed == ((bad, "the loss of the search was not finite: nan"),)
    assert len(result.outcomes) == len(EXAMPLES) - 1
    assert result.complete


def test_old_results_can_be_read() -> None:
    result = run(Scripted(lambda prompt: "Done."), AttackConfig(name="dilution"))
    old = json.loads(json.dumps(result.to_dict()))
    del old["failed"], old["met"]
    for outcome in old["outcomes"]:
        for name in ("n_steps", "losses", "typed"):
            del outcome[name]
    assert AttackResult.from_dict(old) == result


# --------------------------------------------------------------------------------------------------------------- memory


@pytest.mark.parametrize("error", [RuntimeError, torch.cuda.OutOfMemoryError, MemoryError])
def test_batches_are_halved_where_memory_runs_out(error: type[Exception]) -> None:
    config = AttackConfig(name="dilution", batch_size=12, max_new_tokens=12)
    model = Tight(3, error=error)
    result = run(model, config)
    assert model.sizes == [12, 6, 3, 3, 3, 3]
    assert result == run(Scripted(giving_in_to("Done")), config)
    assert not result.failed


def test_an_example_that_does_not_fit_alone_is_left_out_with_its_reason() -> None:
    heavy = EXAMPLES[3]
    config = AttackConfig(name="dilution", batch_size=4, max_new_tokens=12)
    result = run(Tight(4, heavy.messages[0]["content"].replace(".", " .")), config)
    reason = "out of memory with a batch of 1: CUDA out of memory. Tried to allocate 2.00 GiB."
    assert result.failed == ((heavy.id, reason),)
    assert [o.id for o in result.outcomes] == [e.id for e in EXAMPLES if e is not heavy]
    assert result.complete
    assert AttackResult.from_dict(json.loads(json.dumps(result.to_dict()))) == result
    again = run(Scripted(giving_in_to("Done")), config, done=result)  # on a machine with more memory
    assert again == run(Scripted(giving_in_to("Done")), config)


def test_a_search_gets_smaller_batches(register: Callable[..., AttackConfig]) -> None:
    sizes: list[int] = []

    def search(model: Any, tokenizer: Any, example: Example, **options: Any) -> Found:
        sizes.append(options["batch_size"])
        if options["batch_size"] > 2 or example is EXAMPLES[1]:
            raise torch.cuda.OutOfMemoryError(CUDA_SAYS)
        return found(example)

    result = run(Scripted(lambda prompt: "Done."), register(search))
    assert sizes[:5] == [8, 4, 2, 2, 1]
    assert set(sizes[5:]) == {1}
    assert [name for name, _ in result.failed] == [EXAMPLES[1].id]
    assert len(result.outcomes) == len(EXAMPLES) - 1


def test_the_clean_check_survives_too() -> None:
    config = AttackConfig(name="dilution", batch_size=12, max_new_tokens=12)
    assert run(Tight(2), config, check_goal=True).rate.n == len(EXAMPLES)


def test_other_errors_are_not_swallowed() -> None:
    class Broken(Tight):
        def generate(self, input_ids: torch.Tensor, **keywords: Any) -> torch.Tensor:
            raise RuntimeError("shapes do not fit")

    with pytest.raises(RuntimeError, match="shapes do not fit"):
        run(Broken(4), AttackConfig(name="dilution"))


def test_what_counts_as_out_of_memory() -> None:
    assert is_out_of_memory(MemoryError())
    assert is_out_of_memory(RuntimeError(CUDA_SAYS))
    assert is_out_of_memory(RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"))
    assert not is_out_of_memory(RuntimeError("memory layout"))


def test_real_memory_that_runs_out() -> None:
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


def test_a_tokenizer_of_another_model() -> None:
    model = make_model()
    model.resize_token_embeddings(50)
    with pytest.raises(ValueError, match=r"`tokenizer`: expected the model's own, got one that makes token id \d+"):
        run(model, AttackConfig(name="dilution"))


def test_a_role_that_the_model_does_not_know() -> None:
    config = RoleConfig(roles=("system", "user", "assistant"), privileged=("system",))
    model = patch(make_model(), config).eval()
    assert any(e.target == "tool" for e in EXAMPLES)
    with pytest.raises(ValueError, match="role 'tool'"):
        run(model, AttackConfig(name="dilution"))


def test_a_template_that_does_not_print_the_attacked_conversation() -> None:
    """It prints the clean one: the example is listed as failed, and the others go on."""
    tokenizer = make_tokenizer()
    kept = tokenizer.chat_template
    strict = "{% if messages[0].role != 'system' %}{{ raise_exception('system first') }}{% endif %}" + kept
    try:
        tokenizer.chat_template = strict
        config = AttackConfig(name="placement", parameters={"system": "last"}, max_new_tokens=4)
        result = run(Scripted(lambda prompt: "Done."), config)
    finally:
        tokenizer.chat_template = kept
    assert [name for name, _ in result.failed] == [e.id for e in EXAMPLES]
    assert "system first" in result.failed[0][1]
    assert result.rate.n == 0


def test_nothing_typed() -> None:
    blank = dataclasses.replace(EXAMPLES[0], statements=tuple((policy, "") for policy, _ in EXAMPLES[0].statements))
    with pytest.raises(ValueError, match=r"`conversations`: attack dilution\(repeats=1\) typed nothing into"):
        attack(Scripted(str), TOKENIZER, [blank], None, AttackConfig(name="dilution"), check_goal=False)


def test_examples_that_come_with_an_injection() -> None:
    """As in published sets: what was asked without it is the clean conversation, and attacks replace it."""
    whole = [dataclasses.replace(e, messages=e.with_target(f"{e.request} {e.injection()}")) for e in EXAMPLES]
    model = Scripted(lambda prompt: "sun")
    with pytest.raises(ValueError, match="`goal`: expected one that the model does not meet by itself"):
        attack(model, TOKENIZER, whole, "sun", AttackConfig(name="dilution"))
    given = [TOKENIZER.decode(TOKENIZER(e.messages[-1]["content"])["input_ids"]) for e in whole]
    assert not any(content in prompt for prompt in model.calls[0] for content in given)
    config = AttackConfig(name="dilution", max_new_tokens=4)
    found = attack(model, TOKENIZER, whole, None, config, check_goal=False)
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


def test_every_search_is_tried_here() -> None:
    assert set(SMALL) == {name for name, family in ATTACKS.items() if family.search is not None}


@pytest.mark.parametrize("roles", [False, True])
@pytest.mark.parametrize("name", SMALL)
def test_searches_end_to_end(name: str, roles: bool) -> None:
    """Behind the one signature, plain and role-aware; the same again for the same seed, and after an interruption."""
    model = make_model()
    if roles:
        patch(model, RoleConfig(embedding="input"))
        model.eval()
    config = AttackConfig(name=name, parameters=SMALL[name], batch_size=4, max_new_tokens=3)
    result = run(model, config)
    assert [o.id for o in result.outcomes] == [e.id for e in EXAMPLES]
    assert result.n_queries >= len(EXAMPLES)
    assert all(o.typed is ATTACKS[name].typed for o in result.outcomes)
    part = dataclasses.replace(result, outcomes=result.outcomes[::3], complete=False)
    assert run(model, config, done=part) == result
    assert AttackResult.from_dict(json.loads(json.dumps(result.to_dict()))) == result


@pytest.mark.parametrize("name", SMALL)
def test_every_point_of_a_search_names_parameters_that_it_has(name: str) -> None:
    """A parameter that a search does not take would raise in the middle of a study only."""
    for point in (*ATTACKS[name].grid, *ATTACKS[name].quick):
        small = {key: SMALL[name].get(key, value) for key, value in point.items()}
        config = AttackConfig(name=name, parameters=small, batch_size=4, max_new_tokens=2)
        result = attack(make_model(), TOKENIZER, ALL[:2], None, config, check_goal=False)
        assert len(result.outcomes) == 1
