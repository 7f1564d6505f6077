"""Roles of tokens, ordered by privilege.

A role id is the index of the role in that order: 0 is the most privileged. The five roles of :class:`Role` are the
default; a :class:`rolesafe.RoleConfig` may declare others, at most :data:`MAX_ROLES`.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum

MAX_ROLES = 16
"""Largest number of roles of a model, the size of the fused kernel's table."""


class Role(IntEnum):
    """The default roles, most privileged first.

    >>> from rolesafe import Role
    >>> Role.SYSTEM < Role.USER
    True
    >>> [role.name.lower() for role in Role]
    ['system', 'developer', 'user', 'assistant', 'tool']
    """

    SYSTEM = 0
    DEVELOPER = 1
    USER = 2
    ASSISTANT = 3
    TOOL = 4


DEFAULT_ROLES: tuple[str, ...] = tuple(role.name.lower() for role in Role)
DEFAULT_PRIVILEGED: tuple[str, ...] = ("system", "developer")
DEFAULT_GENERATED = "assistant"


def role_id(name: str, roles: Sequence[str] = DEFAULT_ROLES, *, argument: str = "role") -> int:
    """Return the index of `name` in `roles`.

    Raises:
        ValueError: `name` is not declared.
    """
    key = name.lower() if isinstance(name, str) else name
    try:
        return list(roles).index(key)
    except ValueError:
        raise ValueError(
            f"`{argument}`: expected one of {', '.join(map(repr, roles))}, got the role {name!r}. "
            "Declare other roles with `RoleConfig(roles=(...))`, most privileged first."
        ) from None
