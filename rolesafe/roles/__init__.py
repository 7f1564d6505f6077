"""Roles, and the encoding of chat messages to tokens with roles."""

from rolesafe.roles.role import DEFAULT_PRIVILEGED, DEFAULT_ROLES, MAX_ROLES, Role, role_id

__all__ = ["DEFAULT_PRIVILEGED", "DEFAULT_ROLES", "MAX_ROLES", "Role", "role_id"]
