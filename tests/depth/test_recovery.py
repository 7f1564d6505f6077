"""Definitions 16 to 18 and 21, lemma 28, theorems 20 and 22, corollary 23, remarks 6, 7, 8 and 10."""

from __future__ import annotations

import math

import pytest
import torch

from rolesafe.depth import (
    DeepObjective,
    TabularModel,
    deep_optimum,
    guarantee,
    guarantee_kl,
    position_kl,
    recoverability,
    recovery,
    recovery_contributions,
    recovery_gradient,
    recovery_information,
    recovery_kl,
    recovery_probabilities,
    required_weight,
    scores,
    shortest_prefix,
)
from rolesafe.depth.optimum import _sweep
from tests.depth.models import DRAWS, random_features, random_harm, random_models, source


def test_recovery_gradient_equals_autograd() -> None:
    tables = [table.requires_grad_() for table in random_models(3, 3, batch=(5,)).tables]
    attack = random_models(3, 3, batch=(5,), seed=7)
    model = TabularModel(tables)
    laws = attack.law
    failure = sum(attack.mean(t, 1 - rho, laws[t]).sum() for t, rho in enumerate(recovery_probabilities(model, [0, 2])))
    for ours, theirs in zip(
        recovery_gradient(model, attack, [0, 2]), torch.autograd.grad(failure, tables), strict=True
    ):
        assert torch.allclose(ours, theirs, rtol=0, atol=1e-10)


def test_recovery_gradient_bound_holds() -> None:
    """Lemma 28 with the largest trace of the Fisher information."""
    model, attack = random_models(3, 3, batch=(DRAWS,), scale=2.0), random_models(3, 3, batch=(DRAWS,), seed=7)
    rows = random_features(model, 3)
    norm = recovery_contributions(model, attack, [1], rows).norm(dim=-1)
    information = recovery_information(model, attack, [1])
    for t, (probs, score) in enumerate(zip(model.probs, scores(model, rows), strict=True)):
        largest = (probs * score.square().sum(-1)).sum(-1).reshape(DRAWS, -1).amax(1)
        assert bool((norm[:, t] <= (largest * information[:, t]).sqrt() * (1 + 1e-10)).all())
    assert bool((information > 0).all())  # Rem. 7: full support


def test_recovery_information_is_zero_without_choice() -> None:
    model = TabularModel([torch.tensor([0.0, -torch.inf]), torch.tensor([[0.0, -torch.inf], [-torch.inf, 0.0]])])
    assert bool((recovery_information(model, random_models(2, 2), [0]) == 0).all())


def test_recovery_is_the_pointwise_optimum() -> None:
    """Theorem 20 against the optimum of one prefix, found on a grid of recovery probabilities."""
    base, weight = 0.03, 2.5
    grid = torch.linspace(1e-6, 1 - 1e-6, 400_001, dtype=torch.float64)
    kl = grid * (grid / base).log() + (1 - grid) * ((1 - grid) / (1 - base)).log()
    best = grid[(kl - weight * grid).argmin()]
    assert float(recovery(base, weight)) == pytest.approx(float(best), abs=1e-5)
    assert float(recovery_kl(base, weight)) == pytest.approx(float(kl[(kl - weight * grid).argmin()]), abs=1e-5)
    assert recovery(0.0, 50.0) == 0.0  # Rem. 8: nothing to raise
    assert recovery_kl(0.0, 50.0) == 0.0
    assert recovery_kl(1.0, 50.0) == 0.0


def test_predicted_recovery_equals_measured_past_the_horizon() -> None:
    """Theorems 20 and 22 for kl="prefix", on models of 4 tokens with harm decided by the first one."""
    base, attack = random_models(4, 4, batch=(40,), scale=2.0), random_models(4, 4, batch=(40,), seed=7)
    harm = random_harm(base, horizon=1)
    objective = DeepObjective(2.0, 4.0, 0.8, attack, (0, 3), "prefix")
    found = deep_optimum(base, harm, objective)
    assert found.gap < 1e-8
    before, after = recovery_probabilities(base, (0, 3)), recovery_probabilities(found.model, (0, 3))
    for t in (1, 2, 3):
        assert torch.allclose(after[t], recovery(before[t], objective.weight(t + 1)), rtol=0, atol=1e-12)
    predicted = torch.stack(
        [base.mean(t, recovery_kl(before[t], objective.weight(t + 1)), attack.law[t]) for t in (1, 2, 3)], -1
    )
    measured = position_kl(found.model, base, attack)[:, 1:]
    assert torch.allclose(measured, predicted, rtol=0, atol=1e-10)
    lowest = recoverability(base, attack, (0, 3))[:, 1:].amin(1)
    reached = recoverability(found.model, attack, (0, 3))[:, 1:].amin(1)
    for draw in range(40):
        floor = float(lowest[draw])
        assert float(reached[draw]) >= guarantee(floor, 4.0, 0.8, 4) - 1e-12
        assert float(measured[draw].sum()) <= guarantee_kl(floor, 4.0, 0.8, (2, 3, 4)) + 1e-12


def test_recovery_kl_bound_holds() -> None:
    """The bound of theorem 22 that replaces a lost one: min(a, a^2 / 8, log 1 / base)."""
    base = torch.rand(DRAWS, generator=source(0), dtype=torch.float64)
    weight = 12 * torch.rand(DRAWS, generator=source(1), dtype=torch.float64)
    bound = torch.minimum(torch.minimum(weight, weight.square() / 8), -base.log())
    found = recovery_kl(base, weight)
    assert bool((found <= bound + 1e-12).all())
    assert bool((found >= 0).all())


def test_banning_recovery_tokens_returns_the_base() -> None:
    base, attack = random_models(3, 3), random_models(3, 3, seed=7)
    found = deep_optimum(base, random_harm(base, horizon=1), DeepObjective(1.0, 5.0, 1.0, attack, (0,), "prefix"))
    for t in (1, 2):
        ours, theirs = found.model.probs[t][..., 1:], base.probs[t][..., 1:]
        wanted = theirs / theirs.sum(-1, keepdim=True)
        assert torch.allclose(ours / ours.sum(-1, keepdim=True), wanted, rtol=0, atol=1e-12)


@pytest.mark.parametrize("kl", ["policy", "prefix"])
def test_deep_optimum_is_stationary_and_lowest_nearby(kl: str) -> None:
    base, attack = random_models(3, 4, batch=(10,)), random_models(3, 4, batch=(10,), seed=7)
    harm = random_harm(base, horizon=2)
    objective = DeepObjective(1.5, 2.0, 0.9, attack, (0,), kl)  # type: ignore[arg-type]
    found = deep_optimum(base, harm, objective, tolerance=1e-13)
    assert found.gap < 1e-10
    assert torch.allclose(found.value, objective.value(found.model, base, harm), rtol=0, atol=1e-12)
    for seed in range(5):
        noise = random_models(3, 4, batch=(10,), scale=0.02, seed=seed)
        other = TabularModel([a + b for a, b in zip(found.model.tables, noise.tables, strict=True)])
        assert bool((objective.value(other, base, harm) > found.value).all())
    tables = [table.clone().requires_grad_() for table in found.model.tables]
    slopes = torch.autograd.grad(objective.value(TabularModel(tables), base, harm).sum(), tables)
    assert max(float(slope.abs().max()) for slope in slopes) < 1e-10


def test_published_objective_recovers_for_free_where_it_never_goes() -> None:
    base = TabularModel([torch.tensor([0.0, -torch.inf]), torch.zeros(2, 2)])
    attack = random_models(2, 2, seed=7)
    for strength in (0.0, 2.0):
        objective = DeepObjective(1.0, strength, 0.5, attack, (0,), "policy")
        found = deep_optimum(base, random_harm(base), objective)
        assert found.gap < 1e-10
        assert bool(found.value.isfinite())
        rho = recovery_probabilities(found.model, (0,))[1]
        assert float(rho[1]) == (1.0 if strength else pytest.approx(0.5, abs=0.2))
        assert float(rho[0]) < 0.9


def test_deep_sweep_lowers_the_objective() -> None:
    base, attack = random_models(3, 3, batch=(50,)), random_models(3, 3, batch=(50,), scale=2.0, seed=7)
    harm = random_harm(base)
    for kl in ("policy", "prefix"):
        objective = DeepObjective(3.0, 3.0, 0.9, attack, (0,), kl)  # type: ignore[arg-type]
        model, before = base, objective.value(base, base, harm)
        for _ in range(5):
            laws, mask = objective.laws(base), objective.mask(base)
            model, _change = _sweep(model, base, harm, objective, laws, mask, together=False)
            after = objective.value(model, base, harm)
            assert bool((after <= before + 1e-12).all())
            before = after


@pytest.mark.parametrize(
    ("target", "floor", "strength", "discount"),
    [(0.5, 0.01, 10.0, 0.9), (0.9, 0.1, 8.0, 0.7), (0.5, 1e-6, 20.0, 0.99), (0.6, 0.5, 1.0, 0.5)],
)
def test_shortest_prefix_is_the_least_number(target: float, floor: float, strength: float, discount: float) -> None:
    forced = shortest_prefix(target, floor, strength, discount)
    assert isinstance(forced, int)
    rho = [float(recovery(floor, strength * discount ** (n + 1))) for n in range(forced + 1)]  # after n forced tokens
    assert rho[-1] < target
    assert all(value >= target for value in rho[:-1])
    position = math.log(strength / required_weight(target, floor)) / math.log(1 / discount)
    assert forced == max(0, math.floor(position))  # Cor. 23 gives a position


def test_shortest_prefix_without_end_or_without_effect() -> None:
    assert shortest_prefix(0.3, 0.3, 0.0, 0.5) == math.inf  # the base recovers already
    assert shortest_prefix(0.5, 0.1, 5.0, 1.0) == math.inf
    assert shortest_prefix(0.5, 0.1, 1.0, 1.0) == 0
    assert shortest_prefix(0.5, 0.1, 1.0, 0.9) == 0
    assert shortest_prefix(0.5, 0.1, 5.0, 0.0) == 0
    weight = required_weight(0.5, 0.01)
    assert float(recovery(0.01, weight)) == pytest.approx(0.5, abs=1e-12)  # Rem. 10
    assert shortest_prefix(0.5, 0.01, weight / 0.9**3 * (1 + 1e-12), 0.9) == 3  # rounding at a whole position


def test_total_recovery_kl_is_finite_at_every_length() -> None:
    """Remark 6: without discount the bound grows with the number of positions; it diverges only with that number."""
    one = guarantee_kl(0.1, 3.0, 1.0, [1])
    assert guarantee_kl(0.1, 3.0, 1.0, range(1, 101)) == pytest.approx(100 * one)
    assert guarantee_kl(0.1, 3.0, 0.9, range(1, 10_000)) < 3.0**2 / 8 / (1 - 0.9**2) * 10


def test_recovery_arguments_are_checked() -> None:
    model = random_models(2, 2)
    attack = random_models(2, 2, seed=1)
    for arguments, message in (
        ((-1.0, 1.0, 1.0, attack, (0,)), "`strength`: expected a number >= 0, got -1.0"),
        ((1.0, -1.0, 1.0, attack, (0,)), "`recovery`: expected a number >= 0, got -1.0"),
        ((1.0, 1.0, 1.5, attack, (0,)), r"`discount`: expected a number in \[0, 1\], got 1.5"),
        ((1.0, 1.0, math.nan, attack, (0,)), r"`discount`: expected a number in \[0, 1\], got nan"),
        ((1.0, 1.0, 1.0, attack, ()), "`tokens`: expected at least one recovery token, got none"),
        ((1.0, 1.0, 1.0, attack, (0,), "both"), "`kl`: expected 'prefix' or 'policy', got 'both'"),
    ):
        with pytest.raises(ValueError, match=message):
            DeepObjective(*arguments)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"`tokens`: expected ids in 0..1, got 0..2"):
        recovery_probabilities(model, [0, 2])
    with pytest.raises(ValueError, match="`tokens`: expected at least one recovery token"):
        recovery_probabilities(model, [])
    with pytest.raises(ValueError, match=r"`prefixes`: expected 2 laws, of prefixes of 0\.\.1 tokens, got 1"):
        recovery_information(model, [torch.ones(())], [0])
    with pytest.raises(ValueError, match="`prefixes`: expected probabilities of sum 1 for prefixes of 1 tokens"):
        recovery_information(model, [torch.ones(()), torch.ones(2)], [0])
    with pytest.raises(ValueError, match="`prefixes`: expected 2 tokens and 2 positions, got 3 and 2"):
        recovery_information(model, random_models(3, 2), [0])
    for call, message in (
        (lambda: guarantee(0.0, 1.0, 1.0, 3), r"`floor`: expected a probability in \(0, 1\), got 0.0"),
        (lambda: guarantee(0.1, 1.0, 1.0, 0), "`length`: expected a number >= 1, got 0"),
        (lambda: shortest_prefix(1.0, 0.1, 1.0, 0.5), r"`target`: expected a probability in \(0, 1\), got 1.0"),
        (lambda: shortest_prefix(0.5, 0.1, -1.0, 0.5), "`strength`: expected a number >= 0, got -1.0"),
        (lambda: recovery(1.5, 1.0), r"`base`: expected probabilities in \[0, 1\], got 1.5"),
        (lambda: deep_optimum(model, random_harm(model), DeepObjective(1, 1, 1, attack, (0,)), sweeps=0), "`sweeps`"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
    point = [torch.ones(()), torch.tensor([1.0, 0.0])]
    with pytest.raises(ValueError, match="`prefixes`: expected a positive probability of every prefix whose harm"):
        deep_optimum(model, random_harm(model), DeepObjective(1.0, 1.0, 1.0, point, (0,), "prefix"))
