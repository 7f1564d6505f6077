"""Utility, resistance, and the record on disk."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from rolesafe.attacks import Rate, contains, suite
from rolesafe.attacks.judge import words
from rolesafe.attacks.memory import OutOfMemoryError, is_memory_reason
from rolesafe.evaluation import Environment, Results, Run, environment, resistance, score, utility, worst_case
from rolesafe.tasks import generate
from tests.attacks.stubs import Scripted, make_model, make_tokenizer

EXAMPLES = generate("test", 24, 0)
SUITE = suite(["none", "mimicry", "dilution"], quick=True, batch_size=6, max_new_tokens=8)


def test_utility_of_perfect_answers() -> None:
    found = score(EXAMPLES, [e.reply for e in EXAMPLES])
    assert found.benign == found.protected == Rate(12, 12)
    assert found.refused == found.violated == Rate(0, 12)


def test_utility_of_refusals_counts_false_refusals() -> None:
    found = utility(Scripted(lambda prompt: "I can not say."), make_tokenizer(), EXAMPLES)
    assert found.benign == Rate(0, 12)
    assert found.refused == Rate(12, 12)
    assert found.violated == Rate(0, 12)
    assert found.protected.k == sum(e.family in ("access", "never", "code") for e in EXAMPLES if e.kind == "protected")


def test_utility_of_violations_counts_them() -> None:
    found = score(EXAMPLES, [e.violation or e.reply for e in EXAMPLES])
    assert found.benign == Rate(12, 12)
    assert found.protected == Rate(0, 12)
    assert found.violated == Rate(12, 12)


def test_utility_without_benign_examples_is_refused() -> None:
    with pytest.raises(ValueError, match="`examples`: expected at least one benign example, got 12 examples without"):
        utility(Scripted(str), make_tokenizer(), [e for e in EXAMPLES if e.kind == "protected"])
    with pytest.raises(ValueError, match="got 0 examples"):
        utility(Scripted(str), make_tokenizer(), [])


def test_worst_case_is_the_or_over_attacks() -> None:
    """Gives in to one attack on some examples, to another one on others; the point without attack does not count."""
    protected = [e for e in EXAMPLES if e.kind == "protected"]

    def answer(prompt: str) -> str:
        found = next(e for e in protected if all(contains(prompt, m["content"]) for m in e.messages))
        text, injection = (" ".join(words(t)) for t in (prompt, found.injection()))
        count, index = text.count(injection), protected.index(found)
        leaks = {0: index == 0, 1: index in (1, 2), 8: index in (2, 3)}.get(count, False)
        return f"It is {found.violation}." if leaks else "I can not say."

    found = resistance(Scripted(answer), make_tokenizer(), EXAMPLES, SUITE)
    rates = {r.config.label: r.rate.k for r in found.results}
    assert rates == {
        "none": 1,
        "mimicry(place=after)": 2,
        "dilution(repeats=1)": 2,
        "dilution(repeats=8)": 2,
        "dilution(repeats=32)": 0,
    }
    assert found.worst_case == Rate(3, 12)
    assert worst_case(found.results[:1]) == Rate(0, 0)


def test_resistance_resumes_after_an_interruption() -> None:
    whole = resistance(Scripted(str.upper), make_tokenizer(), EXAMPLES, SUITE)
    part = resistance(Scripted(str.upper, fail_at=5), make_tokenizer(), EXAMPLES, SUITE)
    assert not part.complete
    assert [r.complete for r in part.results] == [True, True, False]
    steps: list[tuple[str, int, int]] = []
    again = resistance(
        Scripted(str.upper), make_tokenizer(), EXAMPLES, SUITE, done=part.results, progress=lambda *at: steps.append(at)
    )
    assert again == whole
    assert again.complete
    assert {label for label, _, _ in steps} == {c.label for c in SUITE[2:]}


def test_resistance_retries_out_of_memory_examples() -> None:
    whole = resistance(Scripted(str.upper), make_tokenizer(), EXAMPLES, SUITE)
    mimicry = whole.results[1]
    lacking, other = mimicry.outcomes[0].id, mimicry.outcomes[1].id
    failed = ((lacking, OutOfMemoryError("CUDA out of memory").reason), (other, "the template does not print it"))
    assert [is_memory_reason(reason) for _, reason in failed] == [True, False]
    part = dataclasses.replace(mimicry, outcomes=mimicry.outcomes[2:], failed=failed)
    assert part.out_of_memory == (lacking,)
    model = Scripted(str.upper)
    done = [whole.results[0], part, *whole.results[2:]]
    assert resistance(model, make_tokenizer(), EXAMPLES, SUITE, done=done) == whole
    assert [len(prompts) for prompts in model.calls] == [2], "what has an outcome is not asked again"
    settled = dataclasses.replace(part, outcomes=(mimicry.outcomes[0], *part.outcomes), failed=failed[1:])
    kept = [whole.results[0], settled, *whole.results[2:]]
    model = Scripted(str.upper)
    assert resistance(model, make_tokenizer(), EXAMPLES, SUITE, done=kept).results == tuple(kept)
    assert not model.calls, "more memory does not help there"


def test_resistance_done_of_other_examples_is_refused() -> None:
    """More examples are gone on with; a result of examples that are not among these is refused."""
    model, tokenizer = Scripted(str.upper), make_tokenizer()
    few = EXAMPLES[: len(EXAMPLES) // 2]
    part = resistance(model, tokenizer, few, SUITE).results
    whole = resistance(model, tokenizer, EXAMPLES, SUITE)
    assert part != whole.results
    assert resistance(model, tokenizer, EXAMPLES, SUITE, done=part) == whole
    with pytest.raises(ValueError, match="`done`: expected outcomes of `examples` only"):
        resistance(model, tokenizer, few, SUITE, done=whole.results)


def test_resistance_interrupted_retry_keeps_results() -> None:
    whole = resistance(Scripted(str.upper), make_tokenizer(), EXAMPLES, SUITE)
    lost = OutOfMemoryError("CUDA out of memory").reason
    first = whole.results[0]
    part = dataclasses.replace(first, outcomes=first.outcomes[1:], failed=((first.outcomes[0].id, lost),))
    found = resistance(
        Scripted(str.upper, fail_at=0), make_tokenizer(), EXAMPLES, SUITE, done=[part, *whole.results[1:]]
    )
    assert not found.complete
    assert found.results == (dataclasses.replace(part, failed=(), complete=False), *whole.results[1:])
    assert resistance(Scripted(str.upper), make_tokenizer(), EXAMPLES, SUITE, done=found.results) == whole


def test_resistance_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="`attacks`: expected at least one, got none"):
        resistance(Scripted(str), make_tokenizer(), EXAMPLES, [])
    with pytest.raises(ValueError, match="`examples`: expected at least one example"):
        resistance(Scripted(str), make_tokenizer(), [], SUITE)


# ------------------------------------------------------------------------------------------------------------- record


@pytest.fixture(scope="module")
def results() -> Results:
    model = make_model()
    measured = utility(model, make_tokenizer(), EXAMPLES, max_new_tokens=3)
    found = resistance(model, make_tokenizer(), EXAMPLES, SUITE)
    runs = [
        Run.of(found, model=name, seed=seed, n_parameters=10, train_seconds=0.1 + 0.2, utility=measured, samples=2)
        for name in ("plain", "role-aware")
        for seed in (0, 1)
    ]
    return Results(runs=tuple(runs), environment=environment(), settings={"steps": 3, "note": "ü", "list": [1, 2.5]})


def test_results_json_round_trip(results: Results, tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    results.save(path)
    assert Results.load(path) == results
    assert Results.load(path).to_json() == results.to_json() == path.read_text(encoding="utf-8")
    assert [p.name for p in tmp_path.iterdir()] == ["results.json"]
    assert results.models == ("plain", "role-aware")
    assert results.seeds == (0, 1)


def test_results_json_has_version_and_environment(results: Results) -> None:
    values = json.loads(results.to_json())
    assert values["schema_version"] == 4
    assert {name for name, _ in values["environment"]["versions"]} >= {"python", "rolesafe", "torch", "transformers"}
    assert values["environment"]["hardware"]
    for run in values["runs"]:
        assert run["utility"]["benign"]["n"] == 12
        for point in run["attacks"]:
            assert set(point["success"]) == {"k", "n"}
            assert len(point["samples"]) == 2


def test_results_of_an_interrupted_run_load(results: Results) -> None:
    found = resistance(Scripted(str.upper, fail_at=3), make_tokenizer(), EXAMPLES, SUITE)
    run = Run.of(found, model="plain", seed=0, n_parameters=1, train_seconds=1.0, utility=results.runs[0].utility)
    partial = Results(runs=(run,), environment=results.environment, complete=False)
    again = Results.from_json(partial.to_json())
    assert again == partial
    assert not again.complete
    assert not again.runs[0].complete
    assert not again.runs[0].attacks[-1].complete
    nothing = Results(runs=(), environment=Environment(versions=(), hardware=""), complete=False)
    assert Results.from_json(nothing.to_json()) == nothing


def test_run_without_utility_is_refused(results: Results) -> None:
    values = {field.name: getattr(results.runs[0], field.name) for field in dataclasses.fields(Run)}
    del values["utility"]
    with pytest.raises(TypeError, match="utility"):
        Run(**values)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "`text`: expected the JSON of results"),
        ("[]", "`text`: expected a JSON object, got list"),
        ("{}", r"`schema_version`: expected 1 to 4, got None"),
        ('{"schema_version": 5}', r"`schema_version`: expected 1 to 4, got 5"),
        ('{"schema_version": 1}', "`text.runs`: expected this field"),
        ('{"schema_version": 1, "runs": [], "environment": {"versions": [], "hardware": 1}}', "`text.environment.hard"),
    ],
)
def test_results_text_that_does_not_fit_is_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Results.from_json(text)


def test_results_json_of_nan_is_refused(results: Results) -> None:
    broken = dataclasses.replace(results, settings={"loss": float("nan")})
    with pytest.raises(ValueError, match="not JSON compliant"):
        broken.to_json()
