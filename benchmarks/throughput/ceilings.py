"""Highest TFLOP/s and bandwidth of the GPU, measured in the same run."""

from __future__ import annotations

from typing import Any

import torch

from tools.timing import Timer, quantiles, time_rounds

SIDE = 8192
COPIED_BYTES = 2 * 2**30
ROUNDS = 15


def ceilings(device: torch.device, timer: Timer, side: int = SIDE, copied: int = COPIED_BYTES) -> dict[str, Any]:
    """Return TFLOP/s of a bf16 product of two (side, side) matrices, and GB/s of a copy, bytes read and written."""
    a, b = (torch.randn(side, side, dtype=torch.bfloat16, device=device) for _ in range(2))
    source = torch.zeros(copied, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    product, copy = (lambda: a @ b), (lambda: target.copy_(source))
    timer([product, copy])
    product_ms, copy_ms = (quantiles(ms)["p50_ms"] for ms in time_rounds([product, copy], ROUNDS, timer))
    return {
        "matmul_tflops": 2 * side**3 / product_ms / 1e9,
        "matmul_side": side,
        "copy_gb_per_s": 2 * copied / copy_ms / 1e6,
        "copied_bytes": copied,
    }
