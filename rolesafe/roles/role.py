"""The roles a token can have, ordered by privilege.

A role id is the index of the role in that order: 0 is the most privileged. The five roles of :class:`Role` are the
default; a :class:`rolesafe.RoleConfig` may declare others, at most :data:`MAX_ROLES`.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum

MAX_ROLES = 16
"""Most roles a model may declare: what the fused kernel's table holds."""


class Role(IntEnum):
    """The default roles, most privileged first (design: system outranks developer outranks user ...)."""

    SYSTEM = 0
    DEVELOPER = 1
    USER = 2
    ASSISTANT = 3
    TOOL = 4


DEFAULT_ROLES: tuple[str, ...] = tuple(role.name.lower() for role in Role)
DEFAULT_PRIVILEGED: tuple[str, ...] = ("system", "developer")


def role_id(name: str, roles: Sequence[str] = DEFAULT_ROLES, *, argument: str = "role") -> int:
    """Index of `name` in `roles`.

    Raises:
        ValueError: `name` is not declared; the message lists the roles that are.
    """
    key = name.lower() if isinstance(name, str) else name
    try:
        return list(roles).index(key)
    except ValueError:
        raise ValueError(
            f"`{argument}`: unknown role {name!r}; expected one of {', '.join(map(repr, roles))}. "
            "Other roles are declared with `RoleConfig(roles=(...))`, most privileged first."
        ) from None
