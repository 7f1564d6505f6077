"""Shapes of the grids, their work and their bytes.

B batch, H query heads, G key/value heads, T queries, S keys, D head dim
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from tools.inputs import Shape

TOKENS = 32_768
"""B * T of the forward and backward grid."""
LENGTHS = (1024, 2048, 4096, 8192, 16_384, 32_768)
URGENT_LENGTHS = (4096, 16_384, 8192, 32_768, 1024, 2048)
"""The same lengths, those that the targets need most first."""
HEADS, GROUPS = 32, 8
GATE_LENGTH = 368
DECODE_QUERIES = (1, 4)
"""A step, and one of assisted decoding."""
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


def decode_shapes() -> list[Shape]:
    """Return the decoding grid, D=128, most urgent first: one query, and four (assisted decoding)."""
    return [Shape(b, HEADS, GROUPS, t, s, 128) for t in DECODE_QUERIES for b in DECODE_BATCHES for s in DECODE_KEYS]


def gate_shape(shape: Shape) -> Shape:
    """Return the shape on which the gate checks the cases of a measured shape: small, of the same compiled kernels.

    Triton compiles anew where an integer argument is 1 or stops being a multiple of 16, so heads, groups, queries and
    head dim stay and lengths are odd multiples of 16, which no block divides. The kernel that merges the parts of a
    decoding step is compiled for their number: it follows from B, and at B=1 from S.
    """
    if shape.square:
        return replace(shape, batch=2, queries=GATE_LENGTH, keys=GATE_LENGTH)
    return replace(shape, keys=(shape.keys if shape.batch == 1 else min(shape.keys, 1024)) - 48)
