"""Optimum of Eq. 2, theorems 14, 19 and 27, corollary 15, propositions 25 and 26: exact optima against expansions."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from rolesafe.depth import (
    DeepObjective,
    TabularModel,
    deep_equilibrium_kl,
    deep_optimum,
    equilibrium_kl,
    martingale,
    position_kl,
    standard_objective,
    standard_optimum,
)
from tests.depth.models import DRAWS, log_linear, random_features, random_harm, random_models, source


def minimised(objective: Callable[[Tensor], Tensor], size: int) -> Tensor:
    """Return the minimum near 0 by Newton's method, (size,)."""
    theta = torch.zeros(size, dtype=torch.float64)
    for _ in range(12):
        slope = torch.autograd.functional.jacobian(objective, theta)
        hessian = torch.autograd.functional.hessian(objective, theta)
        theta = theta - torch.linalg.solve(hessian, slope)
        if float(slope.norm()) < 1e-13:
            break
    return theta


def check_third_order(error: Callable[[float], float], size: float) -> None:
    """Halving the strength divides the error of a second-order expansion by about 8."""
    large, small = error(size), error(size / 2)
    assert large > 1e-12
    assert 6.5 < large / small < 9.5


def test_standard_optimum_is_the_gibbs_law() -> None:
    base = random_models(3, 4, batch=(20,))
    harm = random_harm(base)
    law = base.law[4] * (-3.0 * harm).exp()
    law = law / law.flatten(1).sum(1).reshape(-1, 1, 1, 1, 1)
    optimum = standard_optimum(base, harm, 3.0)
    assert torch.allclose(optimum.law[4], law, rtol=0, atol=1e-12)
    least = standard_objective(optimum, base, harm, 3.0)
    for seed in range(5):
        noise = random_models(3, 4, batch=(20,), scale=0.1, seed=seed)
        other = TabularModel([a + b for a, b in zip(optimum.tables, noise.tables, strict=True)])
        assert bool((standard_objective(other, base, harm, 3.0) > least).all())


@pytest.mark.parametrize("strength", [0.0, 1.0, 1000.0])
def test_standard_optimum_equals_base_past_the_horizon(strength: float) -> None:
    base = random_models(3, 4, batch=(20,))
    optimum = standard_optimum(base, random_harm(base, horizon=2), strength)
    for t in (2, 3):
        assert torch.allclose(optimum.probs[t], base.probs[t], rtol=0, atol=1e-14)
    assert bool((position_kl(optimum, base)[:, 2:] < 1e-14).all())


def test_tabular_equilibrium_kl_is_third_order_accurate() -> None:
    base = random_models(3, 3, batch=(20,))
    harm = random_harm(base)

    def error(strength: float) -> float:
        exact = position_kl(standard_optimum(base, harm, strength), base)
        return float((exact - equilibrium_kl(base, harm, strength)).abs().max())

    check_third_order(error, 0.2)
    half = equilibrium_kl(base, harm, 0.2)
    assert torch.allclose(half, 0.2**2 / 2 * martingale(base, harm).information, rtol=1e-10)  # Cor. 15, with equality


@pytest.mark.parametrize("shared", [False, True], ids=["decoupled", "shared"])
def test_parametric_equilibrium_kl_is_third_order_accurate(shared: bool) -> None:
    base = random_models(3, 3)
    harm, features = random_harm(base), random_features(base, 2)

    def model(theta: Tensor) -> TabularModel:
        return log_linear(base, features, theta if shared else theta.reshape(3, 2))

    def error(strength: float) -> float:
        theta = minimised(lambda x: standard_objective(model(x), base, harm, strength), 2 if shared else 6)
        exact = position_kl(model(theta), base)
        return float((exact - equilibrium_kl(base, harm, strength, features, shared=shared)).abs().max())

    check_third_order(error, 0.2)


def test_equilibrium_kl_is_bounded_by_information_and_variance() -> None:
    base = random_models(3, 4, batch=(DRAWS,), scale=1.5)
    harm, features = random_harm(base, binary=True), random_features(base, 3)
    found = martingale(base, harm)
    decoupled = equilibrium_kl(base, harm, 1.0, features)
    assert bool((decoupled <= found.information / 2 * (1 + 1e-9) + 1e-15).all())  # Cor. 15, sharper
    together = equilibrium_kl(base, harm, 1.0, features, shared=True)
    assert bool((together.sum(-1) <= found.residual[:, 0] / 2 * (1 + 1e-9)).all())  # Thm. 27
    assert bool((together >= -1e-15).all())


def test_shared_parameters_move_positions_past_the_horizon() -> None:
    """Theorem 27 (2), proposition 26 and theorem 27 (3)."""
    base = random_models(3, 4, batch=(50,))
    harm, features = random_harm(base, horizon=2), random_features(base, 3)
    found = martingale(base, harm)
    assert bool((equilibrium_kl(base, harm, 1.0, features)[:, 2:] == 0).all())
    together = equilibrium_kl(base, harm, 1.0, features, shared=True)
    assert bool((together[:, 2:] > 1e-6).all())
    score = torch.randn(base.shape(4), generator=source(9), dtype=torch.float64)
    covariance = (base.probs[3] * score * found.innovations[3]).sum(-1)
    assert bool((covariance == 0).all())


@pytest.mark.parametrize("kl", ["policy", "prefix"])
def test_deep_equilibrium_kl_is_third_order_accurate(kl: str) -> None:
    base, attack = random_models(3, 3, batch=(20,)), random_models(3, 3, batch=(20,), seed=7)
    harm = random_harm(base)

    def objective(size: float) -> DeepObjective:
        return DeepObjective(size, 2 * size, 0.8, attack, (0,), kl)  # type: ignore[arg-type]

    def error(size: float) -> float:
        optimum = deep_optimum(base, harm, objective(size)).model
        exact = position_kl(optimum, base, attack if kl == "prefix" else None)
        return float((exact - deep_equilibrium_kl(base, harm, objective(size))).abs().max())

    check_third_order(error, 0.004)
    without = DeepObjective(0.1, 0.0, 0.8, attack, (0,), "policy")
    assert torch.allclose(deep_equilibrium_kl(base, harm, without), equilibrium_kl(base, harm, 0.1), rtol=1e-10)  # (ii)
    features = random_features(base, 9)  # a full parametrisation of position 1 only
    partial = deep_equilibrium_kl(base, harm, objective(0.1), features)
    assert bool((partial <= deep_equilibrium_kl(base, harm, objective(0.1)) * (1 + 1e-9)).all())


@pytest.mark.parametrize("kl", ["policy", "prefix"])
def test_deep_equilibrium_kl_of_shared_parameters_is_third_order_accurate(kl: str) -> None:
    base, attack = random_models(3, 3), random_models(3, 3, seed=7)
    harm, features = random_harm(base), random_features(base, 2)

    def error(size: float) -> float:
        objective = DeepObjective(size, 2 * size, 0.8, attack, (0,), kl)  # type: ignore[arg-type]
        theta = minimised(lambda x: objective.value(log_linear(base, features, x), base, harm), 2)
        exact = position_kl(log_linear(base, features, theta), base, attack if kl == "prefix" else None)
        return float((exact - deep_equilibrium_kl(base, harm, objective, features, shared=True)).abs().max())

    check_third_order(error, 0.05)


def test_equilibrium_arguments_are_checked() -> None:
    base = random_models(2, 2)
    with pytest.raises(ValueError, match="`strength`: expected a number >= 0, got -1"):
        standard_optimum(base, random_harm(base), -1)
    with pytest.raises(ValueError, match="`jacobian`: expected derivatives by shared parameters"):
        equilibrium_kl(base, random_harm(base), 1.0, shared=True)
