"""The learned parts of a role-aware model: small modules that a patch hangs into the base model."""

from rolesafe.mechanisms.embedding import RoleEmbedding
from rolesafe.mechanisms.heads import RoleHeads

__all__ = ["RoleEmbedding", "RoleHeads"]
