"""Estimators of the harm martingale from sampled branches.

A rollout X and a fresh continuation X'_k from its first k tokens have equal means given those tokens, and are
independent given them, so E[(X - X'_k)^2] / 2 is the variance of harm that is left after k tokens. The estimates are
unbiased, and exactly 0 beyond the harm horizon. (The variance of a plug-in estimate of the conditional mean is
neither.)
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from rolesafe.arguments import is_number
from rolesafe.depth.branches import Branches
from rolesafe.depth.intervals import Estimate, check_level, clopper_pearson, mean_rate, t_interval, tango_interval
from rolesafe.depth.tabular import TabularModel


def tail(branches: Branches, *, level: float = 0.05) -> tuple[Estimate, ...]:
    """Estimate the variance of harm that is left after each depth, S_k.

    Harm of 0 and 1: half of the Clopper-Pearson interval of the discordant pairs. Graded harm: Student's t interval.

    Returns:
        One estimate per depth.

    Raises:
        ValueError: No rollout is judged.
    """
    _check(branches, level)
    found = []
    for column in branches.discord.unbind(1):
        if branches.binary:
            k = int(column.sum())
            low, high = clopper_pearson(k, branches.n, level=level)
            found.append(Estimate(k / branches.n / 2, low / 2, high / 2, branches.n, "Clopper-Pearson"))
        else:
            found.append(_of_mean(column / 2, level))
    return tuple(found)


def information(branches: Branches, *, level: float = 0.05) -> tuple[Estimate, ...]:
    """Estimate the harm information of the tokens between one depth and the next, S_j - S_k.

    With all depths 0..T-1 these are I_1..I_T. Harm of 0 and 1: half of Tango's score interval of the paired difference.
    Graded harm: Student's t interval. The value may be below 0 by chance.

    Returns:
        One estimate per depth: of the tokens after it, up to the next depth; the last one up to the end of the reply.

    Raises:
        ValueError: No rollout is judged.
    """
    _check(branches, level)
    before = branches.discord
    after = torch.cat([before[:, 1:], before.new_zeros(branches.n, 1)], 1)
    if not branches.binary:
        return tuple(_of_mean(column / 2, level) for column in (before - after).unbind(1))
    lost, gained = (before > after).double().sum(0), (after > before).double().sum(0)
    low, high = tango_interval(lost, gained, branches.n, level=level)
    values = (lost - gained) / branches.n / 2
    rows = zip(values.tolist(), (low / 2).tolist(), (high / 2).tolist(), strict=True)
    return tuple(Estimate(value, one, other, branches.n, "Tango") for value, one, other in rows)


def horizon(branches: Branches, tolerance: float = 0.01, *, level: float = 0.05) -> Estimate:
    """Estimate the harm horizon: the least measured depth after which the variance of harm is at most `tolerance`.

    The ends come from fixed sequences of one-sided tests at ``level / 2``, which need no correction for their number.
    From the deepest depth up, as long as a depth is shown to have at most `tolerance`, gives `high`; from depth 0 down,
    as long as one is shown to have more, gives `low`.

    Args:
        branches: Sampled branches. Binary harm without any discord shows at most 0.01 from 183 rollouts on, see
            :func:`least_rollouts`.
        tolerance: Variance in (0, 0.25).
        level: Probability that the interval misses the horizon.

    Returns:
        Depths; ``inf`` where no measured depth is shown, or is estimated, to have at most `tolerance`.
    """
    _check(branches, level)
    _check_tolerance(tolerance)
    tails = tail(branches, level=level)
    depths = (*branches.depths, math.inf)
    ends = [estimate.high <= tolerance for estimate in tails]
    high = len(ends)
    while high > 0 and ends[high - 1]:
        high -= 1
    low = 0
    while low < len(tails) and tails[low].low > tolerance:
        low += 1
    value = next((k for k, estimate in enumerate(tails) if estimate.value <= tolerance), len(tails))
    found = [float(depths[k]) for k in (value, low, high)]
    return Estimate(found[0], min(found[1], found[2]), found[2], branches.n, "fixed-sequence tests")


def least_rollouts(tolerance: float = 0.01, *, level: float = 0.05) -> int:
    """Return the least number of rollouts with which :func:`horizon` can show binary harm to be decided.

    >>> from rolesafe.depth import least_rollouts
    >>> least_rollouts(0.01)
    183
    """
    check_level(level)
    _check_tolerance(tolerance)
    return max(1, math.ceil(math.log(level / 2) / math.log1p(-min(2 * tolerance, 1 - 1e-12))))


def recovery_by_depth(branches: Branches, *, level: float = 0.05) -> tuple[Estimate, ...]:
    """Estimate the mean recovery probability at each depth, over rollouts that are not over by then (Wilson).

    Raises:
        ValueError: Recovery was not measured.
    """
    _check(branches, level)
    if branches.recovery is None:
        raise ValueError("`branches`: expected recovery probabilities, got none. Pass `recovery` to sample_branches.")
    columns = [branches.recovery[:, k] for k in branches.depths if k < branches.recovery.shape[1]]
    return tuple(mean_rate(column, level=level) for column in columns)


def nested_variance(values: Tensor, *, level: float = 0.05) -> tuple[Estimate, Estimate]:
    """Estimate the variance of harm between and within prefixes of one depth, from several continuations of each.

    The one-way analysis of variance gives (MSB - MSW) / M for Var(h_k) and MSW for S_k, both unbiased. At one depth it
    needs fewer tokens than branches do. The plug-in variance of the prefix means exceeds Var(h_k) by S_k / M.

    Args:
        values: (B, M) harm of M >= 2 continuations of each of B >= 3 independently sampled prefixes.
        level: Probability outside an interval.

    Returns:
        Var(h_k), with a jackknife t interval over prefixes, and S_k, with a t interval over prefixes.
    """
    values = torch.as_tensor(values, dtype=torch.float64)
    if values.ndim != 2 or values.shape[0] < 3 or values.shape[1] < 2:
        raise ValueError(f"`values`: expected shape (B, M) with B >= 3 and M >= 2, got {tuple(values.shape)}.")
    rows, columns = values.shape
    means, within = values.mean(1), values.var(1)
    # the estimate without one prefix, for all prefixes at once
    total, squares = means.sum(), means.square().sum()
    left_means = (total - means) / (rows - 1)
    left_spread = (squares - means.square() - (rows - 1) * left_means.square()) / (rows - 2)
    left = left_spread - (within.sum() - within) / (rows - 1) / columns
    between = float(means.var() - within.mean() / columns)
    pseudo = rows * between - (rows - 1) * left
    _, low, high = t_interval(pseudo, level=level)
    return Estimate(between, low, high, rows, "jackknife t"), _of_mean(within, level)


def sample_tabular(model: TabularModel, harm: Tensor, n: int, generator: torch.Generator | None = None) -> Branches:
    """Sample branches of a tabular model from all depths.

    Args:
        model: One model, no batch.
        harm: (V,) * T table.
        n: Number of rollouts.
        generator: Source of random numbers.
    """
    flat = torch.as_tensor(harm, dtype=torch.float64).reshape(-1)
    rollouts = model.sample(n, generator)
    branched = [flat[model.index(model.sample(n, generator, prefixes=rollouts[:, :k]))] for k in range(model.length)]
    return Branches(tuple(range(model.length)), flat[model.index(rollouts)], torch.stack(branched, 1))


def _of_mean(values: Tensor, level: float) -> Estimate:
    mean, low, high = t_interval(values, level=level)
    return Estimate(mean, low, high, len(values), "t")


def _check(branches: Branches, level: float) -> None:
    check_level(level)
    if branches.n == 0:
        raise ValueError("`branches`: expected judged rollouts, got none. Pass the result as `done` to continue it.")


def _check_tolerance(tolerance: float) -> None:
    if not is_number(tolerance) or not 0 < tolerance < 0.25:
        raise ValueError(f"`tolerance`: expected a variance in (0, 0.25), got {tolerance!r}.")
