"""NaN and infinity in tokens that a row does not read do not reach it, in any backend.

Legend: B batch, H query heads, G key/value heads, S tokens, D head dim, R roles.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from rolesafe import role_attention
from tests.attention.problems import ONE_WAY, third

B, H, G, S, D, R = 2, 4, 2, 9, 8, 3
ROLES = torch.tensor([[0, 0, 1, 2, 2, 1, 0, 2, 2], [0, 1, 2, 0, 2, 1, 2, 2, 0]])
PRIVILEGED = ROLES == 0
VALUES = (math.nan, math.inf, -math.inf)
WHICH = ("v", "k", "qkv")


def tensors() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    make = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(B, heads, S, D, generator=make) for heads in (H, G, G))
    table = torch.randn(H, R, R, generator=make)
    return q, k, v, table.masked_fill(torch.rand(H, R, R, generator=make) < 0.3, -math.inf)


def broken(x: Tensor, value: float) -> Tensor:
    """`x` (B, N, S, D) with `value` at every unprivileged token."""
    return x.masked_fill(~PRIVILEGED[:, None, :, None], value)


def check(impl: str, value: float, which: str, **options: Any) -> None:
    q, k, v, _ = tensors()
    options = {"privileged": (0,), **options}
    before = role_attention(q, k, v, ROLES, ROLES, impl=impl, **options)
    q, k, v = (broken(x, value) if name in which else x for name, x in (("q", q), ("k", k), ("v", v)))
    after = role_attention(q, k, v, ROLES, ROLES, impl=impl, **options)
    rows = torch.zeros(B, H, S, dtype=torch.bool)
    if options.get("integrity"):
        rows |= PRIVILEGED[:, None]
    rows[:, : options.get("dedicated", 0)] |= PRIVILEGED[:, None] | ("q" not in which)
    assert rows.any()
    assert torch.equal(after[rows], before[rows]), options


@pytest.mark.parametrize("value", VALUES)
@pytest.mark.parametrize("which", WHICH)
@pytest.mark.parametrize("impl", ["reference", "sdpa"])
def test_privileged_only_rows_stay_finite(impl: str, which: str, value: float) -> None:
    """A third of all combinations, in which all combinations of six of the eight factors occur."""
    table = tensors()[3]
    padding = torch.ones(B, S, dtype=torch.int64)
    padding[0, 0] = 0
    mask = torch.rand(B, 1, S, S, generator=torch.Generator().manual_seed(1)) < 0.8
    for attention_mask, order, bias, share, (dedicated, integrity), target in third(
        WHICH.index(which) + VALUES.index(value),
        (None, padding, mask),
        ({"causal": True}, {"causal": False}, {"causal": True, "window": 4}),
        (None, table),
        (None, torch.tensor([0.0, 0.3, 1.0, 0.7])),
        ((0, True), (2, False), (2, True), (H, False)),
        (0.0, 0.6),
    ):
        options = {"bias": bias, "share": share, "dedicated": dedicated, "integrity": integrity, "mass_target": target}
        check(impl, value, which, attention_mask=attention_mask, **order, **options)


@ONE_WAY
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_fused_kernel_broken_keys_stay_local(value: float) -> None:
    """Keys alone: a broken value still reaches rows that read its block of keys, see the limits in README.md."""
    pytest.importorskip("triton")
    check("triton", value, "k", bias=tensors()[3], dedicated=2, integrity=True)


@ONE_WAY
@pytest.mark.parametrize("which", ["k", "v"])
def test_reference_hidden_tokens_have_no_effect(which: str) -> None:
    """Row by row: one broken token makes exactly those rows NaN that see it."""
    q, k, v, table = tensors()
    table[:] = 0.0
    table[:, 0, 2] = -math.inf
    at = 4  # of role 2 in both rows
    x = {"k": k.clone(), "v": v.clone()}
    x[which][:, :, at] = math.nan
    out = role_attention(q, x["k"], x["v"], ROLES, ROLES, impl="reference", bias=table, privileged=(0,))
    sees = (torch.arange(S) >= at) & ~PRIVILEGED
    assert torch.equal(out.isnan().any(-1), sees[:, None].expand(B, H, S))
    clean = role_attention(q, k, v, ROLES, ROLES, impl="reference", bias=table, privileged=(0,))
    assert torch.equal(out.nan_to_num(0.0), clean.masked_fill(out.isnan(), 0.0))
