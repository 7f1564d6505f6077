"""Each test of this folder runs `sdpa` in its three ways on a CPU: few queries, stretches of one role, and folded.

Tests of other backends run once: with an `impl` that is not `sdpa`, or with `ONE_WAY`.
"""

from pathlib import Path

import pytest

from rolesafe.attention import sdpa, stretches

WAYS = ["few", "stretches", "folded"]


@pytest.fixture(params=WAYS, autouse=True)
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Make `sdpa` use one way wherever it supports the call."""
    chosen: str = request.param
    monkeypatch.setattr(sdpa, "FEW", 16 if chosen == "few" else 0)
    monkeypatch.setattr(stretches, "LEAST_AREA", 0 if chosen == "stretches" else 2**62)
    return chosen


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave out the second and third run of what does not use `sdpa`."""
    items[:] = [item for item in items if not is_repeated(item)]


def is_repeated(item: pytest.Item) -> bool:
    if item.path.parent != Path(__file__).parent or not isinstance(item, pytest.Function):
        return False
    values = item.callspec.params if hasattr(item, "callspec") else {}
    return values.get("impl", "sdpa") != "sdpa" and values.get("way", WAYS[0]) != WAYS[0]
