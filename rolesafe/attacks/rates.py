"""Success rates with their confidence intervals."""

from __future__ import annotations

import math
from dataclasses import dataclass

from rolesafe.extras import require


def wilson_interval(k: float, n: float, z: None = None, *, level: float = 0.05) -> tuple[float, float]:
    """Return Wilson's score interval for `k` successes in `n` trials (Wilson 1927), accurate near 0 and 1 too.

    Args:
        k: Successes, 0 to `n`; fractional for weighted trials, see
            :func:`rolesafe.evaluation.statistics.effective_trials`.
        n: Trials; 0 gives the interval (0, 1).
        z: Removed, use `level`.
        level: Probability outside the interval; 0.05 gives 95%.

    Returns:
        Lower and upper end, in [0, 1].

    Raises:
        ValueError: An argument is out of range.
        ImportError: The extra `stats` is not installed.
    """
    if z is not None:
        raise TypeError("`z`: removed. Pass `level`, the probability outside the interval, such as 0.05.")
    if not 0 <= k <= n:
        raise ValueError(f"`k`, `n`: expected 0 <= k <= n, got k={k}, n={n}")
    if not 0.0 < level < 1.0:
        raise ValueError(f"`level`: expected a number in (0, 1), got {level}")
    confint = require("statsmodels.stats.proportion", "stats").proportion_confint
    if n == 0:
        return 0.0, 1.0
    low, high = confint(k, n, alpha=level, method="wilson")
    # exact ends: rounding would move them off 0 and 1
    return 0.0 if k == 0 else max(0.0, float(low)), 1.0 if k == n else min(1.0, float(high))


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
        """Share of successes; NaN without trials."""
        return self.k / self.n if self.n else math.nan

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's 95% interval. Needs the extra `stats`."""
        return wilson_interval(self.k, self.n)

    def __str__(self) -> str:
        try:
            low, high = self.interval
        except ImportError:
            return f"{self.value:.3f} ({self.k}/{self.n})"
        return f"{self.value:.3f} [{low:.3f}, {high:.3f}] ({self.k}/{self.n})"
