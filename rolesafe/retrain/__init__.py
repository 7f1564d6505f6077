"""Retrain a chat checkpoint with roles: data preparation, training that resumes, a model card.

Call ``retrain(RetrainConfig(model=..., data=...), out)``, or run ``rolesafe retrain``. Submodules are imported on first
use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

_HOME = {
    "CardResult": "rolesafe.retrain.card",
    "Prepared": "rolesafe.retrain.preparation",
    "PreparedRow": "rolesafe.retrain.row",
    "RetrainConfig": "rolesafe.retrain.config",
    "RetrainResult": "rolesafe.retrain.run",
    "Source": "rolesafe.retrain.sources",
    "Sources": "rolesafe.retrain.sources",
    "load_retrained": "rolesafe.retrain.loading",
    "prepare": "rolesafe.retrain.preparation",
    "read_sources": "rolesafe.retrain.sources",
    "retrain": "rolesafe.retrain.run",
    "training_texts": "rolesafe.retrain.phrasing",
    "write_card": "rolesafe.retrain.card",
}

__all__ = [
    "CardResult",
    "Prepared",
    "PreparedRow",
    "RetrainConfig",
    "RetrainResult",
    "Source",
    "Sources",
    "load_retrained",
    "prepare",
    "read_sources",
    "retrain",
    "training_texts",
    "write_card",
]

if TYPE_CHECKING:
    from rolesafe.retrain.card import CardResult, write_card
    from rolesafe.retrain.config import RetrainConfig
    from rolesafe.retrain.loading import load_retrained
    from rolesafe.retrain.phrasing import training_texts
    from rolesafe.retrain.preparation import Prepared, prepare
    from rolesafe.retrain.row import PreparedRow
    from rolesafe.retrain.run import RetrainResult, retrain
    from rolesafe.retrain.sources import Source, Sources, read_sources


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'rolesafe.retrain' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
