"""Two mechanisms on the same examples and seeds: bootstrap, exact tests and corrections.

Legend of shapes: N resamples, P rows that are compared with each other, n examples of one seed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rolesafe.attacks.rates import Rate
from rolesafe.evaluation.statistics import clustered_interval, effective_trials

if TYPE_CHECKING:
    from torch import Tensor

RESAMPLES = 4000
"""Bootstrap samples: enough that the ends of an interval hold still to about a tenth of its width."""

Outcomes = Mapping[int, Mapping[str, float]]
"""Seed to example to what happened: 1 (or True) where the attacker won, or where a reply was right."""

Clusters = Mapping[str, str]
"""Example to the cluster that it belongs to, such as its template; one that is not in here is its own."""


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
        """The seeds and examples that all of `several` have in common; ``None`` where there are none."""
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
        """Independent trials that the pairs of all seeds are worth, see :func:`effective_trials`."""
        return effective_trials(label for labels in self.clusters for label in labels)

    @property
    def n(self) -> int:
        """Pairs over all seeds."""
        return sum(len(matrix[0]) for matrix in self.rows)

    @property
    def means(self) -> tuple[float, ...]:
        """The mean over seeds of the share of each row."""
        shares = [[sum(row) / len(row) for row in matrix] for matrix in self.rows]
        return tuple(math.fsum(column) / len(column) for column in zip(*shares, strict=True))

    def pooled(self, row: int) -> Rate:
        """The counts of a row over all seeds."""
        return Rate(round(sum(sum(matrix[row]) for matrix in self.rows)), self.n)


def resampled(paired: Paired, *, resamples: int = RESAMPLES, seed: int = 0) -> Tensor:
    """Bootstrap means of the rows: first seeds are drawn with replacement, then clusters within each drawn seed.

    All rows see the same draws, so differences keep what the examples have in common (Davison and Hinkley 1997, 3.8).
    Of S seeds the spread between them comes out too small by a factor of sqrt((S - 1) / S): 0.82 with three.

    Args:
        paired: The outcomes.
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


def percentile_interval(values: Tensor) -> tuple[float, float] | None:
    """95% percentile interval of resampled values (N,); ``None`` where more than one in 20 is NaN: not defined."""
    known = values[~values.isnan()].sort().values
    if len(known) < 0.95 * len(values):
        return None
    return float(known[int(0.025 * (len(known) - 1))]), float(known[math.ceil(0.975 * (len(known) - 1))])


@dataclass(frozen=True, kw_only=True)
class Versus:
    """One mechanism against another one, both attacked (or asked) on the same examples and seeds.

    Attributes:
        value: Mean over seeds of the first one's share.
        other: Of the other one's.
        n: Pairs of an example and a seed.
        difference: ``value - other``, in [-1, 1].
        difference_interval: Its 95% interval.
        ratio: ``value / other``; infinite where only `other` is 0, ``None`` where both are.
        ratio_interval: Its 95% interval, where there is one; the upper end may be infinite.
        p_mcnemar: Exact McNemar test, two-sided, counts of all seeds together.
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
    one: Outcomes, other: Outcomes, *, clusters: Clusters | None = None, resamples: int = RESAMPLES, seed: int = 0
) -> Versus | None:
    """Compare two mechanisms; ``None`` where they have no seed and example in common.

    An interval is the wider one of two, end by end: the hierarchical bootstrap knows seeds and pairs, but has no width
    where nothing was ever won; the one from Wilson's intervals of the pooled counts has
    (:func:`difference_interval`, :func:`ratio_interval`). Both take examples of one cluster together. McNemar's test
    does not.
    """
    paired = Paired.of(one, other, clusters=clusters)
    if paired is None:
        return None
    means = resampled(paired, resamples=resamples, seed=seed)
    value, base = paired.means
    first, second = paired.pooled(0), paired.pooled(1)
    differences = means[:, 0] - means[:, 1]
    trials = paired.trials
    ratios = ratio_interval(first, second, trials) if value or base else None
    return Versus(
        value=value,
        other=base,
        n=paired.n,
        difference=value - base,
        difference_interval=_wider(difference_interval(first, second, trials), percentile_interval(differences)),
        ratio=value / base if base else (math.inf if value else None),
        ratio_interval=None if ratios is None else _wider(ratios, percentile_interval(means[:, 0] / means[:, 1])),
        p_mcnemar=mcnemar(*discordant(paired)),
        p_bootstrap=bootstrap_p(differences),
    )


def discordant(paired: Paired) -> tuple[int, int]:
    """Pairs that only the first row won, and those that only the second one did."""
    pairs = [pair for matrix in paired.rows for pair in zip(matrix[0], matrix[1], strict=True)]
    return sum(a > b for a, b in pairs), sum(b > a for a, b in pairs)


def mcnemar(b: int, c: int) -> float:
    """The exact two-sided McNemar test: p of `b` against `c` discordant pairs, were both equally likely.

    Twice the smaller tail of a fair coin thrown ``b + c`` times, at most 1 (McNemar 1947; exact form: Mosteller 1952).
    """
    if b < 0 or c < 0:
        raise ValueError(f"`b`, `c`: expected counts >= 0, got b={b}, c={c}")
    n = b + c
    tail = sum(math.comb(n, k) for k in range(min(b, c) + 1))
    return min(1.0, 2 * tail / 2**n)


def bootstrap_p(differences: Tensor) -> float:
    """Two-sided p of a difference from its resamples (N,): twice the smaller tail at 0, never below 2 / (N + 1)."""
    n = len(differences)
    tail = min(int((differences <= 0).sum()), int((differences >= 0).sum()))
    return min(1.0, 2 * (tail + 1) / (n + 1))


def holm(values: Sequence[float]) -> tuple[float, ...]:
    """Holm's correction (1979): p values of one family of tests, adjusted, in their order."""
    order = sorted(range(len(values)), key=lambda i: values[i])
    adjusted = [0.0] * len(values)
    highest = 0.0
    for rank, index in enumerate(order):
        highest = max(highest, min(1.0, (len(values) - rank) * values[index]))
        adjusted[index] = highest
    return tuple(adjusted)


def difference_interval(one: Rate, other: Rate, trials: float = math.inf) -> tuple[float, float]:
    """95% interval of the difference of two shares from Wilson's intervals (Newcombe 1998, method 10).

    Each share is worth at most `trials` independent trials, see :func:`clustered_interval`.
    """
    (low, high), (other_low, other_high) = clustered_interval(one, trials), clustered_interval(other, trials)
    p, q = one.value, other.value
    return p - q - math.hypot(p - low, other_high - q), p - q + math.hypot(high - p, q - other_low)


def ratio_interval(one: Rate, other: Rate, trials: float = math.inf) -> tuple[float, float] | None:
    """95% interval of the ratio of two shares from Wilson's intervals (MOVER: Donner and Zou 2012).

    Each share is worth at most `trials` independent trials, see :func:`clustered_interval`.

    ``None`` where there are no trials; the upper end is infinite where the other share may be 0.
    """
    if not one.n or not other.n:
        return None
    (low, high), (other_low, other_high) = clustered_interval(one, trials), clustered_interval(other, trials)
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
