"""Fixture that registers an attack."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from rolesafe.attacks import ATTACKS, AttackConfig, Found, SearchAttackConfig, SearchContext


@pytest.fixture
def register(monkeypatch: pytest.MonkeyPatch) -> Callable[..., AttackConfig]:
    """Return a function that registers a search as the attack "mine" and returns its configuration."""

    def add(search: Callable[..., Found], *, typed: bool = True, **settings: Any) -> AttackConfig:
        @dataclass(frozen=True, kw_only=True)
        class MineConfig(SearchAttackConfig):
            name = "mine"
            grid = ({"budget": 5},)
            budget: int = 5

            def search(self, context: SearchContext) -> Found:
                return search(context)

        MineConfig.typed = typed
        monkeypatch.setitem(ATTACKS, "mine", MineConfig)
        return MineConfig(**{"batch_size": 8, "max_new_tokens": 12, **settings})

    return add
