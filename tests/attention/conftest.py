"""Each test of this folder, and those few queries are computed in two ways by `sdpa`: in two products, and folded."""

import pytest

from rolesafe.attention import sdpa


@pytest.fixture(params=[sdpa.FEW, 0], ids=["few", "folded"], autouse=True)
def few(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sdpa, "FEW", request.param)
