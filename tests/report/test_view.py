"""The comparison column of the table."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from rolesafe.evaluation import SeedMean
from rolesafe.report.view import Row, View


def share(value: float, half: float) -> SeedMean:
    return SeedMean(value=value, low=max(0.0, value - half), high=value + half, n=100, per_seed=(value,))


@pytest.mark.parametrize(
    ("first", "last", "expected"),
    [
        (share(0.5, 0.05), share(0.1, 0.02), "5.0x lower"),
        (share(0.5, 0.05), share(0.0, 0.04), "≥ 11.2x lower"),
        (share(0.1, 0.02), share(0.5, 0.05), "5.0x higher"),
        (share(0.0, 0.01), share(0.5, 0.05), "higher"),
        (share(0.3, 0.1), share(0.2, 0.1), "intervals overlap"),
        (share(0.0, 0.0), share(0.0, 0.0), "intervals overlap"),
    ],
)
def test_versus_attack_is_a_ratio(first: SeedMean, last: SeedMean, expected: str) -> None:
    assert Row(label="x", kind="attack", means=(first, share(0.9, 0.1), last)).versus == expected


@pytest.mark.parametrize(("last", "expected"), [(0.985, "+1.5 points"), (0.95, "-2.0 points"), (0.97, "±0.0 points")])
def test_versus_utility_is_a_difference(last: float, expected: str) -> None:
    assert Row(label="x", kind="utility", means=(share(0.97, 0.01), share(last, 0.01))).versus == expected


def test_versus_missing_model_is_empty() -> None:
    assert Row(label="x", kind="attack", means=(share(0.5, 0.1), None)).versus == ""
    assert Row(label="x", kind="attack", means=(share(0.5, 0.1),)).versus == ""


def test_view_seeds_are_counted(make_view: Callable[..., View]) -> None:
    assert make_view(n_seeds=1).seeds == "1 seed"
    assert make_view().seeds == "3 seeds"
