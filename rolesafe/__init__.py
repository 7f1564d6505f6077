"""rolesafe: tokens with standing. Role-aware attention for transformers.

Everything heavy is imported on first use, so ``from rolesafe import patch, encode, RoleConfig`` costs next to nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOME = {
    "Role": "rolesafe.roles.role",
    "RoleConfig": "rolesafe.config",
    "encode": "rolesafe.roles.encoding",
    "patch": "rolesafe.patching",
    "unpatch": "rolesafe.patching",
    "role_parameters": "rolesafe.patching",
    "from_pretrained": "rolesafe.patching",
    "save_role_layer": "rolesafe.patching",
    "role_attention": "rolesafe.attention",
}

__all__ = [  # noqa: RUF022  (grouped: what to call first comes first)
    "Role",
    "RoleConfig",
    "encode",
    "patch",
    "unpatch",
    "role_parameters",
    "from_pretrained",
    "save_role_layer",
    "role_attention",
    "__version__",
]

if TYPE_CHECKING:
    from rolesafe.attention import role_attention
    from rolesafe.config import RoleConfig
    from rolesafe.patching import from_pretrained, patch, role_parameters, save_role_layer, unpatch
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
