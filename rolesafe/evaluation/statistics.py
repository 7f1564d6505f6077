"""Rates of several seeds and their mean, with intervals."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass

from rolesafe.attacks.rates import Rate, wilson_interval
from rolesafe.extras import require

__all__ = [
    "Rate",
    "SeedMean",
    "clustered_interval",
    "effective_trials",
    "losing_seeds_bound",
    "seed_mean",
    "wilson_interval",
]


@dataclass(frozen=True, kw_only=True)
class SeedMean:
    """Mean of a share in [0, 1] over seeds, with its 95% interval.

    Attributes:
        value: Mean.
        low: Lower end of the interval.
        high: Upper end of the interval.
        n: Trials over all seeds.
        per_seed: Share of each seed.
    """

    value: float
    low: float
    high: float
    n: int
    per_seed: tuple[float, ...]


def effective_trials(clusters: Iterable[Hashable]) -> float:
    """Return the least number of independent trials that examples in clusters are worth (Kish's design effect).

    Examples of one template differ in a word or two and tend to share their outcome. n examples in clusters of sizes m
    with equal outcomes are worth n^2 / sum(m^2) trials (Kish 1965, section 5.4, intraclass correlation 1). The
    correlation is not estimated: without any success there is no data for it.

    Args:
        clusters: Cluster of each example.
    """
    sizes = Counter(clusters).values()
    return sum(sizes) ** 2 / sum(size * size for size in sizes) if sizes else 0.0


def clustered_interval(rate: Rate, trials: float, level: float = 0.05) -> tuple[float, float]:
    """Return Wilson's interval of `rate` for `trials` independent trials, at most ``rate.n``."""
    n = min(float(rate.n), trials)
    return wilson_interval(rate.value * n if rate.n else 0.0, n, level=level)


def losing_seeds_bound(seeds: int, level: float = 0.05) -> float:
    """Return the upper bound, at confidence 1 - `level`, of the share of seeds with a loss, if none of `seeds` had one.

    For three seeds 63%.
    """
    if seeds < 1:
        raise ValueError(f"`seeds`: expected at least one, got {seeds}")
    return 1.0 - level ** (1.0 / seeds)


def seed_mean(rates: Sequence[Rate], trials: float | None = None) -> SeedMean | None:
    """Return the mean of `rates` over seeds with its 95% interval; None without trials.

    Each end is the wider one of two intervals: Wilson's of the pooled counts, which covers the number of trials, and
    Student's t over the seeds, which covers their spread. A bootstrap over three seeds that agree has no width.

    Args:
        rates: One per seed; those without trials are skipped.
        trials: Independent trials of all seeds together, see :func:`effective_trials`; default: all trials.
    """
    rates = [rate for rate in rates if rate.n > 0]
    if not rates:
        return None
    values = [rate.value for rate in rates]
    pooled = Rate(sum(rate.k for rate in rates), sum(rate.n for rate in rates))
    mean = math.fsum(values) / len(values)
    low, high = pooled.interval if trials is None else clustered_interval(pooled, trials)
    if len(values) > 1:
        variance = math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1)
        # three decimals, as in printed tables, keep published results reproducible
        quantile = round(float(require("scipy.stats", "stats").t.ppf(0.975, len(values) - 1)), 3)
        half = quantile * math.sqrt(variance / len(values))
        low, high = min(low, mean - half), max(high, mean + half)
    return SeedMean(
        value=mean, low=max(0.0, min(low, mean)), high=min(1.0, max(high, mean)), n=pooled.n, per_seed=tuple(values)
    )
