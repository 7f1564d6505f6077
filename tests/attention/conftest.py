"""Each test of this folder runs `sdpa` in its three ways on a CPU: few queries, stretches of one role, and folded."""

import pytest

from rolesafe.attention import sdpa, stretches


@pytest.fixture(params=["few", "stretches", "folded"], autouse=True)
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Make `sdpa` use one way wherever it supports the call."""
    chosen: str = request.param
    monkeypatch.setattr(sdpa, "FEW", 16 if chosen == "few" else 0)
    monkeypatch.setattr(stretches, "LEAST_AREA", 0 if chosen == "stretches" else 2**62)
    return chosen
