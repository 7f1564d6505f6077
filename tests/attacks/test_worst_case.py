"""The per-sample worst case, its bound with what nobody can type, and success along a parameter."""

from __future__ import annotations

from collections.abc import Mapping

from rolesafe.attacks import ATTACKS, AttackResult, Outcome, Rate, suite
from rolesafe.evaluation.resistance import Resistance, resistance, worst_case
from rolesafe.tasks import generate
from tests.attacks.stubs import Scripted, make_model, make_tokenizer


def result(name: str, won: Mapping[str, bool], seed: int = 0, **parameters: object) -> AttackResult:
    outcomes = tuple(
        Outcome(id=key, family="access", messages=(), reply="", success=value, typed=ATTACKS[name].typed)
        for key, value in won.items()
    )
    config = ATTACKS[name](**parameters, seed=seed)
    return AttackResult(config=config, goal=None, outcomes=outcomes, failed=(("z", "out of memory"),))


RESULTS = (
    result("none", {"a": True, "b": False, "c": False}),
    result("dilution", {"a": False, "b": False}),
    result("gcg", {"a": False, "b": True}),
    result("prefill", {"a": False, "b": False, "c": True}),
    result("soft-prompt", {"a": True, "b": False, "c": False}),
)


def test_the_worst_case_is_over_what_can_be_typed() -> None:
    assert worst_case(RESULTS) == Rate(1, 2)  # b by gcg; c was not attacked with everything
    assert worst_case(RESULTS, typed_only=False) == Rate(2, 2)
    found = Resistance(results=RESULTS, complete=True)
    assert found.worst_case == Rate(1, 2)
    assert found.bound == Rate(2, 2)
    assert ("gcg" in found.failed[2][0], found.failed[2][1:]) == (True, ("z", "out of memory"))


def test_without_anything_typed_nothing_is_claimed() -> None:
    assert worst_case(RESULTS[3:]) == Rate(0, 0)
    assert worst_case(RESULTS[:1], typed_only=False) == Rate(0, 0)


def test_the_bound_is_never_lower() -> None:
    model = make_model(positions=2000)
    attacks = suite(["none", "dilution", "prefill"], quick=True, max_new_tokens=4)
    found = resistance(model, make_tokenizer(), generate("test", 12, 0), attacks)
    assert found.worst_case.n == found.bound.n == 6
    assert found.bound.k >= found.worst_case.k


def test_a_suite_of_searches_goes_on_after_an_interruption() -> None:
    examples = generate("test", 12, 0)
    attacks = suite(["dilution", "best-of-n"], quick=True, batch_size=6, max_new_tokens=4)
    whole = resistance(Scripted(lambda prompt: "Done."), make_tokenizer(), examples, attacks)
    for at in (0, 2, 5, 9):
        part = resistance(Scripted(lambda prompt: "Done.", fail_at=at), make_tokenizer(), examples, attacks)
        assert not part.complete
        again = resistance(Scripted(lambda prompt: "Done."), make_tokenizer(), examples, attacks, done=part.results)
        assert again == whole
