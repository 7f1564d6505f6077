"""Paired comparison of conditions on the same examples and seeds: bootstrap, exact tests and corrections.

Legend of shapes: N resamples, P rows that are compared with each other, n examples of one seed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rolesafe.attacks.rates import Rate
from rolesafe.evaluation.statistics import clustered_interval, effective_trials
from rolesafe.extras import require

if TYPE_CHECKING:
    from torch import Tensor

RESAMPLES = 4000
"""Bootstrap samples; the ends of an interval then vary by about a tenth of its width."""

Outcomes = Mapping[int, Mapping[str, float]]
"""Seed to example to outcome: 1 (or True) for a win of the attacker, or for a right reply."""

Clusters = Mapping[str, str]
"""Example to its cluster, such as its template; an example without an entry is its own cluster."""


@dataclass(frozen=True)
class Paired:
    """Rows of outcomes on the same examples, seed by seed.

    Attributes:
        seeds: In order.
        rows: For each seed one tuple of outcomes per row, all of one length, at least 1.
        clusters: For each seed the cluster of every outcome.
    """

    seeds: tuple[int, ...]
    rows: tuple[tuple[tuple[float, ...], ...], ...]
    clusters: tuple[tuple[str, ...], ...]

    @classmethod
    def of(cls, *several: Outcomes, clusters: Clusters | None = None) -> Paired | None:
        """Return the seeds and examples that all of `several` have in common; None if there are none."""
        seeds, rows, labels = [], [], []
        for seed in several[0]:
            if all(seed in one for one in several):
                ids = [id for id in several[0][seed] if all(id in one[seed] for one in several)]
                if ids:
                    seeds.append(seed)
                    rows.append(tuple(tuple(one[seed][id] for id in ids) for one in several))
                    labels.append(tuple((clusters or {}).get(id, f"{seed}/{id}") for id in ids))
        return cls(tuple(seeds), tuple(rows), tuple(labels)) if seeds else None

    @property
    def trials(self) -> float:
        """Independent trials of all seeds, see :func:`effective_trials`."""
        return effective_trials(label for labels in self.clusters for label in labels)

    @property
    def n(self) -> int:
        """Pairs over all seeds."""
        return sum(len(matrix[0]) for matrix in self.rows)

    @property
    def means(self) -> tuple[float, ...]:
        """Mean over seeds of the share of each row."""
        shares = [[sum(row) / len(row) for row in matrix] for matrix in self.rows]
        return tuple(math.fsum(column) / len(column) for column in zip(*shares, strict=True))

    def pooled(self, row: int) -> Rate:
        """Return the counts of a row over all seeds."""
        return Rate(round(sum(sum(matrix[row]) for matrix in self.rows)), self.n)


def resampled(paired: Paired, *, resamples: int = RESAMPLES, seed: int = 0) -> Tensor:
    """Return bootstrap means of the rows: seeds are drawn with replacement, then clusters within each drawn seed.

    All rows use the same draws, which keeps the pairing (Davison and Hinkley 1997, 3.8). With S seeds the spread
    between them is too small by a factor of sqrt((S - 1) / S): 0.82 for three.

    Args:
        paired: Outcomes.
        resamples: Number N of resamples.
        seed: Of the draws; equal seeds give equal numbers.

    Returns:
        (N, P), float64.
    """
    import torch

    draw = torch.Generator().manual_seed(seed)
    matrices: list[tuple[Tensor, Tensor]] = []  # for each seed sums (P, C) and sizes (C,) of its clusters
    for matrix, labels in zip(paired.rows, paired.clusters, strict=True):
        names = {label: i for i, label in enumerate(dict.fromkeys(labels))}
        where = torch.tensor([names[label] for label in labels])
        values = torch.tensor(matrix, dtype=torch.float64)
        sums = torch.zeros(len(matrix), len(names), dtype=torch.float64).index_add_(1, where, values)
        matrices.append((sums, torch.bincount(where).double()))
    count = len(matrices)
    total = torch.zeros(resamples, len(paired.rows[0]), dtype=torch.float64)
    for _ in range(count):
        chosen = torch.randint(count, (resamples,), generator=draw)
        for index, (sums, sizes) in enumerate(matrices):
            here = (chosen == index).nonzero().squeeze(1)
            drawn = torch.randint(len(sizes), (len(here), len(sizes)), generator=draw)
            for row in range(sums.shape[0]):
                total[here, row] += sums[row][drawn].sum(dim=1) / sizes[drawn].sum(dim=1)
    return total / count


def percentile_interval(values: Tensor, level: float = 0.05) -> tuple[float, float] | None:
    """Return the percentile interval of resampled values (N,); None if more than one in 20 is NaN."""
    known = values[~values.isnan()].sort().values
    if len(known) < 0.95 * len(values):
        return None
    last = len(known) - 1
    return float(known[int(level / 2 * last)]), float(known[math.ceil((1.0 - level / 2) * last)])


@dataclass(frozen=True, kw_only=True)
class Versus:
    """Comparison of two conditions on the same examples and seeds.

    Attributes:
        value: Mean over seeds of the first one's share.
        other: Of the second one's.
        n: Pairs of an example and a seed.
        difference: ``value - other``, in [-1, 1].
        difference_interval: Its interval.
        ratio: ``value / other``; infinite if only `other` is 0, None if both are.
        ratio_interval: Its interval, if there is one; the upper end may be infinite.
        p_mcnemar: Exact McNemar test, two-sided, pooled counts of all seeds.
        p_bootstrap: Two-sided, from the share of resamples in which the difference has the other sign.
    """

    value: float
    other: float
    n: int
    difference: float
    difference_interval: tuple[float, float]
    ratio: float | None
    ratio_interval: tuple[float, float] | None
    p_mcnemar: float
    p_bootstrap: float


def versus(
    one: Outcomes,
    other: Outcomes,
    *,
    clusters: Clusters | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
    level: float = 0.05,
) -> Versus | None:
    """Compare two conditions; return None without a common seed and example.

    Each end of an interval is the wider one of two: the hierarchical bootstrap covers seeds and pairs but has no width
    without any success; Wilson's intervals of the pooled counts have (:func:`difference_interval`,
    :func:`ratio_interval`). Both respect clusters. McNemar's test does not.

    Args:
        one: First condition.
        other: Second condition.
        clusters: Examples that depend on each other.
        resamples: Bootstrap samples.
        seed: Of the bootstrap.
        level: Probability outside an interval; divide it by the number of comparisons of one family (Bonferroni).
    """
    paired = Paired.of(one, other, clusters=clusters)
    if paired is None:
        return None
    means = resampled(paired, resamples=resamples, seed=seed)
    value, base = paired.means
    first, second = paired.pooled(0), paired.pooled(1)
    differences = means[:, 0] - means[:, 1]
    trials = paired.trials
    difference = difference_interval(first, second, trials, level)
    ratios = ratio_interval(first, second, trials, level) if value or base else None
    return Versus(
        value=value,
        other=base,
        n=paired.n,
        difference=value - base,
        difference_interval=_wider(difference, percentile_interval(differences, level)),
        ratio=value / base if base else (math.inf if value else None),
        ratio_interval=None
        if ratios is None
        else _wider(ratios, percentile_interval(means[:, 0] / means[:, 1], level)),
        p_mcnemar=mcnemar(*discordant(paired)),
        p_bootstrap=bootstrap_p(differences),
    )


@dataclass(frozen=True, kw_only=True)
class Spread:
    """Largest minus smallest share over several conditions on the same examples and seeds.

    Attributes:
        means: Mean share of each condition, over seeds.
        value: Largest minus smallest of `means`, in [0, 1].
        interval: Its interval.
        n: Examples over all seeds.
    """

    means: Mapping[str, float]
    value: float
    interval: tuple[float, float]
    n: int


def spread(
    conditions: Mapping[str, Outcomes], *, clusters: Clusters | None = None, level: float = 0.05
) -> Spread | None:
    """Return the spread over `conditions`; None for fewer than two, or without a common seed and example.

    A spread is never below 0, and chance alone makes it positive. The interval is the wider one, end by end, of the
    bootstrap and of Newcombe's for the two extremes, which has a width without any success too.

    Args:
        conditions: Outcomes by name, such as the places of the system text.
        clusters: Examples that depend on each other.
        level: Probability outside the interval.
    """
    paired = Paired.of(*conditions.values(), clusters=clusters) if len(conditions) > 1 else None
    if paired is None:
        return None
    means = resampled(paired)
    rates = sorted((paired.pooled(row) for row in range(len(conditions))), key=lambda rate: rate.value)
    low, high = difference_interval(rates[-1], rates[0], paired.trials, level)
    return Spread(
        means=dict(zip(conditions, paired.means, strict=True)),
        value=max(paired.means) - min(paired.means),
        interval=_wider((max(0.0, low), high), percentile_interval(means.amax(1) - means.amin(1), level)),
        n=paired.n,
    )


def growth(conditions: Mapping[str, Outcomes], *, clusters: Clusters | None = None) -> Versus | None:
    """Compare every condition with the first one; return the largest growth, None without anything to compare.

    Success grew beyond chance if the lower end of ``difference_interval`` is above 0. The intervals are corrected for
    the number of comparisons (Bonferroni); the largest growth is the one with the highest lower end.

    Args:
        conditions: Outcomes by name, such as numbers of repetitions, the smallest first.
        clusters: Examples that depend on each other.
    """
    rows = list(conditions.values())
    level = 0.05 / max(1, len(rows) - 1)
    found = [versus(one, rows[0], clusters=clusters, level=level) for one in rows[1:]]
    known = [one for one in found if one is not None]
    return max(known, key=lambda one: (one.difference_interval[0], one.difference), default=None)


def discordant(paired: Paired) -> tuple[int, int]:
    """Return the numbers of pairs that only the first row won and that only the second row won."""
    pairs = [pair for matrix in paired.rows for pair in zip(matrix[0], matrix[1], strict=True)]
    return sum(a > b for a, b in pairs), sum(b > a for a, b in pairs)


def mcnemar(b: int, c: int) -> float:
    """Return the p value of the exact two-sided McNemar test for `b` against `c` discordant pairs."""
    if b < 0 or c < 0:
        raise ValueError(f"`b`, `c`: expected counts >= 0, got b={b}, c={c}")
    return float(require("scipy.stats", "stats").binomtest(b, b + c).pvalue) if b + c else 1.0


def bootstrap_p(differences: Tensor) -> float:
    """Return the two-sided p of a difference from its resamples (N,): twice the smaller tail, at least 2 / (N + 1)."""
    n = len(differences)
    tail = min(int((differences <= 0).sum()), int((differences >= 0).sum()))
    return min(1.0, 2 * (tail + 1) / (n + 1))


def holm(values: Sequence[float]) -> tuple[float, ...]:
    """Return the p values of one family of tests, adjusted by Holm's correction (1979), in their order."""
    adjusted = [0.0] * len(values)
    largest = 0.0
    # Not statsmodels' multipletests: it collects garbage at every call, 0.2 s where a page of records is in memory.
    for done, i in enumerate(sorted(range(len(values)), key=lambda j: values[j])):
        largest = max(largest, min(1.0, (len(values) - done) * values[i]))
        adjusted[i] = largest
    return tuple(adjusted)


def difference_interval(one: Rate, other: Rate, trials: float = math.inf, level: float = 0.05) -> tuple[float, float]:
    """Return the interval of the difference of two shares (Newcombe 1998, method 10, from Wilson's intervals).

    Each share counts at most `trials` independent trials, see :func:`clustered_interval`.
    """
    low, high = clustered_interval(one, trials, level)
    other_low, other_high = clustered_interval(other, trials, level)
    p, q = one.value, other.value
    return p - q - math.hypot(p - low, other_high - q), p - q + math.hypot(high - p, q - other_low)


def ratio_interval(one: Rate, other: Rate, trials: float = math.inf, level: float = 0.05) -> tuple[float, float] | None:
    """Return the interval of the ratio of two shares (MOVER, Donner and Zou 2012); None without trials.

    Each share counts at most `trials` independent trials, see :func:`clustered_interval`. The upper end is infinite if
    the other share may be 0.
    """
    if not one.n or not other.n:
        return None
    low, high = clustered_interval(one, trials, level)
    other_low, other_high = clustered_interval(other, trials, level)
    p, q = one.value, other.value
    start = low * (2 * p - low)  # the roots of a quadratic, in the form that survives a leading 0
    if start > 0.0:
        start /= p * q + math.sqrt((p * q) ** 2 - other_high * (2 * q - other_high) * start)
    scale = other_low * (2 * q - other_low)
    if scale <= 0.0:
        return start, math.inf
    return start, (p * q + math.sqrt((p * q) ** 2 - scale * high * (2 * p - high))) / scale


def _wider(one: tuple[float, float], other: tuple[float, float] | None) -> tuple[float, float]:
    return one if other is None else (min(one[0], other[0]), max(one[1], other[1]))
