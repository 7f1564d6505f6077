"""Statements of arXiv 2603.04851 that need a condition or are wrong, and a split of the KL that holds."""

from __future__ import annotations

import pytest
import torch

from benchmarks.depth_theory import examples
from rolesafe.depth import (
    DeepObjective,
    deep_equilibrium_kl,
    kl_split,
    martingale,
    recovery_information,
    standard_optimum,
)
from tests.depth.models import DRAWS, random_harm, random_models


def test_recovery_curvature_exceeds_recovery_information() -> None:
    """Theorem 19: r' F^-1 r is E_Q[Q / P rho (1 - rho)], not at most J; they are equal for Q = P."""
    found = examples.recovery_curvature()
    assert found["largest_ratio"] > 1e4
    model = random_models(3, 3, batch=(20,))
    objective = DeepObjective(0.0, 2.0, 1.0, model, (0,), "policy")
    kl = deep_equilibrium_kl(model, torch.zeros((3,) * 3), objective)
    assert torch.allclose(kl, 2.0**2 / 2 * recovery_information(model, model, (0,)), rtol=1e-10)


def test_published_objective_breaks_theorems_20_and_22_and_remark_9() -> None:
    found = examples.published_objective(20)
    assert found["gap"] < 1e-10
    assert min(found["thm20_error_by_position"]) > 0.1
    assert min(found["rem9_error_by_position"][:-1]) > 0.1
    assert found["rem9_error_by_position"][-1] < 1e-10  # the last position has no later KL
    assert found["thm22_reached"] < found["thm22_promised"] - 0.05


def test_theorem_20_fails_for_own_prefixes_before_the_last() -> None:
    found = examples.own_prefixes(20)
    assert found["change"] < 1e-10
    assert min(found["error_by_position"][:-1]) > 5e-3
    assert found["error_by_position"][-1] < 1e-10


def test_published_objective_has_several_minima() -> None:
    found = examples.several_minima(2)
    assert found["gap"] < 1e-10
    assert found["with_several"] == 2


def test_remainder_of_equation_59_is_negative() -> None:
    found = examples.remainder(500)
    assert 0.1 < found["negative"] < 0.4
    assert found["lowest_over_kl"] < -1.0


def test_incidental_change_raises_recovery() -> None:
    """Appendix A.4: one distribution for all positions, Harm = [y_1 = 2]; recovery changes past the horizon."""
    found = examples.incidental_recovery()
    assert found["recovery"] == pytest.approx([0.4045] * 4, abs=1e-4)
    assert found["kl"] == pytest.approx([0.0501] * 4, abs=1e-4)
    rho = found["recovery"][0]
    p = torch.tensor([rho, rho, 1 - 2 * rho], dtype=torch.float64)
    slope = torch.tensor([0.0, 0.0, 3.0]) + 4 * (p * 3).log()  # of 3 p(2) + 4 KL(p, uniform), up to a constant
    assert float((slope - (p * slope).sum()).abs().max()) < 1e-12


def test_proposition_29_holds_at_the_last_position_only() -> None:
    found = examples.within_horizon(50)
    assert min(found["error_by_position"][:-1]) > 0.05
    assert found["error_by_position"][-1] < 1e-12


def test_recovery_kl_is_not_monotone_in_the_base() -> None:
    kl = examples.recovery_cost()["kl"]
    assert max(kl) > kl[0]
    assert max(kl) > kl[-1]


def test_corollary_23_is_a_position() -> None:
    found = examples.prefix_length()
    before, after = found["recovery_before_and_after"]
    assert found["forced"] == int(found["position"])
    assert before >= 0.5 > after


# --------------------------------------------------------------------------------------------------- a split that works


def test_kl_split_is_an_information_projection() -> None:
    base = random_models(3, 3, batch=(DRAWS // 10,), scale=2.0)
    other = random_models(3, 3, batch=(DRAWS // 10,), scale=2.0, seed=8)
    h = martingale(base, random_harm(base, horizon=2)).h
    for t in (1, 2, 3):
        p, p0 = other.probs[t - 1], base.probs[t - 1]
        found = kl_split(p, p0, h[t])
        whole = (p * (p / p0).log()).sum(-1)
        assert torch.allclose(found.functional + found.incidental, whole, rtol=0, atol=1e-10)
        assert bool((found.functional >= 0).all())
        assert bool((found.incidental >= -1e-10).all())
        if t == 3:
            assert bool((found.functional == 0).all())  # past the horizon
            continue
        q = (p0.log() - found.tilt.unsqueeze(-1) * h[t]).softmax(-1)
        assert torch.allclose((q * h[t]).sum(-1), (p * h[t]).sum(-1), rtol=0, atol=1e-10)
        assert torch.allclose(found.functional, (q * (q / p0).log()).sum(-1), rtol=0, atol=1e-10)


def test_kl_split_of_a_tilted_law_is_functional_alone() -> None:
    base = random_models(4, 3)
    harm = random_harm(base)
    optimum = standard_optimum(base, harm, 2.0)
    found = kl_split(optimum.probs[2], base.probs[2], harm)
    assert torch.allclose(found.tilt, torch.full_like(found.tilt, 2.0), rtol=1e-8)
    assert float(found.incidental.abs().max()) < 1e-10


def test_kl_split_of_an_extreme_law_is_finite() -> None:
    h = torch.tensor([0.0, 0.5, 1.0])
    found = kl_split(torch.tensor([1.0, 0.0, 0.0]), torch.tensor([0.25, 0.25, 0.5]), h)
    assert float(found.functional) == pytest.approx(-torch.tensor(0.25).log())
    assert float(found.tilt) == torch.inf
    with pytest.raises(ValueError, match="`p0`: expected a positive probability wherever `p` has one"):
        kl_split(torch.tensor([0.5, 0.5]), torch.tensor([1.0, 0.0]), h[:2])
    with pytest.raises(ValueError, match="`p`: expected probabilities of sum 1"):
        kl_split(torch.tensor([0.5, 0.6]), torch.tensor([0.5, 0.5]), h[:2])


def test_harm_change_is_a_sum_over_positions() -> None:
    """E_P[Harm] - E_base[Harm] is the sum over positions of E_P[sum_v (P - base) h(v)] with the base's h."""
    base, other = random_models(3, 4, batch=(20,)), random_models(3, 4, batch=(20,), seed=8)
    harm = random_harm(base)
    ours, theirs = martingale(other, harm).h, martingale(base, harm).h
    parts = [other.mean(t, ((other.probs[t] - base.probs[t]) * theirs[t + 1]).sum(-1)) for t in range(4)]
    assert torch.allclose(sum(parts), ours[0] - theirs[0], rtol=0, atol=1e-10)
