"""From counts per seed to a share with an interval that covers chance and seeds both."""

from __future__ import annotations

import math
from collections.abc import Sequence

from rolesafe.report.view import Estimate

_Z = 1.959964
_T = (math.inf, 12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)
"""Two-sided 95% points of Student's t for 0 to 10 degrees of freedom."""


def wilson(k: int, n: int) -> tuple[float, float]:
    """Wilson's 95% interval of k successes in n trials (Wilson 1927, section 5)."""
    if n <= 0 or not 0 <= k <= n:
        raise ValueError(f"`k`, `n`: expected 0 <= k <= n and n >= 1, got k = {k}, n = {n}")
    centre = (k + _Z**2 / 2) / (n + _Z**2)
    half = _Z / (n + _Z**2) * math.sqrt(k * (n - k) / n + _Z**2 / 4)
    return (0.0 if k == 0 else centre - half), (1.0 if k == n else centre + half)


def estimate(counts: Sequence[tuple[int, int]]) -> Estimate | None:
    """The mean over seeds of the share k / n, with its 95% interval; None where there is nothing to average.

    Two things blur a share: few trials, and models that come out differently from another seed. Wilson's interval on
    the pooled counts knows the first, Student's t over the seeds the second. The wider end of the two is given, so that
    neither 0 of 100 looks certain nor one lucky seed looks typical.

    Args:
        counts: (k, n) of every seed; seeds with n = 0 do not count.
    """
    counts = [(k, n) for k, n in counts if n > 0]
    if not counts:
        return None
    shares = [k / n for k, n in counts]
    k, n = sum(k for k, _ in counts), sum(n for _, n in counts)
    mean = sum(shares) / len(shares)
    low, high = wilson(k, n)
    if len(shares) > 1:
        variance = sum((share - mean) ** 2 for share in shares) / (len(shares) - 1)
        half = (_T[len(shares) - 1] if len(shares) <= len(_T) else 2.0) * math.sqrt(variance / len(shares))
        low, high = min(low, mean - half), max(high, mean + half)
    return Estimate(
        value=mean, low=max(0.0, min(low, mean)), high=min(1.0, max(high, mean)), k=k, n=n, per_seed=tuple(shares)
    )
