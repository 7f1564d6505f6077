"""Inputs of one call of role-aware attention: tokens, the roles of a chat, tables, masks.

B batch, H query heads, G key/value heads, T queries, S keys, D and DV head dims, R = 5 roles
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

ROLES = 5
SYSTEM, DEVELOPER, USER, ASSISTANT, TOOL = range(ROLES)
TURNS = (USER, ASSISTANT, TOOL, ASSISTANT)
SYSTEM_SHARE = 0.05
LEAVES = ("q", "k", "v", "bias", "share", "sinks")
DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


@dataclass(frozen=True)
class Shape:
    """Sizes of q (B, H, T, D), k (B, G, S, D) and v (B, G, S, DV); `dim_v` None: DV is D."""

    batch: int
    heads: int
    groups: int
    queries: int
    keys: int
    dim: int
    dim_v: int | None = None

    @property
    def square(self) -> bool:
        """True where T is S, as in training."""
        return self.queries == self.keys

    def __str__(self) -> str:
        names = zip("BHGTSD", (self.batch, self.heads, self.groups, self.queries, self.keys, self.dim), strict=True)
        return " ".join(f"{name}{size}" for name, size in names)


Mask = Literal["", "padding", "lengths", "full", "heads", "empty"]


@dataclass(frozen=True)
class Features:
    """Parts of role-aware attention that a call uses. Defaults: plain causal attention.

    Attributes:
        hidden: Some entries of the bias are -inf.
        dedicated: Share of the heads that are dedicated, 0 to 1.
        mask: Kind of mask: left padding, `lengths`, a (T, S) mask, one for each head, or one that hides everything.
        documents: Several documents are packed into one row.
    """

    bias: bool = False
    hidden: bool = False
    share: bool = False
    sinks: bool = False
    dedicated: float = 0.0
    integrity: bool = False
    softcap: float | None = None
    window: int | None = None
    causal: bool = True
    mask: Mask = ""
    documents: bool = False
    privileged: tuple[int, ...] = (SYSTEM, DEVELOPER)


@dataclass(frozen=True)
class Inputs:
    """q, grad (B, H, T, D | DV), k, v (B, G, S, D | DV), roles (B, T), (B, S) int64, bias (H, R, R), share, sinks (H,).

    Roles are one tensor where T is S. Tables are fp32. Masks are None unless the features ask for them.
    """

    shape: Shape
    q: Tensor
    k: Tensor
    v: Tensor
    grad: Tensor
    q_roles: Tensor
    k_roles: Tensor
    bias: Tensor
    share: Tensor
    sinks: Tensor
    attention_mask: Tensor | None = None
    lengths: Tensor | None = None
    cu_seqlens: Tensor | None = None

    def leaves(self, features: Features) -> dict[str, Tensor]:
        """Return the tensors that a call with `features` differentiates, by name."""
        return {name: getattr(self, name) for name in LEAVES if name in "qkv" or getattr(features, name)}

    def tables(self, features: Features) -> dict[str, Any]:
        """Return bias, share, dedicated heads and integrity as keyword arguments of ``role_attention``."""
        return {
            "bias": self.bias if features.bias else None,
            "share": self.share if features.share else None,
            "dedicated": round(features.dedicated * self.shape.heads),
            "integrity": features.integrity,
        }

    def arguments(self, features: Features) -> dict[str, Any]:
        """Return all keyword arguments of ``rolesafe.role_attention``, less `impl`."""
        return self.tables(features) | {
            "sinks": self.sinks if features.sinks else None,
            "softcap": features.softcap,
            "window": features.window,
            "causal": features.causal,
            "privileged": features.privileged,
            "attention_mask": self.attention_mask,
            "lengths": self.lengths,
            "cu_seqlens": self.cu_seqlens,
        }

    def requires_grad_(self, required: bool) -> Inputs:
        """Return the same inputs with detached leaves, which require gradients or do not."""
        return replace(self, **{name: getattr(self, name).detach().requires_grad_(required) for name in LEAVES})

    def new_cache(self, seed: int) -> Inputs:
        """Return the same inputs with other keys and values."""
        make = torch.Generator(self.k.device).manual_seed(seed)
        k, v = (
            torch.randn(x.transpose(1, 2).shape, dtype=x.dtype, device=x.device, generator=make).transpose(1, 2)
            for x in (self.k, self.v)
        )
        return replace(self, k=k, v=v)


def chat_roles(batch: int, length: int, seed: int = 0) -> Tensor:
    """Draw (B, L) int64 on the CPU: about 5% system, then user, assistant, tool and assistant in turn.

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
    shape: Shape,
    dtype: torch.dtype,
    device: torch.device,
    features: Features | None = None,
    *,
    gradients: bool = False,
    seed: int = 0,
    mixed: bool = False,
    transposed: bool = True,
) -> Inputs:
    """Draw the inputs of a call.

    Args:
        features: Decide masks and hidden pairs; the tables are always drawn.
        gradients: The leaves require gradients.
        mixed: Add developer tokens and a stretch in which roles change at every token. Otherwise the queries of a
            continued text are all of the assistant.
        transposed: Tokens lie in memory as a model's do, (B, T, H, D); else (B, H, T, D).
    """
    features = features or Features()
    batch, heads, keys = shape.batch, shape.heads, shape.keys
    make = torch.Generator(device).manual_seed(seed)

    def normal(*size: int) -> Tensor:
        return torch.randn(*size, generator=make, device=device)

    def uniform(*size: int) -> Tensor:
        return torch.rand(*size, generator=make, device=device)

    def tokens(count: int, length: int, dim: int) -> Tensor:
        size = (batch, length, count, dim) if transposed else (batch, count, length, dim)
        drawn = torch.randn(*size, generator=make, device=device, dtype=dtype)
        return drawn.transpose(1, 2) if transposed else drawn

    roles = chat_roles(batch, max(keys, shape.queries), seed).to(device)
    start = roles.shape[1] - shape.queries
    if mixed:
        roles = torch.where(uniform(*roles.shape) < 0.01, DEVELOPER, roles)
        middle = roles[:, roles.shape[1] // 2 :][:, :40]
        middle.copy_(torch.arange(middle.shape[1], device=device) % ROLES)
    elif shape.queries < keys:
        roles[:, start:] = ASSISTANT
    k_roles = roles[:, roles.shape[1] - keys :].contiguous()
    dim_v = shape.dim_v or shape.dim
    bias = normal(heads, ROLES, ROLES)
    if features.hidden:
        bias = bias.masked_fill(uniform(heads, ROLES, ROLES) < 0.3, float("-inf"))
    x = Inputs(
        shape,
        q=tokens(heads, shape.queries, shape.dim),
        k=tokens(shape.groups, keys, shape.dim),
        v=tokens(shape.groups, keys, dim_v),
        grad=tokens(heads, shape.queries, dim_v),
        q_roles=k_roles if shape.square else roles[:, start:].contiguous(),
        k_roles=k_roles,
        bias=bias,
        share=torch.linspace(0.0, 1.0, heads, device=device),
        sinks=normal(heads),
    )
    if gradients:
        x = x.requires_grad_(True)
    position = torch.arange(keys, device=device)
    if features.mask == "padding":
        x = replace(x, attention_mask=position >= position.new_tensor([keys // 3, 0])[:batch, None])
    elif features.mask == "lengths":
        x = replace(x, lengths=position.new_tensor([keys // 2, keys])[:batch])
    elif features.mask in ("full", "heads"):
        size = (batch, heads if features.mask == "heads" else 1, shape.queries, keys)
        x = replace(x, attention_mask=uniform(*size) < 0.6)
    elif features.mask == "empty":
        x = replace(x, attention_mask=torch.zeros(batch, keys, dtype=torch.bool, device=device))
    if features.documents:
        ends = [0, keys // 7, keys // 7 + 1, keys // 7 + 1, keys // 2, keys]
        x = replace(x, cu_seqlens=position.new_tensor(ends))
    return x
