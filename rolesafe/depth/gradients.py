"""Gradients of the expected harm by position, Fisher information and bounds (arXiv 2603.04851, sections 5 and 7).

Shapes as in :mod:`rolesafe.depth.tabular`. The parameters are the logits of all tables, or K parameters behind them.
The latter enter by the Jacobian of the logits: T arrays of shape (*B, *(V,) * t, K).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rolesafe.depth.harm_process import Harms, differences, expected_harm, martingale
from rolesafe.depth.tabular import TabularModel, total

Jacobian = Sequence[Tensor]
"""Derivatives of the logits by K parameters: T arrays of shape (*B, *(V,) * t, K)."""


def jacobian(logits: Callable[[Tensor], Sequence[Tensor]], theta: Tensor) -> tuple[Tensor, ...]:
    """Return the derivatives of logit tables by parameters.

    Args:
        logits: Function of parameters (K,) that returns T tables.
        theta: (K,) parameters.
    """
    derive: Any = torch.autograd.functional.jacobian
    return tuple(derive(lambda values: tuple(logits(values)), theta.double()))


def gradient(model: TabularModel, harm: Harms) -> tuple[Tensor, ...]:
    """Return the gradient of the expected harm by the logits of positions 1..T (Thm. 8), shapes as ``model.tables``.

    The entry of a prefix y and a token v is P(y) P(v | y) (h(yv) - h(y)): exactly 0 after the horizon (Thm. 10).
    """
    rows = zip(model.law, model.probs, differences(expected_harm(model, harm)), strict=False)
    return tuple(law.unsqueeze(-1) * probs * innovation for law, probs, innovation in rows)


def gradient_contributions(model: TabularModel, harm: Harms, jacobian: Jacobian) -> Tensor:
    """Return the part of each position in the gradient of the expected harm by shared parameters (Thm. 8), (*B, T, K).

    The sum over positions is the gradient.
    """
    return through(gradient(model, harm), jacobian)


def through(tables: Sequence[Tensor], jacobian: Jacobian) -> Tensor:
    """Apply the chain rule: derivatives by the logits, T tables, to derivatives by K parameters, (*B, T, K)."""
    rows = enumerate(zip(tables, jacobian, strict=True), 1)
    parts = [(table.unsqueeze(-1) * derivative).flatten(-t - 1, -2).sum(-2) for t, (table, derivative) in rows]
    return torch.stack(parts, -2)


def scores(model: TabularModel, jacobian: Jacobian) -> tuple[Tensor, ...]:
    """Return the gradients of log P(token | prefix) by K parameters: T arrays of shape (*B, *(V,) * t, K)."""
    return tuple(
        rows - (probs.unsqueeze(-1) * rows).sum(-2, keepdim=True)
        for probs, rows in zip(model.probs, jacobian, strict=True)
    )


def fisher(model: TabularModel, jacobian: Jacobian, prefixes: Sequence[Tensor] | None = None) -> Tensor:
    """Return the Fisher information of each position, averaged over prefixes (Def. 11), (*B, T, K, K).

    Args:
        model: Model.
        jacobian: Derivatives of the logits.
        prefixes: Laws of the prefixes of 0..T-1 tokens; default: the model's own.
    """
    found = []
    laws = model.law if prefixes is None else prefixes
    for t, (law, probs, score) in enumerate(zip(laws, model.probs, scores(model, jacobian), strict=False), 1):
        weight = (law.unsqueeze(-1) * probs).flatten(-t)  # (*B, V^t)
        rows = score.flatten(-t - 1, -2)  # (*B, V^t, K)
        found.append(rows.mT @ (weight.unsqueeze(-1) * rows))
    return torch.stack(found, -3)


def fisher_traces(model: TabularModel, jacobian: Jacobian | None = None) -> tuple[Tensor, ...]:
    """Return the trace of the Fisher information after each prefix of 0..T-1 tokens (Def. 11): T arrays.

    Args:
        model: Model.
        jacobian: Derivatives of the logits; default: the logits are the parameters, which gives 1 - sum of P(v)^2.
    """
    if jacobian is None:
        return tuple(1.0 - probs.square().sum(-1) for probs in model.probs)
    rows = zip(model.probs, scores(model, jacobian), strict=True)
    return tuple((probs * score.square().sum(-1)).sum(-1) for probs, score in rows)


@dataclass(frozen=True, eq=False)
class GradientBounds:
    """Norm of the gradient of each position and its bounds, in increasing order; (*B, T) each.

    Attributes:
        norm: Norm of the contribution of a position.
        pointwise: E[sqrt(Var(h_t | prefix) tr F)], from Lem. 12.
        averaged: sqrt(I_t E[tr F]), Thm. 13.
        uniform: sqrt(I_t C) with the largest trace C of any reachable prefix, Thm. 13.
    """

    norm: Tensor
    pointwise: Tensor
    averaged: Tensor
    uniform: Tensor


def gradient_bounds(model: TabularModel, harm: Harms, jacobian: Jacobian | None = None) -> GradientBounds:
    """Return the norm of the gradient by position and its Fisher bounds (Lem. 12, Thm. 13).

    Args:
        model: Model.
        harm: Harm.
        jacobian: Derivatives of the logits by shared parameters; default: the logits are the parameters.
    """
    found = martingale(model, harm)
    if jacobian is None:
        norms = [total(g.square(), t).sqrt() for t, g in enumerate(gradient(model, harm), 1)]
        norm = torch.stack(norms, -1)
    else:
        norm = gradient_contributions(model, harm, jacobian).norm(dim=-1)
    pointwise, averaged, uniform = [], [], []
    for t, trace in enumerate(fisher_traces(model, jacobian)):
        variance = (model.probs[t] * found.innovations[t].square()).sum(-1)
        pointwise.append(model.mean(t, (variance * trace).sqrt()))
        averaged.append((found.information[..., t] * model.mean(t, trace)).sqrt())
        reachable = torch.where(model.law[t] > 0, trace, 0.0)
        uniform.append((found.information[..., t] * (reachable.flatten(-t).amax(-1) if t else reachable)).sqrt())
    return GradientBounds(norm, torch.stack(pointwise, -1), torch.stack(averaged, -1), torch.stack(uniform, -1))
