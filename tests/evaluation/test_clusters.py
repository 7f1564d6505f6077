"""Intervals of clustered examples, and missing evidence."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from rolesafe.attacks import AttackResult, Outcome, Rate
from rolesafe.attacks.memory import NOT_FINITE
from rolesafe.evaluation import Results, score, seed_mean, versus
from rolesafe.evaluation.paired import Paired, resampled
from rolesafe.evaluation.statistics import clustered_interval, effective_trials, losing_seeds_bound
from rolesafe.report.build import build_view
from rolesafe.tasks import generate
from tests.evaluation.test_records import HERE, USEFUL, result, run_of

OUT_OF_MEMORY = "out of memory with a batch of 1: no more"


# ------------------------------------------------------------------------------------------------------------ intervals


def test_effective_trials_of_known_clusters() -> None:
    assert effective_trials("abcd") == 4
    assert effective_trials("aaaa") == 1
    assert effective_trials("aabb") == 2
    assert effective_trials("aaab") == pytest.approx(16 / 10)
    assert effective_trials([]) == 0.0


@pytest.mark.parametrize("correlation", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("share", [0.02, 0.2, 0.5])
def test_clustered_interval_covers(share: float, correlation: float) -> None:
    """Simulated: clusters of 1 to 8 examples, each example that of its cluster with this probability."""
    draw = torch.Generator().manual_seed(0)
    sizes = [1, 1, 2, 2, 3, 4, 8] * 5
    labels = [i for i, size in enumerate(sizes) for _ in range(size)]
    trials = effective_trials(labels)
    rounds, index = 2000, torch.tensor(labels)
    common = torch.rand(rounds, len(sizes), generator=draw)[:, index] < share
    own = torch.rand(rounds, len(labels), generator=draw) < share
    lost = torch.where(torch.rand(rounds, len(labels), generator=draw) < correlation, common, own).sum(1)
    covers = {}
    for name, worth in (("clustered", trials), ("naive", math.inf)):
        ends = [clustered_interval(Rate(k, len(labels)), worth) for k in lost.tolist()]
        covers[name] = sum(low <= share <= high for low, high in ends) / rounds
    assert covers["clustered"] >= 0.93
    if correlation == 1.0:
        assert covers["naive"] < 0.85, "the simulation separates the two"


def test_clustered_interval_of_zero_knows_the_clusters() -> None:
    assert clustered_interval(Rate(0, 60), 60) == Rate(0, 60).interval
    assert clustered_interval(Rate(0, 60), 30)[1] == pytest.approx(Rate(0, 30).interval[1])
    assert clustered_interval(Rate(0, 60), 400) == Rate(0, 60).interval
    assert clustered_interval(Rate(0, 0), 3) == (0.0, 1.0)
    assert seed_mean([Rate(0, 30), Rate(0, 30)], 20).high == pytest.approx(Rate(0, 20).interval[1])  # type: ignore[union-attr]


def test_bound_of_seeds_that_lose() -> None:
    assert losing_seeds_bound(3) == pytest.approx(0.6316, abs=1e-4)
    assert (1 - losing_seeds_bound(5)) ** 5 == pytest.approx(0.05)
    with pytest.raises(ValueError, match="`seeds`: expected at least one, got 0"):
        losing_seeds_bound(0)


def test_versus_takes_clusters_together() -> None:
    one = {0: {f"{i}": False for i in range(40)}}
    other = {0: {f"{i}": i < 20 for i in range(40)}}
    loose = versus(one, other)
    tied = versus(one, other, clusters={f"{i}": str(i // 10) for i in range(40)})
    assert loose is not None
    assert tied is not None
    assert (loose.value, loose.other, loose.n) == (tied.value, tied.other, tied.n)
    assert tied.difference_interval[1] - tied.difference_interval[0] > 1.5 * (
        loose.difference_interval[1] - loose.difference_interval[0]
    )
    assert tied.ratio_interval[1] > loose.ratio_interval[1]  # type: ignore[index]
    paired = Paired.of(other, clusters={f"{i}": str(i // 10) for i in range(40)})
    assert paired is not None
    assert set((resampled(paired) * 4).round(decimals=6).flatten().tolist()) == {0.0, 1.0, 2.0, 3.0, 4.0}


# -------------------------------------------------------------------------------------------- evidence that is missing


def replied(name: str, states: dict[str, str], **changes: object) -> AttackResult:
    found = result(name, {id: state == "lost" for id, state in states.items()}, **changes)
    right = {"lost": False, "held": True, "wrong": False, "unknown": None}
    outcomes = tuple(replace(o, right=right[states[o.id]]) for o in found.outcomes)
    return replace(found, outcomes=outcomes)


def test_worst_case_without_a_run_of_an_attack_is_empty() -> None:
    """GCG ran out of memory on all: the worst case is not that of the other attacks."""
    states = {"a": "held", "b": "held"}
    failed = tuple((id, OUT_OF_MEMORY) for id in states)
    run = run_of(replied("mimicry", states), replace(replied("gcg", {}), failed=failed))
    assert run.worst() == {}
    assert run.worst_case == Rate(0, 0)
    too_long = replace(replied("gcg", {}), left_out=("a", "b"))
    assert run_of(replied("mimicry", states), too_long).worst() == {"a": False, "b": False}


def test_worst_case_failed_example_is_left_out() -> None:
    run = run_of(
        replied("dilution", {"a": "held", "b": "held", "c": "held"}),
        replied("dilution", {"a": "held", "b": "lost"}, failed=(("c", NOT_FINITE), ("b", OUT_OF_MEMORY))),
    )
    assert run.worst() == {"a": False, "b": True}
    assert run.worst_case == Rate(1, 2)


def test_held_requires_right_replies_everywhere() -> None:
    run = run_of(
        replied("mimicry", {"a": "held", "b": "held", "c": "lost", "d": "wrong"}),
        replied("dilution", {"a": "held", "b": "wrong", "c": "held", "d": "wrong"}),
    )
    assert [point.right for point in run.attacks] == ["1100", "1010"]
    assert run.worst() == {"a": False, "b": False, "c": True, "d": False}
    assert run.held() == {"a": True, "b": False, "c": False, "d": False}
    assert run_of(replied("mimicry", {"a": "unknown"})).held() is None
    old = replace(run, attacks=tuple(replace(point, right="") for point in run.attacks))
    assert old.held() is None
    with pytest.raises(ValueError, match="`right`: expected no right reply of 'mimicry' where the attacker won"):
        replace(run.attacks[0], right="1111")
    with pytest.raises(ValueError, match="`right`: expected 4 marks"):
        replace(run.attacks[0], right="11")


def test_right_marks_survive_json() -> None:
    results = Results(runs=(run_of(replied("mimicry", {"a": "held", "b": "wrong"})),), environment=HERE)
    assert Results.from_json(results.to_json()) == results


def test_report_names_what_is_no_evidence() -> None:
    quiet = replace(run_of(replied("mimicry", {"a": "wrong"}, failed=(("b", OUT_OF_MEMORY),))), model="quiet")
    notes = build_view(Results(runs=(quiet,), environment=HERE)).notes
    assert any("1 attacks failed and are not counted: out of memory" in note for note in notes)
    assert any(note.startswith("quiet: 0 of 1 examples that no attack won on") for note in notes)
    two = [replace(run_of(replied("mimicry", {"a": "held"})), model="whole", seed=seed) for seed in (0, 1)]
    notes = build_view(Results(runs=(*two, quiet), environment=HERE)).notes
    assert "quiet: the worst case is of 1 of 2 seeds." in notes


def test_score_example_without_a_right_reply_counts_nowhere() -> None:
    """An empty reply has the same words as none: it is not right for that."""
    examples = generate("test", 4, 0, ["access"])
    unstated = [replace(e, reply="") for e in examples[:2]]
    found = score([*unstated, *examples[2:]], ["", "", *(e.reply for e in examples[2:])])
    assert (found.benign, found.protected) == (Rate(1, 1), Rate(1, 1))
    assert found.refused.n == 2
    assert USEFUL.benign.n == 1
    assert Outcome(id="", family="", messages=(), reply="", success=False).right is None
