"""Intervals: known values, and the properties that make them honest."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rolesafe.report.estimate import estimate, wilson

COUNTS = st.lists(
    st.integers(1, 400).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))), min_size=1, max_size=15
)


def test_wilson_is_the_published_formula() -> None:
    # Agresti and Coull 1998, The American Statistician 52(2): the score interval of 0 of 10 and of 5 of 10.
    assert wilson(0, 10) == pytest.approx((0.0, 0.2775), abs=1e-4)
    assert wilson(5, 10) == pytest.approx((0.2366, 0.7634), abs=1e-4)
    assert wilson(10, 10)[1] == 1.0


@pytest.mark.parametrize(("k", "n"), [(1, 0), (-1, 5), (6, 5)])
def test_wilson_refuses_what_is_no_count(k: int, n: int) -> None:
    with pytest.raises(ValueError, match=rf"`k`, `n`: expected 0 <= k <= n and n >= 1, got k = {k}, n = {n}"):
        wilson(k, n)


def test_one_seed_gives_wilson() -> None:
    result = estimate([(30, 100)])
    assert result is not None
    assert (result.low, result.high) == pytest.approx(wilson(30, 100))


def test_seeds_that_differ_widen_the_interval() -> None:
    same, differ = estimate([(50, 100)] * 3), estimate([(10, 100), (50, 100), (90, 100)])
    assert same is not None
    assert differ is not None
    assert same.value == differ.value == 0.5
    assert (same.low, same.high) == pytest.approx(wilson(150, 300))
    assert (differ.low, differ.high) == (0.0, 1.0)  # 0.5 -+ 4.303 * 0.4 / sqrt(3)


def test_no_success_is_not_certainty() -> None:
    result = estimate([(0, 100)] * 3)
    assert result is not None
    assert result.low == 0.0
    assert 0.01 < result.high < 0.02


def test_seeds_without_trials_do_not_count() -> None:
    assert estimate([(0, 0)]) is None
    assert estimate([]) is None
    assert estimate([(0, 0), (5, 10)]) == estimate([(5, 10)])


@given(COUNTS)
def test_interval_holds_the_mean_and_lies_in_the_unit(counts: list[tuple[int, int]]) -> None:
    result = estimate(counts)
    assert result is not None
    assert 0.0 <= result.low <= result.value <= result.high <= 1.0
    assert result.low < result.high
    assert result.n == sum(n for _, n in counts)
    assert len(result.per_seed) == len(counts)
