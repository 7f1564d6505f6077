"""KL divergence by position at weak optima, to second order (arXiv 2603.04851, Thm. 14, 19, 27 and appendix A).

Shapes as in :mod:`rolesafe.depth.tabular`. Softmax logits leave the Fisher information singular, so its pseudo-inverse
replaces the inverse of the paper.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from rolesafe.depth.gradients import Jacobian, fisher, gradient, through
from rolesafe.depth.harm_process import Harms
from rolesafe.depth.objective import DeepObjective
from rolesafe.depth.recovery_theory import recovery_gradient
from rolesafe.depth.tabular import TabularModel, total

SMALLEST = 1e-10
"""Eigenvalues of a Fisher matrix below this part of the largest count as 0."""


def equilibrium_kl(
    model: TabularModel, harm: Harms, strength: float, jacobian: Jacobian | None = None, *, shared: bool = False
) -> Tensor:
    """Return the KL divergence of each position at the optimum of Eq. 2, to second order in `strength`, (*B, T).

    The logits as parameters give strength^2 I_t / 2; other parameters never give more, and their sum is at most
    strength^2 Var(Harm) / 2.

    Args:
        model: Base model.
        harm: Harm.
        strength: lambda.
        jacobian: Derivatives of the logits by K parameters; default: the logits are the parameters.
        shared: True: all positions have the same parameters (Prop. 25), False: each position has its own (Thm. 14).
    """
    return _kl(model, [strength * table for table in gradient(model, harm)], model.law, jacobian, shared)


def deep_equilibrium_kl(
    model: TabularModel,
    harm: Harms,
    objective: DeepObjective,
    jacobian: Jacobian | None = None,
    *,
    shared: bool = False,
) -> Tensor:
    """Return the KL divergence of each position at the optimum of `objective`, to second order in its weights (Thm.
    19).

    The KL is averaged over the prefixes of ``objective.kl``. With ``"policy"`` the part of recovery is
    a_t^2 / 2 E_Q[Q / P rho (1 - rho)] for logits as parameters, not a_t^2 J_t / 2; with ``"prefix"`` it is the latter.

    Args:
        model: Base model.
        harm: Harm.
        objective: The objective.
        jacobian: As :func:`equilibrium_kl`.
        shared: As :func:`equilibrium_kl`.
    """
    failures = recovery_gradient(model, objective.prefixes, objective.tokens)
    tables = [
        objective.strength * harmful + objective.weight(t) * failure
        for t, (harmful, failure) in enumerate(zip(gradient(model, harm), failures, strict=True), 1)
    ]
    laws = objective.laws(model) if objective.kl == "prefix" else model.law
    return _kl(model, tables, laws, jacobian, shared)


def _kl(
    model: TabularModel, tables: Sequence[Tensor], laws: Sequence[Tensor], jacobian: Jacobian | None, shared: bool
) -> Tensor:
    """Return half of g' F^+ g by position, for derivatives `tables` by the logits and a KL weighted by `laws`."""
    if jacobian is None:
        if shared:
            raise ValueError("`jacobian`: expected derivatives by shared parameters for shared=True, got none.")
        found = []
        for t, table in enumerate(tables, 1):
            law, probs = laws[t - 1].unsqueeze(-1), model.probs[t - 1]
            scale = law * probs
            found.append(total(torch.where(table != 0, table.square() / scale, 0.0), t) / 2)
        return torch.stack(found, -1)
    slopes, information = through(tables, jacobian), fisher(model, jacobian, laws[: model.length])
    if not shared:
        steps = _solve(information, slopes)
        return (slopes * steps).sum(-1) / 2
    step = _solve(information.sum(-3), slopes.sum(-2))  # (*B, K)
    return torch.einsum("...k,...tkl,...l->...t", step, information, step) / 2


def _solve(matrix: Tensor, vector: Tensor) -> Tensor:
    """Return the pseudo-inverse of symmetric matrices (..., K, K) times vectors (..., K)."""
    inverse = torch.linalg.pinv(matrix, hermitian=True, rtol=SMALLEST)
    return (inverse @ vector.unsqueeze(-1)).squeeze(-1)
