"""Success rates with intervals."""

from __future__ import annotations

import math
from dataclasses import dataclass

Z95 = 1.959963984540054
"""Two-sided 95% quantile of the standard normal distribution."""


def wilson_interval(k: float, n: float, z: float = Z95) -> tuple[float, float]:
    """Return Wilson's score interval for `k` successes in `n` trials (Wilson 1927), sound also for rates near 0 and 1.

    Args:
        k: Successes, 0 to `n`; a fraction where trials are weighed, see
            :func:`rolesafe.evaluation.statistics.effective_trials`.
        n: Trials; with none, nothing is known and the interval is (0, 1).
        z: Quantile of the standard normal distribution; the default gives 95%.

    Returns:
        Lower and upper end, in [0, 1].

    Raises:
        ValueError: `k` or `n` is out of range.
    """
    if not 0 <= k <= n:
        raise ValueError(f"`k`, `n`: expected 0 <= k <= n, got k={k}, n={n}")
    if not z > 0:
        raise ValueError(f"`z`: expected a number > 0, got {z}")
    if n == 0:
        return 0.0, 1.0
    p, scale = k / n, 1 + z * z / n
    centre = (p + z * z / (2 * n)) / scale
    half = z / scale * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    low = 0.0 if k == 0 else max(0.0, centre - half)
    high = 1.0 if k == n else min(1.0, centre + half)
    return low, high


@dataclass(frozen=True)
class Rate:
    """Hold `k` successes in `n` trials."""

    k: int
    n: int

    def __post_init__(self) -> None:
        if not 0 <= self.k <= self.n:
            raise ValueError(f"`k`, `n`: expected 0 <= k <= n, got k={self.k}, n={self.n}")

    @property
    def value(self) -> float:
        """Return the share of successes, NaN without trials."""
        return self.k / self.n if self.n else math.nan

    @property
    def interval(self) -> tuple[float, float]:
        """Return Wilson's 95% interval."""
        return wilson_interval(self.k, self.n)

    def __str__(self) -> str:
        low, high = self.interval
        return f"{self.value:.3f} [{low:.3f}, {high:.3f}] ({self.k}/{self.n})"
