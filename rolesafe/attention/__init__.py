"""Role-aware attention as one operation with several backends. Knows tensors, not models."""

from rolesafe.attention.api import role_attention
from rolesafe.attention.backends import resolve_impl
from rolesafe.attention.problem import Problem, RoleIndex

__all__ = ["Problem", "RoleIndex", "resolve_impl", "role_attention"]
