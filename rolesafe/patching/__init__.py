"""Role layers in transformers models: the only package that touches transformers' internals.

Every name is imported on first use: importing torch and transformers takes seconds.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

_HOME = {
    "check_lock": "rolesafe.patching.locked",
    "from_pretrained": "rolesafe.patching.loading",
    "is_patched": "rolesafe.patching.patched",
    "lock": "rolesafe.patching.locked",
    "named_role_parameters": "rolesafe.patching.patched",
    "patch": "rolesafe.patching.apply",
    "role_modules": "rolesafe.patching.adapters",
    "role_parameters": "rolesafe.patching.patched",  # deprecated
    "save_role_layer": "rolesafe.patching.saving",
    "unlock": "rolesafe.patching.locked",
    "unpatch": "rolesafe.patching.apply",
}

__all__ = [
    "check_lock",
    "from_pretrained",
    "is_patched",
    "lock",
    "named_role_parameters",
    "patch",
    "role_modules",
    "save_role_layer",
    "unlock",
    "unpatch",
]

if TYPE_CHECKING:
    from rolesafe.patching.adapters import role_modules
    from rolesafe.patching.apply import patch, unpatch
    from rolesafe.patching.loading import from_pretrained
    from rolesafe.patching.locked import check_lock, lock, unlock
    from rolesafe.patching.patched import is_patched, named_role_parameters
    from rolesafe.patching.saving import save_role_layer


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'rolesafe.patching' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
