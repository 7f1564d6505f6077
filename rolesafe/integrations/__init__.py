"""Role-aware models in the tools of others. Every name is imported on first use."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

_HOME = {"RolePipeline": "rolesafe.integrations.pipeline"}

__all__ = ["RolePipeline"]

if TYPE_CHECKING:
    from rolesafe.integrations.pipeline import RolePipeline


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'rolesafe.integrations' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
