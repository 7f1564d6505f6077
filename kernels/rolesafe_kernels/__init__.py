"""The fused Triton kernel of role-aware attention, for NVIDIA GPUs. Maths and tuning log: ``kernels/README.md``.

It is ``impl="triton"`` of ``rolesafe``, which it never imports: it takes tensors alone.
"""

from rolesafe_kernels.api import MAX_DIM, RoleLayout, document_ranges, role_attention, unsupported
from rolesafe_kernels.plan import Repeat

__all__ = ["MAX_DIM", "Repeat", "RoleLayout", "document_ranges", "role_attention", "unsupported"]
