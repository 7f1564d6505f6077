"""Parts of a role layer: small modules that a patch adds to a model, and their common strength."""

from rolesafe.mechanisms.added import AddedHeads
from rolesafe.mechanisms.data import DataTransform
from rolesafe.mechanisms.embedding import RoleEmbedding
from rolesafe.mechanisms.heads import RoleHeads
from rolesafe.mechanisms.part import RolePart, get_strength, set_strength

__all__ = ["AddedHeads", "DataTransform", "RoleEmbedding", "RoleHeads", "RolePart", "get_strength", "set_strength"]
