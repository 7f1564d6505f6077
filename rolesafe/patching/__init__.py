"""Role layers in transformers models: the only place of this package that touches transformers' internals."""

from rolesafe.patching.checkpoint import from_pretrained, save_role_layer
from rolesafe.patching.patch import is_patched, patch, role_parameters, unpatch

__all__ = ["from_pretrained", "is_patched", "patch", "role_parameters", "save_role_layer", "unpatch"]
