"""Theorems 8, 10 and 13, definition 11, lemmas 12 and 24, remarks 4 and 5."""

from __future__ import annotations

import pytest
import torch

from rolesafe.depth import (
    TabularModel,
    equilibrium_kl,
    fisher,
    gradient,
    gradient_bounds,
    gradient_contributions,
    jacobian,
    martingale,
    position_kl,
)
from tests.depth.models import DRAWS, log_linear, random_features, random_harm, random_models, source


def test_gradient_equals_autograd_for_tables() -> None:
    tables = [table.requires_grad_() for table in random_models(3, 4, batch=(5,)).tables]
    model = TabularModel(tables)
    harm = random_harm(model)
    wanted = torch.autograd.grad(martingale(model, harm).h[0].sum(), tables)
    for ours, theirs in zip(gradient(model, harm), wanted, strict=True):
        assert torch.allclose(ours, theirs, rtol=0, atol=1e-10)


def test_gradient_contributions_sum_to_autograd_for_shared_parameters() -> None:
    base, generator = random_models(3, 3), source(3)
    features = random_features(base, 4)
    theta = torch.randn(4, generator=generator, dtype=torch.float64).requires_grad_()
    logits = [  # not linear in the parameters
        lambda x, t=t: base.tables[t] + torch.tanh(features[t] @ x) for t in range(3)
    ]
    model = TabularModel([one(theta) for one in logits])
    harm = random_harm(model)
    (wanted,) = torch.autograd.grad(martingale(model, harm).h[0], theta)
    rows = jacobian(lambda x: [one(x) for one in logits], theta.detach())
    found = gradient_contributions(TabularModel([x.detach() for x in model.tables]), harm, rows)
    assert torch.allclose(found.sum(0), wanted, rtol=0, atol=1e-10)


def test_gradient_is_exactly_zero_past_the_horizon() -> None:
    model = random_models(3, 4, batch=(50,))
    harm = random_harm(model, horizon=2)
    assert all(bool((table == 0).all()) for table in gradient(model, harm)[2:])
    assert bool((gradient_contributions(model, harm, random_features(model, 3))[:, 2:] == 0).all())


@pytest.mark.parametrize("shared", [False, True])
def test_gradient_bounds_hold_in_order(shared: bool) -> None:
    model = random_models(3, 4, batch=(DRAWS,), scale=2.0)
    rows = random_features(model, 3) if shared else None
    found = gradient_bounds(model, random_harm(model, binary=True), rows)
    slack = 1 + 1e-10
    assert bool((found.norm <= found.pointwise * slack).all())  # Lem. 12
    assert bool((found.pointwise <= found.averaged * slack).all())  # Thm. 13
    assert bool((found.averaged <= found.uniform * slack).all())


def test_gradient_bound_is_reached_by_score_along_innovation() -> None:
    """Remark 5: one parameter whose score is the innovation of position 1."""
    model = random_models(3, 2)
    harm = random_harm(model)
    innovation = martingale(model, harm).innovations[0]
    rows = (innovation.unsqueeze(-1), torch.zeros(3, 3, 1, dtype=torch.float64))
    found = gradient_bounds(model, harm, rows)
    assert float(found.norm[0]) == pytest.approx(float(found.averaged[0]), rel=1e-12)


def test_gradient_shrinks_with_root_of_information() -> None:
    """Remark 4: harm that hardly depends on the last token."""
    model = random_models(3, 3)
    first = random_harm(model, horizon=2) / 2
    for size in (1e-2, 1e-4):
        harm = first + size * random_harm(model, seed=5)
        found = gradient_bounds(model, harm)
        assert float(found.norm[2]) <= float(found.uniform[2]) < size


def test_fisher_is_hessian_of_position_kl() -> None:
    """Lemma 24, for shared parameters."""
    base = random_models(3, 3)
    features = random_features(base, 3)
    information = fisher(base, features)

    def kl(theta: torch.Tensor, t: int) -> torch.Tensor:
        return position_kl(log_linear(base, features, theta), base)[t]

    for t in range(3):
        hessian = torch.autograd.functional.hessian(lambda x, t=t: kl(x, t), torch.zeros(3, dtype=torch.float64))
        assert torch.allclose(hessian, information[t], rtol=0, atol=1e-10)


def test_softmax_logits_leave_fisher_singular() -> None:
    """The inverse of theorem 14 does not exist: adding a constant to the logits changes nothing."""
    model = random_models(4, 1)
    rows = (torch.eye(4, dtype=torch.float64),)
    assert int(torch.linalg.matrix_rank(fisher(model, rows)[0])) == 3
    harm = random_harm(model)
    with_logits = equilibrium_kl(model, harm, 0.1)
    assert torch.allclose(with_logits, equilibrium_kl(model, harm, 0.1, rows), rtol=1e-9)
    assert torch.allclose(with_logits, 0.1**2 / 2 * martingale(model, harm).information, rtol=1e-9)
