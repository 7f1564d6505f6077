"""Rates of several seeds and their mean, with intervals."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass

from rolesafe.attacks.rates import Rate, wilson_interval

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
    """A share in [0, 1], averaged over seeds, with its 95% interval.

    Args:
        value: The mean.
        low: Lower end of the interval.
        high: Upper end of the interval.
        n: Trials over all seeds.
        per_seed: The share of every seed.
    """

    value: float
    low: float
    high: float
    n: int
    per_seed: tuple[float, ...]


_T = (math.inf, 12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)
"""Two-sided 95% points of Student's t for 0 to 10 degrees of freedom."""


def effective_trials(clusters: Iterable[Hashable]) -> float:
    """Return the number of independent trials that examples in clusters are worth at least, by Kish's design effect.

    Examples of one template differ in a word or two, and stand or fall together. Were they all alike, n examples in
    clusters of sizes m would be worth n^2 / sum(m^2) trials (Kish 1965, section 5.4, with an intraclass correlation of
    1). The correlation is not estimated: where nothing ever won there is nothing to estimate it from, and that is where
    an interval matters most.

    Args:
        clusters: The cluster of each example.
    """
    sizes = Counter(clusters).values()
    return sum(sizes) ** 2 / sum(size * size for size in sizes) if sizes else 0.0


def clustered_interval(rate: Rate, trials: float) -> tuple[float, float]:
    """Return Wilson's 95% interval of `rate` as if it came from `trials` independent trials, at most ``rate.n``."""
    n = min(float(rate.n), trials)
    return wilson_interval(rate.value * n if rate.n else 0.0, n)


def losing_seeds_bound(seeds: int, level: float = 0.05) -> float:
    """Return the upper bound, at confidence 1 - `level`, of the share of seeds that lose something where none did.

    With three seeds 63%: were it more, three of three without a loss would come about in fewer than one of 20 studies.
    """
    if seeds < 1:
        raise ValueError(f"`seeds`: expected at least one, got {seeds}")
    return 1.0 - level ** (1.0 / seeds)


def seed_mean(rates: Sequence[Rate], trials: float | None = None) -> SeedMean | None:
    """The mean over seeds of `rates`, with its 95% interval; None where there is nothing to average.

    Two things blur a rate: few trials, and models that come out differently from another seed. Wilson's interval of the
    pooled counts knows the first, Student's t over the seeds the second. The wider end of the two is given, so that
    neither 0 of 100 looks certain nor one lucky seed looks typical. A bootstrap over three seeds does neither: where
    they agree it has no width.

    Args:
        rates: One per seed; those without trials do not count.
        trials: Independent trials that those of all seeds are worth together, see :func:`effective_trials`; default:
            as many as there are.
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
        half = (_T[len(values) - 1] if len(values) <= len(_T) else _T[-1]) * math.sqrt(variance / len(values))
        low, high = min(low, mean - half), max(high, mean + half)
    return SeedMean(
        value=mean, low=max(0.0, min(low, mean)), high=min(1.0, max(high, mean)), n=pooled.n, per_seed=tuple(values)
    )
