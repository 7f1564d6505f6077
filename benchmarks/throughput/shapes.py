"""Shapes of the grids, their work and their bytes.

B batch, H query heads, G key/value heads, T queries, S keys, D head dim
"""

from __future__ import annotations

from collections.abc import Sequence

from tools.inputs import Shape

TOKENS = 32_768
"""B * T of the forward and backward grid."""
LENGTHS = (1024, 2048, 4096, 8192, 16_384, 32_768)
QUICK_LENGTHS = (1024, 4096, 16_384)
URGENT_LENGTHS = (4096, 16_384, 8192, 32_768, 1024, 2048)
"""The same lengths, those that the targets need most first."""
HEADS, GROUPS = 32, 8
DECODE_BATCHES = (8, 32, 1)
DECODE_KEYS = (16_384, 4096, 32_768, 1024)


def forward_flops(shape: Shape) -> float:
    """Return the work of two products of 2 B H T S D operations each, the causal half of them."""
    return 4.0 * shape.batch * shape.heads * shape.queries * shape.keys * shape.dim / 2


def backward_flops(shape: Shape) -> float:
    """Return the work of five products, as the usual formula counts: the scores are computed a second time."""
    return 2.5 * forward_flops(shape)


def cache_bytes(shape: Shape, itemsize: int = 2) -> int:
    """Return the bytes of k and v."""
    return 2 * shape.batch * shape.groups * shape.keys * shape.dim * itemsize


def pair_bytes(shape: Shape, itemsize: int = 2) -> int:
    """Return the bytes of a (B, H, T, S) bias."""
    return shape.batch * shape.heads * shape.queries * shape.keys * itemsize


def square_shapes(dims: Sequence[int], lengths: Sequence[int], tokens: int = TOKENS) -> list[Shape]:
    """Return the forward and backward grid, most urgent first: D in the order of `dims`, `tokens` tokens a batch."""
    order = [length for length in URGENT_LENGTHS if length in lengths]
    return [Shape(max(1, tokens // t), HEADS, GROUPS, t, t, d) for d in dims for t in order]


def decode_shapes(quick: bool) -> list[Shape]:
    """Return the decoding grid, D=128: one query, and four (assisted decoding)."""
    batches = (8,) if quick else DECODE_BATCHES
    keys = (16_384, 4096) if quick else DECODE_KEYS
    queries = (1,) if quick else (1, 4)
    return [Shape(b, HEADS, GROUPS, t, s, 128) for t in queries for b in batches for s in keys]
