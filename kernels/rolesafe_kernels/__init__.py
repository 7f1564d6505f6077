"""The fused Triton kernel of role-aware attention, for NVIDIA GPUs. Maths and tuning log: ``kernels/README.md``.

This package knows tensors alone and never imports ``rolesafe``, whose ``impl="triton"`` it is.
"""

from rolesafe_kernels.api import MAX_DIM, RoleLayout, document_ranges, role_attention, unsupported

__all__ = ["MAX_DIM", "RoleLayout", "document_ranges", "role_attention", "unsupported"]
