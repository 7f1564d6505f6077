"""Count the blocks of keys that the forward kernel reads, by kind: from the kernel, or predicted from the lists.

    python -m tools.counters [--length T] [--heads H] [--tile ROWS] [--block TOKENS]

B batch, H heads, T queries, S keys, R roles; a unit is one block of keys for one tile of queries of one head
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from rolesafe_kernels.api import RoleLayout
from rolesafe_kernels.call import cdiv
from rolesafe_kernels.launch import INTERPRET, Tile, launch_of
from rolesafe_kernels.layout import BEFORE_CLEAN, BEFORE_MIXED, CLEAN, PAD
from rolesafe_kernels.ops import build_blocks, empty_outputs, forward
from torch import Tensor

from rolesafe.terminal import run_main
from tools.inputs import chat_roles


class BlockCounts(NamedTuple):
    """Blocks visible by position, and how the kernel reads them.

    Attributes:
        in_range: Blocks that order and window leave visible.
        clean: Of these, read with one bias a row.
        by_token: Read key by key: the diagonal and other edges, and blocks of several roles.
    """

    in_range: int
    clean: int
    by_token: int

    @property
    def skipped(self) -> int:
        """Blocks in range that were not read: no query of the tile sees a key there."""
        return self.in_range - self.clean - self.by_token


def count_blocks(
    q_roles: Tensor,
    k_roles: Tensor,
    heads: int,
    *,
    bias: Tensor | None = None,
    privileged: Sequence[int] = (0, 1),
    dedicated: int = 0,
    integrity: bool = False,
    causal: bool = True,
    window: int = 0,
    key_mask: Tensor | None = None,
    dtype: torch.dtype = torch.float16,
    dim: int = 16,
) -> BlockCounts:
    """Count in one launch on tokens of zeros. Roles (B, T) and (B, S), `bias` (H, R, R)."""
    batch, length = q_roles.shape
    q = torch.zeros(batch, heads, length, dim, dtype=dtype, device=q_roles.device)
    k = q.new_zeros(batch, heads, k_roles.shape[1], dim)
    layout = RoleLayout(q_roles, k_roles, privileged, key_mask)
    k_roles8, blocks = layout.keys(q, dim, "forward")
    roles = (layout.queries(q, dim, "forward")[0], k_roles8)
    tiles = cdiv(length, launch_of(q.device, dtype, dim).forward.rows)
    counts = torch.zeros(batch, heads, tiles, 3, dtype=torch.int32, device=q.device)
    no_tensors = (None, None, None, None)  # share, sinks, mask, ranges
    settings: Any = (dim**-0.5, 0.0, window, causal, dedicated, integrity, layout.privileged, False)
    o, lse, lse_p, diff = empty_outputs(q, k, None, train=False)
    forward(o, diff, lse, lse_p, counts, q, k, k, *roles, blocks, bias, *no_tensors, *settings)
    in_range, by_token, clean = counts.sum((0, 1, 2)).tolist()
    return BlockCounts(in_range, clean, by_token)


def predict_blocks(
    q_roles: Tensor,
    layout: Tensor,
    k_length: int,
    heads: int,
    tile: Tile,
    *,
    bias: Tensor | None = None,
    privileged: Sequence[int] = (0, 1),
    dedicated: int = 0,
    integrity: bool = False,
    causal: bool = True,
    window: int = 0,
) -> BlockCounts:
    """Predict the counts from the lists of `role_blocks`, for shapes that take too long without a GPU.

    Args:
        q_roles: (B, T) int8, and `layout` (B, ROWS, N + 1), from `role_blocks` for blocks of `tile.block`.
    """
    length, total = q_roles.shape[1], [0, 0, 0]
    level = sum(1 << role for role in set(privileged))
    for row, roles in zip(layout.cpu().tolist(), q_roles.cpu().tolist(), strict=True):
        for start in range(0, length, tile.rows):
            present = {role for role in roles[start : start + tile.rows] if role < PAD.value}
            stop = min(start + tile.rows, length)
            edges = _edges(start, stop, k_length - length, k_length, tile.block, causal, window)
            for head in range(heads):
                allowed = 0
                for role in present:
                    allowed |= _sees(role, head, bias, level, dedicated, integrity)
                for i, n in enumerate(_count(row, allowed, level, edges)):
                    total[i] += n
    return BlockCounts(*total)


def _edges(
    start: int, stop: int, offset: int, keys: int, block: int, causal: bool, window: int
) -> tuple[int, int, int, int]:
    """Return the first block that any query sees, the first that all see, and the ends of both ranges."""
    lo = [max(i + offset + 1 - window, 0) if window else 0 for i in (start, stop - 1)]
    hi = [max(min(i + offset + 1, keys), 0) if causal else keys for i in (start, stop - 1)]
    first, last, full, end = lo[0] // block, cdiv(hi[1], block), cdiv(lo[1], block), hi[0] // block
    last = max(last, first)
    return (first, full, end, last) if end > full else (first, first, first, last)


def _sees(role: int, head: int, bias: Tensor | None, privileged: int, dedicated: int, integrity: bool) -> int:
    """Return the bits of the key roles that a query sees."""
    bits = 0xFFFF
    if bias is not None:
        bits = sum(1 << c for c in range(bias.shape[-1]) if float(bias[head, role, c]) > float("-inf"))
    alone = head < dedicated or (integrity and privileged >> role & 1)
    return bits & privileged if alone else bits


def _count(
    row: list[list[int]], allowed: int, privileged: int, edges: tuple[int, int, int, int]
) -> tuple[int, int, int]:
    """Count blocks in range, by token and clean, of one tile and head, as `plan` and `next_run` in `tiles` do."""
    first, full, end, last = edges
    bits = row[0]
    left, right = list(range(first, full)), list(range(end, last))
    for side in (left, right):
        while side and not bits[side[0]] & allowed:
            side.pop(0)
    which = 1 if not allowed & ~privileged else 2 if not allowed & privileged else 0
    if not allowed:
        return last - first, 0, len(left) + len(right)
    clean = row[CLEAN.value + which][row[BEFORE_CLEAN.value + which][full] : row[BEFORE_CLEAN.value + which][end]]
    mixed = row[BEFORE_MIXED.value + which][end] - row[BEFORE_MIXED.value + which][full]
    seen = sum(1 for entry in clean if allowed >> (entry & 31) & 1)
    return last - first, seen, len(left) + len(right) + mixed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--length", type=int, default=4096)
    parser.add_argument("--heads", type=int, default=32)
    parser.add_argument("--tile", type=int, default=128, help="queries of a tile")
    parser.add_argument("--block", type=int, default=64, help="keys of a block")
    arguments = parser.parse_args()
    if not INTERPRET and not torch.cuda.is_available():
        parser.error("expected a CUDA device, got none; set TRITON_INTERPRET=1 to prepare the lists on the CPU")
    heads, tile = arguments.heads, Tile(arguments.tile, arguments.block, 1, 1)
    roles = chat_roles(4, arguments.length).to("cpu" if INTERPRET else "cuda")
    hidden = torch.zeros(heads, 5, 5)
    hidden[:, 4, 0] = -math.inf  # tool output does not see the system text
    cases: dict[str, dict[str, Any]] = {
        "bias": {"bias": torch.zeros(heads, 5, 5)},
        "bias, tool blind to system": {"bias": hidden},
        "half of the heads dedicated": {"dedicated": heads // 2},
        "integrity": {"integrity": True},
        "window of 1024": {"window": 1024},
    }
    print(f"chat, B=4, T=S={arguments.length}, H={heads}, tiles of {tile.rows} queries, blocks of {tile.block} keys")
    print("| | in range | clean | by token | skipped |\n|---|---|---|---|---|")
    roles8, blocks = build_blocks(roles, None, 0b11, tile.block)
    for name, case in cases.items():
        counts = predict_blocks(roles8, blocks, arguments.length, heads, tile, **case)
        parts = (counts.clean, counts.by_token, counts.skipped)
        print(f"| {name} | {counts.in_range} | " + " | ".join(f"{n / counts.in_range:.1%}" for n in parts) + " |")


if __name__ == "__main__":
    run_main(main)
