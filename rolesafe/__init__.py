"""Role-aware attention for transformers.

Every name is imported on first use, so ``from rolesafe import patch, encode, RoleConfig`` takes milliseconds.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOME = {
    "Role": "rolesafe.roles.role",
    "RoleConfig": "rolesafe.config",
    "encode": "rolesafe.roles.encoding",
    "patch": "rolesafe.patching.apply",
    "unpatch": "rolesafe.patching.apply",
    "named_role_parameters": "rolesafe.patching.patched",
    "from_pretrained": "rolesafe.patching.loading",
    "save_role_layer": "rolesafe.patching.saving",
    "freeze": "rolesafe.patching.frozen",
    "FrozenPrompt": "rolesafe.patching.frozen",
    "role_attention": "rolesafe.attention",
    "role_parameters": "rolesafe.patching.patched",  # deprecated
}

__all__ = [  # noqa: RUF022  (in the order of use)
    "Role",
    "RoleConfig",
    "encode",
    "patch",
    "unpatch",
    "named_role_parameters",
    "from_pretrained",
    "save_role_layer",
    "freeze",
    "FrozenPrompt",
    "role_attention",
    "__version__",
]

if TYPE_CHECKING:
    from rolesafe.attention import role_attention
    from rolesafe.config import RoleConfig
    from rolesafe.patching import from_pretrained, named_role_parameters, patch, save_role_layer, unpatch
    from rolesafe.patching.frozen import FrozenPrompt, freeze
    from rolesafe.roles.encoding import encode
    from rolesafe.roles.role import Role


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'rolesafe' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
