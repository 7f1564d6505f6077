"""Records of a study: outcomes per example, schema versions, merging, one file per run."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from rolesafe.attacks import ATTACKS, AttackResult, Outcome, Rate
from rolesafe.evaluation import AttackPoint, Environment, Resistance, Results, Run, Utility
from rolesafe.evaluation.records import counted
from tests.benchmarks.study.drawn import measured, study

HERE = Environment(versions=(("torch", "2.13"),), hardware="CPU", commit="abc")
USEFUL = Utility(benign=Rate(1, 1), refused=Rate(0, 1), protected=Rate(1, 1), violated=Rate(0, 1))


def result(name: str, won: dict[str, bool], **changes: object) -> AttackResult:
    outcomes = tuple(
        Outcome(id=id, family="secret", messages=({"role": "user", "content": "?"},), reply="", success=w)
        for id, w in won.items()
    )
    return AttackResult(config=ATTACKS[name](), goal=None, outcomes=outcomes, **changes)  # type: ignore[arg-type]


def run_of(*results: AttackResult, **changes: object) -> Run:
    found = Resistance(results=results, complete=True)
    return Run.of(found, model="m", seed=0, n_parameters=1, train_seconds=1.0, utility=USEFUL, **changes)  # type: ignore[arg-type]


# -------------------------------------------------------------------------------------------------------- one character


def test_marks_of_attacks_on_different_examples() -> None:
    """The second attack left an example out; the point without attack knows them all."""
    run = run_of(
        result("none", {"a": False, "b": False, "c": True}),
        result("mimicry", {"a": True, "b": False}, left_out=("c",)),
        result("dilution", {"c": False, "b": False}),
    )
    assert run.examples == ("a", "b", "c")
    assert [point.marks for point in run.attacks] == ["001", "10-", "-00"]
    assert run.won(run.attacks[1]) == {"a": True, "b": False}
    assert run.worst() == {"b": False}, "the others were not attacked with everything"
    assert run.worst(lambda point: point.attack == "dilution") == {"b": False, "c": False}
    assert run.worst_case == run.bound == Rate(0, 1)


def test_worst_untyped_attack_counts_for_the_bound_only() -> None:
    run = run_of(result("mimicry", {"a": True, "b": False}), result("dilution", {"a": False, "b": True}))
    points = (run.attacks[0], replace(run.attacks[1], typed=False))
    changed = replace(run, attacks=points)
    assert counted(changed.worst()) == Rate(1, 2)
    assert counted(changed.worst(lambda point: True)) == Rate(2, 2)


def test_worst_of_any_subset_of_attacks() -> None:
    run = measured("air", 0, "0.2M")
    for chosen in (("gcg",), ("mimicry", "dilution"), ("none",)):
        points = [p for p in run.attacks if p.attack in chosen and p.attack != "none"]
        expected = {id: any(p.marks[i] == "1" for p in points) for i, id in enumerate(run.examples)} if points else {}
        assert run.worst(lambda point, chosen=chosen: point.attack in chosen) == expected


def test_point_of_search_keeps_its_steps() -> None:
    searched = result("mimicry", {"a": True, "b": False})
    outcomes = tuple(replace(o, n_queries=n * 10, n_steps=n) for o, n in zip(searched.outcomes, (1, 3), strict=True))
    point = AttackPoint.of(replace(searched, outcomes=outcomes))
    assert (point.n_steps, point.n_queries) == ((1, 3), 40)
    assert AttackPoint.of(searched).n_steps == ()


def test_point_of_failed_example_keeps_the_reason() -> None:
    point = AttackPoint.of(result("mimicry", {"a": True}, failed=(("b", "out of memory"),)), examples=("a", "b"))
    assert (point.marks, point.failed) == ("1-", (("b", "out of memory"),))


def test_run_leaves_out_examples_that_met_the_goal() -> None:
    run = run_of(result("mimicry", {"a": True, "b": False}, met=("c",)))
    assert (run.examples, run.attacks[0].marks) == (("a", "b"), "10")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"marks": "1x0"}, "`marks`: expected only"),
        ({"marks": "110"}, "`marks`: expected .*2/4.*got marks that give .*2/3"),
        ({"marks": "1100", "n_steps": (1, 2)}, "`n_steps`: expected one for each of 4 examples, got 2"),
    ],
)
def test_point_marks_that_do_not_fit_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AttackPoint(attack="mimicry", parameters={}, seed=0, success=Rate(2, 4), **changes)  # type: ignore[arg-type]


def test_run_fields_that_do_not_fit_are_refused() -> None:
    run = run_of(result("mimicry", {"a": True, "b": False}))
    with pytest.raises(ValueError, match="`attacks`: expected 1 marks, one per example, got 2"):
        replace(run, examples=("a",))
    with pytest.raises(ValueError, match="`examples`: expected distinct ids"):
        replace(run, examples=("a", "a"))
    with pytest.raises(ValueError, match="`examples`: expected all ids of the result, got none for 'b'"):
        AttackPoint.of(result("mimicry", {"a": True, "b": False}), examples=("a",))
    with pytest.raises(ValueError, match="`right`: expected 1 marks"):
        replace(USEFUL, examples=("a",))
    with pytest.raises(ValueError, match="`right`: expected the marks of"):
        replace(USEFUL, examples=("a",), right="0")


# ---------------------------------------------------------------------------------------------------------------- JSON


def test_results_saved_and_loaded_are_equal(tmp_path: Path) -> None:
    results = study(("plain", "channel"), (0, 1))
    cut = replace(results.runs[0], complete=False, worst_case=None, attention_mass=None, sep=None)
    failed = replace(cut, attacks=(replace(cut.attacks[0], failed=(("x", "out of memory"),)), *cut.attacks[1:]))
    results = replace(results, runs=(failed, *results.runs[1:]), complete=False)
    results.save(tmp_path / "a.json")
    assert Results.load(tmp_path / "a.json") == results


def test_json_numbers_share_a_line_and_text_is_kept() -> None:
    run = replace(measured("plain", 0), model="[\n 1,\n 2\n] [1, 2]")
    results = Results(runs=(run,), environment=HERE, settings={"list": [1, -2.5, 3e-7], "text": "[\n  1,\n  2\n]"})
    text = results.to_json()
    assert '"list": [1, -2.5, 3e-07]' in text
    assert Results.from_json(text) == replace(results, settings={"list": [1, -2.5, 3e-7], "text": "[\n  1,\n  2\n]"})
    assert json.loads(text)["schema_version"] == 4


def test_results_of_version_1_load() -> None:
    """As rolesafe 0.1 wrote them."""
    rate = {"k": 1, "n": 2}
    outcome = {
        "id": "a", "family": "secret", "messages": [{"role": "user", "content": "?"}], "reply": "no",
        "success": False, "n_queries": 1,
    }  # fmt: skip
    point = {
        "attack": "mimicry", "parameters": {"place": "after"}, "seed": 0, "success": rate,
        "families": [["secret", rate]], "n_left_out": 0, "complete": True, "samples": [outcome],
    }  # fmt: skip
    utility = {
        "benign": rate,
        "refused": rate,
        "protected": rate,
        "violated": rate,
        "families": [["a", "benign", rate]],
    }
    run = {
        "model": "plain", "seed": 0, "n_parameters": 5, "train_seconds": 1.5, "utility": utility, "attacks": [point],
        "worst_case": rate, "complete": True,
    }  # fmt: skip
    old = {
        "schema_version": 1, "runs": [run], "environment": {"versions": [["torch", "2.13"]], "hardware": "CPU",
        "commit": None}, "settings": {"steps": 3}, "complete": True,
    }  # fmt: skip
    results = Results.from_json(json.dumps(old))
    (found,) = results.runs
    assert found.worst_case == found.attacks[0].success == Rate(1, 2)
    assert (found.size, found.mechanism, found.bound, found.attacks[0].typed) == ("", None, None, True)
    assert found.worst() == {}
    assert Results.from_json(results.to_json()) == results


# --------------------------------------------------------------------------------------------------------------- merge


def test_merge_of_all_parts_is_the_whole() -> None:
    whole = study(("plain", "channel"), (0, 1))
    parts = [replace(whole, runs=(run,)) for run in whole.runs]
    assert Results.merge(parts) == whole
    assert Results.merge([*parts, parts[0]]) == whole
    assert whole.sizes == ("0.2M", "1.5M")
    assert [run.seed for run in whole.of("1.5M", "channel")] == [0, 1]


def test_merge_prefers_the_finished_run() -> None:
    run = measured("air", 0)
    whole = Results(runs=(run,), environment=HERE)
    cut = replace(whole, runs=(replace(run, complete=False, attacks=run.attacks[:3]),), complete=False)
    shorter = replace(whole, runs=(replace(run, complete=False, attacks=run.attacks[:2]),), complete=False)
    assert Results.merge([cut, whole]).runs == Results.merge([whole, cut]).runs == (run,)
    assert Results.merge([cut, shorter]).runs == Results.merge([shorter, cut]).runs == cut.runs
    other = replace(whole, runs=(replace(run, train_seconds=0.5),))
    with pytest.raises(ValueError, match=r"expected one finished record of .*'air', 0.*, got two that differ"):
        Results.merge([whole, other])


def test_merge_of_different_studies_is_refused() -> None:
    one = Results(runs=(), environment=HERE, settings={"steps": 3, "list": (1, 2)})
    assert Results.merge([one, replace(one, settings={"steps": 3, "list": [1, 2]})]).settings["steps"] == 3
    with pytest.raises(ValueError, match="`parts`: expected the same settings, got 3 and 4 for 'steps'"):
        Results.merge([one, replace(one, settings={"steps": 4, "list": (1, 2)})])
    with pytest.raises(ValueError, match="`parts`: expected one count of forged roles"):
        Results.merge([replace(one, forging=Rate(0, 5)), replace(one, forging=Rate(1, 5))])
    with pytest.raises(ValueError, match="`parts`: expected at least one"):
        Results.merge([])


def test_joined_environments_keep_all_values() -> None:
    other = Environment(versions=(("torch", "2.14"), ("numpy", "2")), hardware="GPU", commit=None)
    joined = Environment.joined([HERE, other, HERE])
    assert joined == Environment(
        versions=(("torch", "2.13 / 2.14"), ("numpy", "none / 2")), hardware="CPU / GPU", commit="abc"
    )
    assert Environment.joined([joined, HERE]) == joined
    assert Environment.joined([HERE, HERE]) == HERE
    with pytest.raises(ValueError, match="`environments`: expected at least one"):
        Environment.joined([])


# --------------------------------------------------------------------------------------------------------------- store
