"""Intervals against known values and their own definitions."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rolesafe.evaluation import Rate, bootstrap_interval, over_seeds, wilson_interval


@pytest.mark.parametrize(
    ("k", "n", "low", "high"),
    [
        # Newcombe (1998), Statistics in Medicine 17, table I, method 3
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_published(k: int, n: int, low: float, high: float) -> None:
    assert wilson_interval(k, n) == pytest.approx((low, high), abs=5e-5)


@given(st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_ends_solve_the_score_equation(counts: tuple[int, int]) -> None:
    k, n = counts
    low, high = wilson_interval(k, n)
    assert 0 <= low <= k / n <= high <= 1
    for end in (low, high):
        if 0 < end < 1:
            assert abs(k / n - end) == pytest.approx(1.959963984540054 * math.sqrt(end * (1 - end) / n), rel=1e-6)


def test_wilson_without_trials_and_ends() -> None:
    assert wilson_interval(0, 0) == (0.0, 1.0)
    assert wilson_interval(0, 5)[0] == 0.0
    assert wilson_interval(5, 5)[1] == 1.0
    assert wilson_interval(3, 9, z=1.0) == pytest.approx((0.2, 0.5), abs=1e-9)


@pytest.mark.parametrize(("k", "n"), [(-1, 3), (4, 3), (0, -1)])
def test_bad_counts(k: int, n: int) -> None:
    with pytest.raises(ValueError, match="expected 0 <= k <= n"):
        wilson_interval(k, n)
    with pytest.raises(ValueError, match="expected 0 <= k <= n"):
        Rate(k, n)
    with pytest.raises(ValueError, match="`z`"):
        wilson_interval(1, 2, z=0.0)


def test_rate() -> None:
    assert Rate(1, 4).value == Fraction(1, 4)
    assert math.isnan(Rate(0, 0).value)
    assert str(Rate(0, 20)) == "0.000 [0.000, 0.161] (0/20)"


def test_bootstrap() -> None:
    assert bootstrap_interval([0.5, 0.5, 0.5]) == (0.5, 0.5)
    low, high = bootstrap_interval([0.0, 1.0], resamples=500)
    assert (low, high) == (0.0, 1.0)
    assert bootstrap_interval([0.1, 0.4, 0.9], seed=1) == bootstrap_interval([0.1, 0.4, 0.9], seed=1)
    # many values: close to the normal interval of the mean, 0.5 +- 1.96 * sqrt(1/12 / 400)
    values = [(i + 0.5) / 400 for i in range(400)]
    half = 1.96 * math.sqrt(1 / 12 / 400)
    assert bootstrap_interval(values) == pytest.approx((0.5 - half, 0.5 + half), abs=0.005)
    narrow, wide = (bootstrap_interval(values, level=level) for level in (0.5, 0.99))
    assert wide[0] < narrow[0] < narrow[1] < wide[1]


def test_over_seeds() -> None:
    one = over_seeds([Rate(3, 10)])
    assert (one.low, one.high) == wilson_interval(3, 10)
    many = over_seeds([Rate(0, 10), Rate(5, 10), Rate(10, 10)])
    assert many.mean == 0.5
    assert many.low < 0.5 < many.high


@pytest.mark.parametrize(
    ("values", "options", "message"),
    [
        ([], {}, "`values`: expected at least one finite number"),
        ([math.nan], {}, "`values`"),
        ([1.0], {"level": 1.0}, "`level`"),
        ([1.0], {"resamples": 0}, "`resamples`"),
    ],
)
def test_bad_bootstrap(values: list[float], options: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        bootstrap_interval(values, **options)


@pytest.mark.parametrize("rates", [[], [Rate(0, 0)]])
def test_bad_rates(rates: list[Rate]) -> None:
    with pytest.raises(ValueError, match="`rates`: expected at least one, each with trials"):
        over_seeds(rates)
