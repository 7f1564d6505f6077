"""Intervals for rates and for means over seeds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from rolesafe.attacks.rates import Rate, wilson_interval

__all__ = ["Estimate", "Rate", "bootstrap_interval", "over_seeds", "wilson_interval"]


@dataclass(frozen=True)
class Estimate:
    """A mean with a 95% interval."""

    mean: float
    low: float
    high: float


def bootstrap_interval(
    values: Sequence[float], *, level: float = 0.95, resamples: int = 2000, seed: int = 0
) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean of `values` (Efron 1979).

    With few values it is narrow: three seeds can only be resampled in ten ways, and equal values give no width at all.

    Args:
        values: One per seed.
        level: Coverage, in (0, 1).
        resamples: Number of resamples.
        seed: Of the resampling.

    Returns:
        Lower and upper end.

    Raises:
        ValueError: There are no values, one is not finite, or a number is out of range.
    """
    if not values or not all(math.isfinite(v) for v in values):
        raise ValueError(f"`values`: expected at least one finite number, got {list(values)}")
    if not 0.0 < level < 1.0:
        raise ValueError(f"`level`: expected a number in (0, 1), got {level}")
    if resamples < 1:
        raise ValueError(f"`resamples`: expected a number >= 1, got {resamples}")
    rng, n = Random(seed), len(values)
    means = sorted(math.fsum(rng.choices(values, k=n)) / n for _ in range(resamples))
    tail = (1.0 - level) / 2.0
    return _quantile(means, tail), _quantile(means, 1.0 - tail)


def over_seeds(rates: Sequence[Rate], *, seed: int = 0) -> Estimate:
    """Mean of the rates of several seeds, with an interval over the seeds; for one seed, Wilson's interval of it.

    Raises:
        ValueError: There is no rate, or one without trials.
    """
    if not rates or any(rate.n == 0 for rate in rates):
        raise ValueError(f"`rates`: expected at least one, each with trials, got {list(rates)}")
    if len(rates) == 1:
        return Estimate(rates[0].value, *rates[0].interval)
    values = [rate.value for rate in rates]
    return Estimate(math.fsum(values) / len(values), *bootstrap_interval(values, seed=seed))


def _quantile(ordered: Sequence[float], share: float) -> float:
    """Linear interpolation between order statistics."""
    place = share * (len(ordered) - 1)
    low = math.floor(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (place - low) * (ordered[high] - ordered[low])
