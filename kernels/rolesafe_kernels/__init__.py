"""The fused Triton kernel of role-aware attention. There is none in this release.

The operation is described in ``kernels/README.md`` and computed by ``rolesafe.role_attention`` with the backends
``"reference"`` and ``"sdpa"``, on every device. This package fixes the name under which the kernel will be importable,
and says so instead of pretending: :data:`AVAILABLE` is False. It never imports ``rolesafe``.
"""

AVAILABLE = False
"""Whether a fused kernel is in this release."""

__all__ = ["AVAILABLE"]
