"""Estimates with confidence intervals: the methods that hold their level for rare and for graded harm.

Needs the extra `stats`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from rolesafe.arguments import is_integer, is_number
from rolesafe.attacks.rates import wilson_interval
from rolesafe.extras import require

BISECTIONS = 60


@dataclass(frozen=True)
class Estimate:
    """Estimate with its confidence interval.

    Attributes:
        value: Estimate; unbiased unless its function says otherwise, so it may lie outside the range of the quantity.
        low: Lower end of the interval.
        high: Upper end.
        n: Number of independent samples.
        method: Interval method, such as ``"Tango"``.
    """

    value: float
    low: float
    high: float
    n: int
    method: str


def clopper_pearson(k: int, n: int, *, level: float = 0.05) -> tuple[float, float]:
    """Return the exact interval of a proportion (Clopper and Pearson 1934).

    Args:
        k: Successes.
        n: Trials; 0 gives (0, 1).
        level: Probability outside, half of it at each end.
    """
    check_level(level)
    if n == 0:
        return 0.0, 1.0
    confint = require("statsmodels.stats.proportion", "stats").proportion_confint
    low, high = confint(k, n, alpha=level, method="beta")
    return float(low), float(high)


def t_interval(values: Tensor, *, level: float = 0.05) -> tuple[float, float, float]:
    """Return mean and Student's t interval of independent values (n,); without a width for n < 2 it is infinite."""
    check_level(level)
    n, values = len(values), values.double()
    if n < 2:
        return (float(values.mean()) if n else math.nan), -math.inf, math.inf
    mean = float(values.mean())
    quantile = float(require("scipy.stats", "stats").t.ppf(1 - level / 2, n - 1))
    half = quantile * float(values.std()) / math.sqrt(n)
    return mean, mean - half, mean + half


def tango_interval(b: Tensor, c: Tensor, n: int, *, level: float = 0.05) -> tuple[Tensor, Tensor]:
    """Return the score interval of a difference of paired proportions, (b - c) / n (Tango 1998).

    The ends are the differences that the score test with the constrained maximum likelihood estimate does not reject,
    found by bisection. statsmodels and scipy have no such interval.

    Args:
        b: (...) pairs with a success in the first only.
        c: (...) pairs with a success in the second only.
        n: Pairs, at least 1.
        level: Probability outside.

    Returns:
        Lower and upper ends (...), float64 in [-1, 1].
    """
    check_level(level)
    if not is_integer(n, 1):
        raise ValueError(f"`n`: expected a number of pairs >= 1, got {n!r}.")
    b, c = torch.as_tensor(b, dtype=torch.float64), torch.as_tensor(c, dtype=torch.float64)
    quantile = float(require("scipy.stats", "stats").norm.ppf(1 - level / 2))
    value = (b - c) / n

    def outside(difference: Tensor) -> Tensor:
        slope = -b - c + (2 * n - b + c) * difference
        constant = -c * difference * (1 - difference)
        root = (slope.square() - 8 * n * constant).clamp_min(0).sqrt()
        share = (root - slope) / (4 * n)
        variance = n * (2 * share + difference * (1 - difference))
        return (b - c - n * difference).square() > quantile**2 * variance.clamp_min(0)

    ends = []
    for far in (-1.0, 1.0):
        inner, outer = value.clone(), torch.full_like(value, far)
        for _ in range(BISECTIONS):
            middle = (inner + outer) / 2
            out = outside(middle)
            inner, outer = torch.where(out, inner, middle), torch.where(out, middle, outer)
        ends.append(inner)
    return ends[0], ends[1]


def mean_rate(probabilities: Tensor, *, level: float = 0.05) -> Estimate:
    """Estimate the mean of exact probabilities over prefixes: Wilson's interval with a fractional count.

    A probability in [0, 1] varies no more than a success, so the interval is conservative.

    Args:
        probabilities: (n,) such as the recovery probability after each sampled prefix; NaN are left out.
        level: Probability outside.
    """
    known = torch.as_tensor(probabilities, dtype=torch.float64)
    known = known[~known.isnan()]
    if bool(((known < 0) | (known > 1)).any()):
        raise ValueError("`probabilities`: expected values in [0, 1], got others.")
    n = len(known)
    total = min(float(known.sum()), float(n))
    low, high = wilson_interval(total, n, level=level)
    return Estimate(total / n if n else math.nan, low, high, n, "Wilson")


def violating_mass(probabilities: Tensor, target: float, *, level: float = 0.05) -> Estimate:
    """Bound the mass of prefixes after which recovery is below `target`, from sampled prefixes (Def. 21).

    The upper end is a one-sided Clopper-Pearson bound: 1 - level^(1/n) if no prefix violates.

    Args:
        probabilities: (n,) recovery probability after each independently sampled prefix.
        target: delta in (0, 1).
        level: Probability that the mass is above the upper end.
    """
    if not is_number(target) or not 0 < target < 1:
        raise ValueError(f"`target`: expected a probability in (0, 1), got {target!r}.")
    known = torch.as_tensor(probabilities, dtype=torch.float64)
    known = known[~known.isnan()]
    n, k = len(known), int((known < target).sum())
    high = clopper_pearson(k, n, level=2 * level)[1]
    return Estimate(k / n if n else math.nan, 0.0, high, n, "Clopper-Pearson, one-sided")


def mean_value(values: Tensor, *, level: float = 0.05) -> Estimate:
    """Estimate a mean of independent values (n,), such as the KL divergence after each prefix: Student's t interval.

    NaN are left out.
    """
    known = torch.as_tensor(values, dtype=torch.float64)
    known = known[~known.isnan()]
    mean, low, high = t_interval(known, level=level)
    return Estimate(mean, low, high, len(known), "t")


def check_level(level: float) -> None:
    """Check a probability outside an interval.

    Raises:
        ValueError: It is not in (0, 1).
    """
    if not is_number(level) or not 0 < level < 1:
        raise ValueError(f"`level`: expected a number in (0, 1), got {level!r}.")
