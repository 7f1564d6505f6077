"""The choice of a backend: what was asked for, what is installed, and what each supports."""

from __future__ import annotations

from importlib.util import find_spec

import torch

from rolesafe.attention.problem import Problem
from rolesafe.config import IMPLEMENTATIONS

HAS_TRITON = find_spec("triton") is not None
"""True where the fused kernel can be imported."""


def resolve_impl(
    impl: str,
    *,
    softcap: bool = False,
    sinks: bool = False,
    dropout: bool = False,
    mass_target: bool = False,
    device: torch.device | None = None,
    dtype: torch.dtype = torch.bfloat16,
    dim: int = 0,
) -> str:
    """Return the backend that `impl` selects.

    ``"auto"`` is ``"triton"`` for tensors on an NVIDIA GPU that the fused kernel takes: fp16, bf16 or fp32, head dims
    up to 256, no dropout, no mass target. Elsewhere it is ``"sdpa"``, but ``"reference"`` for a softcap or sinks, which
    no fused attention of PyTorch computes.

    Args:
        softcap, sinks, dropout, mass_target: True where the call uses them.
        device: Device of the tokens; None: unknown, and "auto" assumes no GPU.
        dtype: Dtype of the tokens.
        dim: The wider of their head dims.

    Raises:
        ValueError: There is no such backend, or it does not support the call.
        RuntimeError: The backend is not installed.
    """
    if impl not in IMPLEMENTATIONS:
        raise ValueError(f"`impl`: expected one of {IMPLEMENTATIONS}, got {impl!r}")
    if impl == "auto":
        on_gpu = device is not None and device.type == "cuda" and not dropout and not mass_target
        if on_gpu and device is not None and _why_not_triton(device, dtype, dim) is None:
            return "triton"
        return "reference" if softcap or sinks else "sdpa"
    if impl == "sdpa" and (softcap or sinks):
        name = "softcap" if softcap else "sinks"
        raise ValueError(
            f"`impl`: 'sdpa' does not support `{name}`, which PyTorch's fused attention lacks. "
            "Use impl='triton' on a GPU, 'reference' or 'auto'."
        )
    if impl == "triton":
        if mass_target:
            raise ValueError(
                "`mass_target`: expected 0.0 with impl='triton', which does not support it. Use impl='sdpa' or 'auto'."
            )
        if not HAS_TRITON:
            raise RuntimeError(
                "`impl`: 'triton' needs the package triton, which is not installed. Run `pip install triton`, or use "
                "impl='sdpa' (linear memory, runs on CUDA too) or 'auto'."
            )
        if dropout:
            raise ValueError(
                "`dropout`: expected 0.0 with impl='triton', which does not support it. Use impl='sdpa' or 'auto'."
            )
        reason = None if device is None else _why_not_triton(device, dtype, dim)
        if reason is not None:
            raise ValueError(f"`impl`: 'triton' does not support this call: {reason}")
    return impl


def _why_not_triton(device: torch.device, dtype: torch.dtype, dim: int) -> str | None:
    if not HAS_TRITON:
        return "the package triton is not installed"
    from rolesafe_kernels import unsupported  # late: it imports triton

    return unsupported(device, dtype, dim)


def resolve_problem(p: Problem, impl: str) -> str:
    """Return the backend for a checked problem, see :func:`resolve_impl`. Layers with the same roles ask once."""
    if p.scores is not None:
        return p.impl_of_scores(impl)
    device, dtype, dim = p.q.device, p.q.dtype, max(p.q.shape[3], p.v.shape[3])
    if dtype != torch.float64 and torch.is_autocast_enabled(device.type):
        dtype = torch.get_autocast_dtype(device.type)
    uses = (p.softcap is not None, p.sinks is not None, p.dropout > 0, p.mass_target > 0)

    def resolve() -> str:
        named = dict(zip(("softcap", "sinks", "dropout", "mass_target"), uses, strict=True))
        return resolve_impl(impl, **named, device=device, dtype=dtype, dim=dim)

    return resolve() if torch.compiler.is_compiling() else p.roles.keep((impl, uses, device, dtype, dim), resolve)
