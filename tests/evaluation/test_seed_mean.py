"""Means over seeds: the interval is the wider of chance and seeds."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rolesafe.evaluation import Rate, seed_mean

RATES = st.lists(st.integers(1, 400).flatmap(lambda n: st.builds(Rate, st.integers(0, n), st.just(n))), max_size=15)


def test_seed_mean_of_one_seed_is_wilson() -> None:
    result = seed_mean([Rate(30, 100)])
    assert result is not None
    assert (result.low, result.high) == pytest.approx(Rate(30, 100).interval)


def test_seed_mean_of_different_seeds_is_wider() -> None:
    same, differ = seed_mean([Rate(50, 100)] * 3), seed_mean([Rate(10, 100), Rate(50, 100), Rate(90, 100)])
    assert same is not None
    assert differ is not None
    assert same.value == differ.value == 0.5
    assert (same.low, same.high) == pytest.approx(Rate(150, 300).interval)
    assert (differ.low, differ.high) == (0.0, 1.0)  # 0.5 -+ 4.303 * 0.4 / sqrt(3)


def test_seed_mean_of_three_seeds_uses_student() -> None:
    result = seed_mean([Rate(400, 1000), Rate(500, 1000), Rate(600, 1000)])
    assert result is not None
    half = 4.303 * 0.1 / 3**0.5
    assert (result.low, result.high) == pytest.approx((0.5 - half, 0.5 + half))


def test_seed_mean_without_success_has_a_width() -> None:
    result = seed_mean([Rate(0, 100)] * 3)
    assert result is not None
    assert result.low == 0.0
    assert 0.01 < result.high < 0.02


def test_seed_mean_skips_seeds_without_trials() -> None:
    assert seed_mean([Rate(0, 0)]) is None
    assert seed_mean([]) is None
    assert seed_mean([Rate(0, 0), Rate(5, 10)]) == seed_mean([Rate(5, 10)])


@given(RATES.filter(bool))
def test_seed_mean_interval_contains_the_mean(rates: list[Rate]) -> None:
    result = seed_mean(rates)
    assert result is not None
    assert 0.0 <= result.low <= result.value <= result.high <= 1.0
    assert result.low < result.high
    assert result.n == sum(rate.n for rate in rates)
    assert len(result.per_seed) == len(rates)


def test_seed_mean_equals_earlier_versions() -> None:
    """Value of version 0.4, with its printed t table: 2.228 for 10 degrees of freedom."""
    found = seed_mean([Rate(k, 40) for k in range(10, 21)])
    assert found is not None
    assert (found.low, found.high) == pytest.approx((0.31930000000000003, 0.43069999999999997), abs=1e-9)
