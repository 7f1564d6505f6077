"""Exact optima of the standard and the deep objective over all tabular models.

Shapes as in :mod:`rolesafe.depth.tabular`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rolesafe.arguments import is_integer, is_number
from rolesafe.depth.harm_process import Harms, differences, expected_harm
from rolesafe.depth.objective import DeepObjective, conditional_kl
from rolesafe.depth.tabular import TabularModel, harm_table


def standard_optimum(base: TabularModel, harm: Harms, strength: float) -> TabularModel:
    """Return the minimiser of the standard objective (Eq. 2): the law of sequences base * exp(-strength * Harm) / Z.

    It equals the base model after the harm horizon, whatever the strength.

    Args:
        base: Base model, or a batch.
        harm: Harm.
        strength: lambda >= 0.

    Raises:
        ValueError: The strength is negative, or as :func:`rolesafe.depth.harm_table`.
    """
    if not is_number(strength) or strength < 0:
        raise ValueError(f"`strength`: expected a number >= 0, got {strength!r}.")
    tilt = -strength * harm_table(base, harm)
    tables: list[Tensor] = []
    for log_probs in reversed(base.log_probs):
        # relative to one token, so that a constant tilt leaves the base unchanged
        top = tilt[..., :1]
        joint = log_probs + (tilt - top)
        rest = joint.logsumexp(-1)
        tables.insert(0, joint - rest.unsqueeze(-1))
        tilt = rest + top.squeeze(-1)
    return TabularModel(tables)


@dataclass(frozen=True, eq=False)
class DeepOptimum:
    """Stationary point of the deep objective.

    Attributes:
        model: The optimum.
        value: (*B,) objective there.
        gap: Stationarity gap: largest difference between a next-token probability and the one that the stationarity
            condition gives for the final model.
        sweeps: Passes over all positions.
    """

    model: TabularModel
    value: Tensor
    gap: float
    sweeps: int


@torch.no_grad()
def deep_optimum(
    base: TabularModel,
    harm: Harms,
    objective: DeepObjective,
    *,
    start: TabularModel | None = None,
    tolerance: float = 1e-12,
    sweeps: int = 10_000,
) -> DeepOptimum:
    """Minimise the deep objective by exact updates of one position after the other.

    With all other positions fixed the objective is convex in the tables of a position and its minimiser is known, so
    every sweep lowers it. The stationarity condition with ``kl="policy"`` is

    ``P(v | y) ~ base(v | y) * exp(-W(yv) + Q(y) / P(y) * a_t * [v is a recovery token])``,
    ``W(yv) = strength * h(yv) + E[sum of the KL of later positions | yv]``,

    which Thm. 20 and Prop. 29 lack the later KL of. With ``kl="prefix"`` it is
    ``P(v | y) ~ base(v | y) * exp(-strength * P(y) / Q(y) * h(yv) + a_t * [v is a recovery token])``.

    With ``kl="policy"`` there may be several minima; `start` chooses.

    Args:
        base: Base model, or a batch.
        harm: Harm.
        objective: The objective.
        start: First iterate; default: the base model.
        tolerance: Stop at this change of a probability in a sweep.
        sweeps: Largest number of sweeps.

    Raises:
        ValueError: With ``kl="prefix"`` and a strength: a prefix that the base reaches and whose harm is open has
            probability 0 in `prefixes`, so that nothing holds the model to the base there.
    """
    if not is_integer(sweeps, 1):
        raise ValueError(f"`sweeps`: expected a number >= 1, got {sweeps!r}.")
    laws, mask, table = objective.laws(base), objective.mask(base), harm_table(base, harm)
    if objective.kl == "prefix" and objective.strength > 0:
        _check_prefixes(base, table, laws)
    model = TabularModel([log.clone() for log in (start or base).log_probs])
    done, change = 0, torch.inf
    while change > tolerance and done < sweeps:
        model, change = _sweep(model, base, table, objective, laws, mask, together=False)
        done += 1
    _, gap = _sweep(model, base, table, objective, laws, mask, together=True)
    return DeepOptimum(model=model, value=objective.value(model, base, table), gap=gap, sweeps=done)


def _sweep(
    model: TabularModel,
    base: TabularModel,
    harm: Tensor,
    objective: DeepObjective,
    laws: Sequence[Tensor],
    mask: Tensor,
    *,
    together: bool,
) -> tuple[TabularModel, float]:
    """Update all positions, last first, and return the new model and the largest change of a probability.

    Args:
        together: Take the cost of later positions from the old model: the residual of the stationarity condition.
    """
    policy = objective.kl == "policy"
    cost = objective.strength * harm  # of a prefix and its next token, with the rest as it is
    kls = conditional_kl(model, base) if policy and together else None
    tables: list[Tensor] = []
    change = 0.0
    for t in range(model.length, 0, -1):
        q, m = laws[t - 1], model.law[t - 1]
        weight = objective.weight(t)
        if policy:
            # infinite where the model no longer reaches a prefix of Q: it recovers there for free
            bonus = torch.where(q > 0, weight * q / m, 0.0) if weight else torch.zeros_like(q)
            tilt = -cost
        else:
            ratio = torch.where((m > 0) & (q > 0), m / q, 0.0)
            tilt = -cost * ratio.unsqueeze(-1)
            bonus = weight * (q > 0).to(q.dtype)
        log = _tilted(base.log_probs[t - 1], tilt, bonus, mask)
        probs = log.exp()
        change = max(change, float((probs - model.probs[t - 1]).abs().max()))
        tables.insert(0, log)
        kept, kept_log = (model.probs[t - 1], model.log_probs[t - 1]) if together else (probs, log)
        first = cost[..., :1]
        cost = first.squeeze(-1) + (kept * (cost - first)).sum(-1)
        if policy:
            if kls is not None:
                cost = cost + kls[t - 1]
            else:
                cost = cost + torch.where(kept > 0, kept * (kept_log - base.log_probs[t - 1]), 0.0).sum(-1)
    return TabularModel(tables), change


def _tilted(log_base: Tensor, tilt: Tensor, bonus: Tensor, mask: Tensor) -> Tensor:
    """Return log of base * exp(tilt + bonus on the recovery tokens) / Z, accurate for a bonus of any size.

    Args:
        log_base, tilt: (*B, *(V,) * t).
        bonus: (*B, *(V,) * (t - 1)), may be infinite.
        mask: (V,).
    """
    score = log_base + tilt
    inside = torch.where(mask > 0, score, -torch.inf)
    outside = torch.where(mask > 0, -torch.inf, score)
    a, b = inside.logsumexp(-1), outside.logsumexp(-1)
    odds = torch.where(a.isneginf(), -torch.inf, torch.where(b.isneginf(), torch.inf, a - b + bonus))
    share = torch.nn.functional.logsigmoid(torch.stack([odds, -odds], -1))
    a, b = torch.where(a.isneginf(), 0.0, a), torch.where(b.isneginf(), 0.0, b)
    recovering = inside - a.unsqueeze(-1) + share[..., :1]
    other = outside - b.unsqueeze(-1) + share[..., 1:]
    return torch.where(mask > 0, recovering, other)


def _check_prefixes(base: TabularModel, harm: Tensor, laws: Sequence[Tensor]) -> None:
    innovations = differences(expected_harm(base, harm))
    for t, law in enumerate(laws):
        undecided = (innovations[t].abs().amax(-1) > 0) & (base.law[t] > 0) & (law <= 0)
        if bool(undecided.any()):
            raise ValueError(
                f"`prefixes`: expected a positive probability of every prefix whose harm is open, got 0 for a prefix "
                f"of {t} tokens. Mix in the base model's prefixes, or pass kl='policy'."
            )
