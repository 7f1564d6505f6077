"""Estimators and intervals against exact values of tabular models and against published numbers."""

from __future__ import annotations

import math

import pytest
import torch
from scipy.stats import norm

from benchmarks.depth_theory.coverage import study
from rolesafe.depth import (
    Branches,
    TabularModel,
    horizon,
    information,
    least_rollouts,
    martingale,
    mean_rate,
    mean_value,
    nested_variance,
    recovery_by_depth,
    sample_tabular,
    tail,
    tango_interval,
    violating_mass,
)
from tests.depth.models import random_harm, random_models, source


def branches_of(harm: list[float], branched: list[list[float]]) -> Branches:
    depths = tuple(range(len(branched[0])))
    return Branches(depths, torch.tensor(harm, dtype=torch.float64), torch.tensor(branched, dtype=torch.float64))


@pytest.mark.parametrize(("b", "c", "n"), [(12, 3, 44), (0, 2, 30), (9, 0, 20)])
def test_tango_interval_inverts_the_score_test(b: int, c: int, n: int) -> None:
    """The nuisance parameter is found on a grid, not by the closed form."""
    found = tango_interval(torch.tensor(b), torch.tensor(c), n)
    for end in map(float, found):
        share = torch.linspace(max(0.0, -end), (1 - end) / 2, 400_001, dtype=torch.float64)[1:-1]
        likelihood = torch.xlogy(torch.tensor(float(b)), share + end) + torch.xlogy(torch.tensor(float(c)), share)
        likelihood = likelihood + (n - b - c) * (1 - 2 * share - end).log()
        best = float(share[likelihood.argmax()])
        statistic = (b - c - n * end) / math.sqrt(n * (2 * best + end * (1 - end)))
        assert abs(statistic) == pytest.approx(float(norm.ppf(0.975)), rel=1e-3)
    assert float(found[0]) < (b - c) / n < float(found[1])


def test_tango_interval_without_discord_has_a_width() -> None:
    z = float(norm.ppf(0.975))
    low, high = tango_interval(torch.tensor(0), torch.tensor(0), 10)
    assert float(high) == -float(low) == pytest.approx(z**2 / (10 + z**2), abs=1e-9)


def test_estimates_equal_exact_values_for_many_rollouts() -> None:
    model = random_models(3, 4)
    harm = random_harm(model, horizon=3, binary=True)
    exact = martingale(model, harm)
    drawn = sample_tabular(model, harm, 50_000, source(5))
    found = information(drawn), tail(drawn)
    for ours, theirs in zip(found, (exact.information.tolist(), exact.residual.tolist()), strict=True):
        for estimate, value in zip(ours, theirs, strict=False):
            assert estimate.value == pytest.approx(value, abs=6e-3)
    assert {estimate.method for estimate in found[0]} == {"Tango"}
    assert {estimate.method for estimate in found[1]} == {"Clopper-Pearson"}


def test_estimates_are_exactly_zero_past_the_horizon() -> None:
    model = random_models(3, 4)
    for binary in (True, False):
        drawn = sample_tabular(model, random_harm(model, horizon=2, binary=binary), 200, source(5))
        assert [estimate.value for estimate in information(drawn)[2:]] == [0.0, 0.0]
        assert [estimate.value for estimate in tail(drawn)[2:]] == [0.0, 0.0]


def test_graded_harm_has_t_intervals() -> None:
    model = random_models(3, 3)
    drawn = sample_tabular(model, random_harm(model), 500, source(5))
    assert {estimate.method for estimate in (*information(drawn), *tail(drawn))} == {"t"}


def test_intervals_hold_exact_values_in_most_runs() -> None:
    """Thirty runs of the study of docs/depth-theory.md, from fixed seeds."""
    found = study(30, kinds=("binary", "rare"))
    rows = [row for kind in found["harm"].values() for row in (kind["information"], kind["tail"], kind["horizon"])]
    rows += [found["prefixes"]["recovery"], found["nested"]["coverage"]]
    assert min(share for row in rows for share in row) >= 0.8
    assert found["nested"]["mean_plug_in"] > 2 * found["nested"]["exact_between"]
    assert found["nested"]["mean_between"] == pytest.approx(found["nested"]["exact_between"], rel=0.3)


def test_horizon_is_shown_from_the_least_number_of_rollouts_on() -> None:
    for n, shown in ((least_rollouts() - 1, math.inf), (least_rollouts(), 1.0)):
        harm = [float(i % 2) for i in range(n)]
        drawn = branches_of(harm, [[1 - x, x, x] for x in harm])  # always discordant at depth 0, never later
        found = horizon(drawn, 0.01)
        assert (found.value, found.low, found.high) == (1.0, 1.0, shown)
    undecided = branches_of([0.0, 1.0] * 100, [[1.0, 1.0], [0.0, 0.0]] * 100)
    assert horizon(undecided).value == math.inf


def test_recovery_and_kl_means_leave_out_ended_rollouts() -> None:
    rho = torch.tensor([[0.5, 0.2], [0.25, math.nan]], dtype=torch.float64)
    drawn = Branches((0, 1), torch.zeros(2), torch.zeros(2, 2), rho)
    first, second = recovery_by_depth(drawn)
    assert (first.value, first.n, first.method) == (0.375, 2, "Wilson")
    assert (second.value, second.n) == (0.2, 1)
    assert mean_value(torch.tensor([1.0, 3.0, math.nan])).value == 2.0
    assert mean_value(torch.tensor([1.0])).high == math.inf
    with pytest.raises(ValueError, match="`probabilities`: expected values in"):
        mean_rate(torch.tensor([1.5]))


def test_violating_mass_without_a_violation() -> None:
    found = violating_mass(torch.full((59,), 0.9), 0.5)
    assert found.value == found.low == 0.0
    assert found.high == pytest.approx(1 - 0.05 ** (1 / 59), abs=1e-9)
    assert violating_mass(torch.tensor([0.1, 0.9]), 0.5).value == 0.5


def test_nested_variance_is_unbiased_and_plug_in_is_not() -> None:
    model, generator = TabularModel([torch.zeros(2), torch.zeros(2, 2)]), source(1)
    harm = torch.tensor([[0.0, 1.0], [0.0, 1.0]], dtype=torch.float64)  # the first token decides nothing
    prefixes = model.sample(4000, generator)[:, :1].repeat_interleave(4, 0)
    values = harm.reshape(-1)[model.index(model.sample(16_000, generator, prefixes=prefixes))].reshape(-1, 4)
    between, within = nested_variance(values)
    assert abs(between.value) < 5e-3
    assert within.value == pytest.approx(0.25, abs=5e-3)
    assert float(values.mean(1).var()) == pytest.approx(0.25 / 4, abs=5e-3)


def test_estimator_arguments_are_checked() -> None:
    drawn = branches_of([0.0], [[0.0]])
    for call, message in (
        (lambda: tail(drawn, level=0.0), r"`level`: expected a number in \(0, 1\), got 0.0"),
        (lambda: horizon(drawn, 0.3), r"`tolerance`: expected a variance in \(0, 0.25\), got 0.3"),
        (lambda: recovery_by_depth(drawn), "`branches`: expected recovery probabilities, got none"),
        (lambda: nested_variance(torch.zeros(2, 2)), r"`values`: expected shape \(B, M\)"),
        (lambda: violating_mass(torch.zeros(3), 1.0), r"`target`: expected a probability in \(0, 1\)"),
        (lambda: tango_interval(torch.zeros(1), torch.zeros(1), 0), "`n`: expected a number of pairs >= 1"),
        (lambda: branches_of([2.0], [[0.0]]), r"`harm`: expected values in \[0, 1\]"),
        (lambda: Branches((1, 0), torch.zeros(1), torch.zeros(1, 2)), "`depths`: expected increasing numbers"),
        (lambda: Branches((0,), torch.zeros(2), torch.zeros(1, 1)), r"`branched`: expected shape \(N, 1\)"),
        (lambda: tail(Branches((0,), torch.zeros(0), torch.zeros(0, 1))), "`branches`: expected judged rollouts"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
