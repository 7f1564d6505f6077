"""Paired statistics against hand-computed values, full enumeration and their defining equations."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rolesafe.evaluation import Rate, holm, mcnemar, versus
from rolesafe.evaluation.paired import (
    Paired,
    bootstrap_p,
    difference_interval,
    discordant,
    growth,
    percentile_interval,
    ratio_interval,
    resampled,
    spread,
)

COUNTS = st.integers(1, 200).flatmap(lambda n: st.builds(Rate, st.integers(0, n), st.just(n)))


def outcomes(*seeds: str) -> dict[int, dict[str, bool]]:
    """One string of 0 and 1 per seed."""
    return {seed: {f"e{i}": mark == "1" for i, mark in enumerate(marks)} for seed, marks in enumerate(seeds)}


# ------------------------------------------------------------------------------------------------------------- McNemar


@pytest.mark.parametrize("n", range(9))
def test_mcnemar_equals_enumeration_of_throws(n: int) -> None:
    """Brute force: the share of all 2^n throws that are at least as far from the middle."""
    for b in range(n + 1):
        far = sum(abs(2 * sum(throw) - n) >= abs(2 * b - n) for throw in itertools.product((0, 1), repeat=n))
        assert mcnemar(b, n - b) == pytest.approx(float(Fraction(far, 2**n)))


def test_mcnemar_known_values() -> None:
    assert mcnemar(0, 0) == 1.0
    assert mcnemar(0, 10) == pytest.approx(2 / 1024)
    assert mcnemar(1, 9) == pytest.approx(mcnemar(9, 1)) == pytest.approx(22 / 1024)
    assert mcnemar(200, 250) == pytest.approx(0.02079180024760769, abs=1e-12)  # version 0.4
    with pytest.raises(ValueError, match="`b`, `c`: expected counts >= 0"):
        mcnemar(-1, 2)


def test_discordant_pairs_of_all_seeds() -> None:
    paired = Paired.of(outcomes("1100", "10"), outcomes("0101", "00"))
    assert paired is not None
    assert discordant(paired) == (2, 1)


# ---------------------------------------------------------------------------------------------------------------- Holm


def test_holm_by_hand() -> None:
    # Sorted 0.005, 0.01, 0.03, 0.04 times 4, 3, 2, 1, then made ascending: 0.02, 0.03, 0.06, 0.06.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx((0.03, 0.06, 0.06, 0.02))
    assert holm([0.6, 0.7]) == (1.0, 1.0)
    assert holm([0.2]) == (0.2,)
    assert holm([]) == ()


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8), st.floats(0.001, 0.2))
def test_holm_rejects_as_the_stepwise_procedure(values: list[float], level: float) -> None:
    """Holm's procedure as he wrote it: go up from the smallest p, stop at the first above level / (m - i)."""
    rejected = set()
    for i, index in enumerate(sorted(range(len(values)), key=lambda j: values[j])):
        if (len(values) - i) * values[index] > level:
            break
        rejected.add(index)
    assert {i for i, p in enumerate(holm(values)) if p <= level} == rejected


# ----------------------------------------------------------------------------------------------------------- intervals


@pytest.mark.parametrize(
    ("one", "other", "low", "high"),
    [  # Newcombe (1998), Statistics in Medicine 17, table II, method 10
        (Rate(56, 70), Rate(48, 80), 0.0524, 0.3339),
        (Rate(9, 10), Rate(3, 10), 0.1705, 0.8090),
        (Rate(5, 56), Rate(0, 29), -0.0381, 0.1926),
        (Rate(0, 10), Rate(0, 10), -0.2775, 0.2775),
    ],
)
def test_difference_published(one: Rate, other: Rate, low: float, high: float) -> None:
    assert difference_interval(one, other) == pytest.approx((low, high), abs=5e-5)


@given(COUNTS, COUNTS)
def test_ratio_interval_solves_its_equation(one: Rate, other: Rate) -> None:
    """An end is the ratio t at which 0 is an end of the interval of `one - t * other` (Donner and Zou 2012)."""
    low, high = ratio_interval(one, other) or (math.nan, math.nan)
    (l1, u1), (l2, u2) = one.interval, other.interval
    p, q = one.value, other.value
    assert 0.0 <= low <= high
    if p and q:
        assert low <= p / q <= high or math.isclose(low, p / q) or math.isclose(high, p / q)
    assert p - low * q == pytest.approx(math.hypot(p - l1, low * (u2 - q)), abs=1e-9)
    if math.isinf(high):
        assert l2 == 0.0
    else:
        assert high * q - p == pytest.approx(math.hypot(u1 - p, high * (q - l2)), rel=1e-6, abs=1e-9)


def test_ratio_interval_without_trials() -> None:
    assert ratio_interval(Rate(0, 0), Rate(1, 2)) is None
    assert ratio_interval(Rate(1, 2), Rate(0, 0)) is None
    low, high = ratio_interval(Rate(0, 100), Rate(90, 100)) or (math.nan, math.nan)
    assert low == 0.0
    assert 0.03 < high < 0.06, "0 of 100 is not certainty"


# ----------------------------------------------------------------------------------------------------------- bootstrap


def enumerated(matrices: list[list[list[int]]]) -> dict[tuple[float, ...], float]:
    """All resamples with their probabilities: seeds with replacement, then examples of each with replacement."""

    def examples(matrix: list[list[int]]) -> list[tuple[float, ...]]:
        n = len(matrix[0])
        return [
            tuple(sum(row[i] for i in draw) / n for row in matrix) for draw in itertools.product(range(n), repeat=n)
        ]

    found: dict[tuple[float, ...], float] = {}
    seeds = list(itertools.product(range(len(matrices)), repeat=len(matrices)))
    for chosen in seeds:
        lists = [examples(matrices[index]) for index in chosen]
        for draw in itertools.product(*lists):
            key = tuple(round(sum(column) / len(column), 9) for column in zip(*draw, strict=True))
            found[key] = found.get(key, 0.0) + 1 / len(seeds) / math.prod(len(one) for one in lists)
    return found


def test_resampled_has_the_enumerated_distribution() -> None:
    paired = Paired.of(outcomes("110", "100"), outcomes("100", "011"))
    assert paired is not None
    expected = enumerated([[[1, 1, 0], [1, 0, 0]], [[1, 0, 0], [0, 1, 1]]])
    drawn = resampled(paired, resamples=60_000, seed=3)
    assert drawn.shape == (60_000, 2)
    counts: dict[tuple[float, ...], int] = {}
    for row in drawn.tolist():
        key = tuple(round(value, 9) for value in row)
        counts[key] = counts.get(key, 0) + 1
    assert set(counts) <= set(expected)
    for key, share in expected.items():
        assert counts.get(key, 0) / 60_000 == pytest.approx(share, abs=5 * math.sqrt(share / 60_000) + 1e-4)


def test_resampled_is_seeded_without_global_state() -> None:
    paired = Paired.of(outcomes("1101001", "1001100"), outcomes("1000001", "0001100"))
    assert paired is not None
    before = torch.random.get_rng_state()
    assert torch.equal(resampled(paired, seed=1, resamples=50), resampled(paired, seed=1, resamples=50))
    assert not torch.equal(resampled(paired, seed=1, resamples=50), resampled(paired, seed=2, resamples=50))
    assert torch.equal(torch.random.get_rng_state(), before)


def test_resampled_equal_rows_stay_equal() -> None:
    """Equal rows stay equal in every resample: the pairing is kept."""
    paired = Paired.of(outcomes("1010011", "110"), outcomes("1010011", "110"))
    assert paired is not None
    drawn = resampled(paired, resamples=200)
    assert torch.equal(drawn[:, 0], drawn[:, 1])
    assert drawn[:, 0].std() > 0.05


def test_percentile_interval() -> None:
    values = torch.arange(1001, dtype=torch.float64)
    assert percentile_interval(values) == (25.0, 975.0)
    values[:49] = math.nan
    assert percentile_interval(values) is not None
    values[:60] = math.nan
    assert percentile_interval(values) is None


def test_bootstrap_p() -> None:
    assert bootstrap_p(torch.ones(999)) == pytest.approx(2 / 1000)
    assert bootstrap_p(torch.zeros(999)) == 1.0
    assert bootstrap_p(torch.cat([torch.ones(989), -torch.ones(10)])) == pytest.approx(22 / 1000)


# -------------------------------------------------------------------------------------------------------------- versus


def test_versus_by_hand() -> None:
    found = versus(outcomes("1000", "1100"), outcomes("1110", "1111"))
    assert found is not None
    assert (found.value, found.other, found.n) == (0.375, 0.875, 8)
    assert found.difference == -0.5
    assert found.ratio == pytest.approx(3 / 7)
    assert found.p_mcnemar == mcnemar(0, 4)
    low, high = found.difference_interval
    assert low <= difference_interval(Rate(3, 8), Rate(7, 8))[0] < -0.5 < difference_interval(Rate(3, 8), Rate(7, 8))[1]
    assert high >= difference_interval(Rate(3, 8), Rate(7, 8))[1]


def test_versus_uses_common_examples_and_seeds() -> None:
    one = {0: {"a": True, "b": False}, 1: {"a": True}, 2: {"x": True}}
    other = {0: {"b": True, "c": True}, 2: {"y": True}}
    found = versus(one, other)
    assert found is not None
    assert (found.n, found.value, found.other) == (1, 0.0, 1.0)
    assert versus({0: {"a": True}}, {1: {"a": True}}) is None
    assert versus({}, other) is None


def test_versus_without_success_has_no_ratio() -> None:
    none = versus(outcomes("0" * 50), outcomes("0" * 50))
    assert none is not None
    assert none.ratio is None
    assert none.ratio_interval is None
    assert none.p_mcnemar == none.p_bootstrap == 1.0
    assert none.difference_interval[0] < -0.05
    only = versus(outcomes("1" * 5 + "0" * 45), outcomes("0" * 50))
    assert only is not None
    assert only.ratio == math.inf
    assert only.ratio_interval is not None
    assert only.ratio_interval[1] == math.inf


def test_versus_without_success_has_a_wide_interval() -> None:
    """A bootstrap alone would say 0 to 0."""
    found = versus(outcomes("0" * 40, "0" * 40), outcomes("1" * 40, "1" * 39 + "0"))
    assert found is not None
    assert found.ratio == 0.0
    assert found.ratio_interval is not None
    assert found.ratio_interval[0] == 0.0
    assert 0.02 < found.ratio_interval[1] < 0.1


def test_versus_interval_covers_the_true_difference() -> None:
    """95% of the intervals of two equal mechanisms contain 0; here 100 draws."""
    draw = torch.Generator().manual_seed(0)
    held = 0
    for trial in range(100):
        marks = [["".join(map(str, torch.randint(2, (60,), generator=draw).tolist())) for _ in range(3)] for _ in "ab"]
        found = versus(outcomes(*marks[0]), outcomes(*marks[1]), resamples=400, seed=trial)
        assert found is not None
        held += found.difference_interval[0] <= 0.0 <= found.difference_interval[1]
    assert held >= 90


def test_versus_equals_earlier_versions() -> None:
    """Values of version 0.4."""
    found = versus(outcomes("1101001", "1001100", "0110000"), outcomes("1000001", "0001100", "0000000"))
    assert found is not None
    assert found.difference_interval == pytest.approx((-0.04067242435831969, 0.473406376137114), abs=1e-9)
    assert found.ratio_interval == pytest.approx((0.88163652781226, math.inf), abs=1e-9)
    assert (found.p_mcnemar, found.p_bootstrap) == pytest.approx((0.0625, 0.00899775056235941), abs=1e-9)


def test_versus_smaller_level_widens_the_intervals() -> None:
    one, other = outcomes("1101001101", "1001100100"), outcomes("1000001001", "0001100000")
    wide, narrow = (versus(one, other, level=level) for level in (0.01, 0.05))
    assert wide is not None
    assert narrow is not None
    assert wide.difference_interval[0] < narrow.difference_interval[0]
    assert wide.difference_interval[1] > narrow.difference_interval[1]


# --------------------------------------------------------------------------------------------------- spread and growth


def test_spread_is_largest_minus_smallest() -> None:
    found = spread({"first": outcomes("0" * 30), "middle": outcomes("1" * 12 + "0" * 18), "last": outcomes("1" * 30)})
    assert found is not None
    assert (found.value, found.n) == (1.0, 30)
    assert found.means == {"first": 0.0, "middle": 0.4, "last": 1.0}
    assert found.interval[0] == pytest.approx(difference_interval(Rate(30, 30), Rate(0, 30))[0])


def test_spread_without_success_has_a_width() -> None:
    found = spread({"first": outcomes("0" * 30), "last": outcomes("0" * 30)})
    assert found is not None
    assert (found.value, found.interval[0]) == (0.0, 0.0)
    assert found.interval[1] == pytest.approx(difference_interval(Rate(0, 30), Rate(0, 30))[1])


def test_spread_of_fewer_than_two_conditions_is_none() -> None:
    assert spread({}) is spread({"first": outcomes("01")}) is None
    assert spread({"first": {0: {"a": True}}, "last": {0: {"b": True}}}) is None


def test_growth_returns_the_largest() -> None:
    found = growth({"x1": outcomes("0" * 20), "x4": outcomes("1" * 16 + "0" * 4), "x16": outcomes("1" * 4 + "0" * 16)})
    assert found is not None
    assert (found.value, found.other, found.difference) == (0.8, 0.0, 0.8)
    assert found.difference_interval[0] > 0.0


def test_growth_of_one_comparison_is_versus() -> None:
    one, other = outcomes("1101001101"), outcomes("1000001001")
    found = growth({"x1": other, "x64": one})
    assert found == versus(one, other)
    assert growth({"x1": other}) is growth({}) is None


def test_growth_of_many_comparisons_is_corrected() -> None:
    """The same growth alone is beyond chance, as the largest of twelve it is not."""
    few, more = outcomes("1" * 6 + "0" * 24), outcomes("1" * 14 + "0" * 16)
    alone = growth({"x1": few, "x2": more})
    many = growth({"x1": few, "x2": more, **{f"x{n}": few for n in range(3, 14)}})
    assert alone is not None
    assert many is not None
    assert alone.difference_interval[0] > 0.0 > many.difference_interval[0]
