"""Inputs of one measurement: tokens, roles shaped like a chat, tables.

B batch, H query heads, G key/value heads, T queries, S keys, D head dim, R roles
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.throughput.shapes import Shape

ROLES = 5
SYSTEM, USER, ASSISTANT, TOOL = 0, 2, 3, 4
TURNS = (USER, ASSISTANT, TOOL, ASSISTANT)
SYSTEM_SHARE = 0.05


@dataclass(frozen=True)
class Parts:
    """Which parts of role-aware attention a case computes. `dedicated` is a share of the heads."""

    bias: bool = False
    share: bool = False
    dedicated: float = 0.0
    integrity: bool = False

    def dedicated_heads(self, heads: int) -> int:
        return round(self.dedicated * heads)


@dataclass(frozen=True)
class Inputs:
    """q (B, H, T, D), k and v (B, G, S, D), roles (B, T) and (B, S) int64, bias (H, R, R), share (H,), grad as q.

    Tokens lie in memory as a model's do, (B, T, H, D). Roles are one tensor where T is S. The tables are fp32.
    """

    shape: Shape
    q: Tensor
    k: Tensor
    v: Tensor
    q_roles: Tensor
    k_roles: Tensor
    bias: Tensor
    share: Tensor
    grad: Tensor

    def leaves(self, parts: Parts) -> dict[str, Tensor]:
        """What a case with `parts` gives gradients of."""
        tables = {"bias": self.bias} if parts.bias else {}
        return {"q": self.q, "k": self.k, "v": self.v, **tables, **({"share": self.share} if parts.share else {})}


def chat_roles(batch: int, length: int, seed: int = 0) -> Tensor:
    """(B, L) int64 on the CPU: about 5% system, then user, assistant, tool and assistant in turn.

    Every row has its own turns, 6 to 12 where they fit, of random lengths. No run starts at an even position, so none
    starts with a block of a kernel.
    """
    generator = torch.Generator().manual_seed(seed)
    rows = torch.empty(batch, length, dtype=torch.int64)
    for row in rows:
        share = SYSTEM_SHARE * (0.8 + 0.4 * float(torch.rand((), generator=generator)))
        system = min(length, max(1, round(share * length)) | 1)
        turns = min(int(torch.randint(6, 13, (), generator=generator)), max(1, (length - system) // 8))
        weights = torch.rand(turns, generator=generator) + 0.25
        ends = system + (weights.cumsum(0) / weights.sum() * (length - system)).round().long()
        start = system
        row[:system] = SYSTEM
        for turn, end in enumerate(ends.tolist()):
            stop = length if turn == turns - 1 else int(end) | 1
            row[start:stop] = TURNS[turn % len(TURNS)]
            start = stop
    return rows


def make_inputs(
    shape: Shape, dtype: torch.dtype, device: torch.device, gradients: bool, seed: int = 0, caches: int = 1
) -> list[Inputs]:
    """`caches` inputs that differ in k and v alone. The queries of a continued text have the role assistant."""
    generator = torch.Generator(device).manual_seed(seed)

    def tokens(heads: int, length: int) -> Tensor:
        drawn = torch.randn(shape.batch, length, heads, shape.dim, dtype=dtype, device=device, generator=generator)
        return drawn.transpose(1, 2)

    roles = chat_roles(shape.batch, shape.keys, seed)
    if not shape.square:
        roles[:, shape.keys - shape.queries :] = ASSISTANT
    k_roles = roles.to(device)
    q_roles = k_roles if shape.square else k_roles[:, shape.keys - shape.queries :].contiguous()
    bias = torch.randn(shape.heads, ROLES, ROLES, device=device, generator=generator).requires_grad_(gradients)
    share = torch.full((shape.heads,), 0.2, device=device).requires_grad_(gradients)
    q, grad = (tokens(shape.heads, shape.queries) for _ in range(2))
    q.requires_grad_(gradients)
    made = []
    for _ in range(caches):
        k, v = (tokens(shape.groups, shape.keys).requires_grad_(gradients) for _ in range(2))
        made.append(Inputs(shape, q, k, v, q_roles, k_roles, bias, share, grad))
    return made
