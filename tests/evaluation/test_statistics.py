"""Intervals against known values and their own definitions."""

from __future__ import annotations

import math
import sys
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rolesafe.evaluation import Rate, wilson_interval


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


@pytest.mark.parametrize(
    ("k", "n", "interval"),
    [  # as computed by the closed formula of version 0.4
        (15, 148, (0.0623863995307363, 0.16048724172330803)),
        (2.5, 7.25, (0.11372880844590372, 0.6834123939537289)),
        (499, 500, (0.9887592932948532, 0.9996468636054407)),
    ],
)
def test_wilson_equals_earlier_versions(k: float, n: float, interval: tuple[float, float]) -> None:
    assert wilson_interval(k, n) == pytest.approx(interval, abs=1e-12)


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
    assert wilson_interval(3, 9, level=0.3173105078629141) == pytest.approx((0.2, 0.5), abs=1e-9)  # z = 1


@pytest.mark.parametrize(("k", "n"), [(-1, 3), (4, 3), (0, -1)])
def test_wilson_bad_arguments_are_refused(k: int, n: int) -> None:
    with pytest.raises(ValueError, match="expected 0 <= k <= n"):
        wilson_interval(k, n)
    with pytest.raises(ValueError, match="expected 0 <= k <= n"):
        Rate(k, n)
    with pytest.raises(ValueError, match="`level`"):
        wilson_interval(1, 2, level=0.0)
    with pytest.raises(TypeError, match="`z`: removed"):
        wilson_interval(1, 2, 1.96)  # type: ignore[arg-type]


def test_rate_value_and_text() -> None:
    assert Rate(1, 4).value == Fraction(1, 4)
    assert math.isnan(Rate(0, 0).value)
    assert str(Rate(0, 20)) == "0.000 [0.000, 0.161] (0/20)"


def test_rate_without_the_stats_extra_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "statsmodels.stats.proportion", None)
    with pytest.raises(ImportError, match=r'pip install "rolesafe\[stats\]"'):
        _ = Rate(1, 2).interval
    assert str(Rate(1, 2)) == "0.500 (1/2)"
