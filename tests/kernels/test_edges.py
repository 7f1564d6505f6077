"""Edge shapes: no queries, no keys, one of everything, more queries than keys."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from rolesafe import role_attention
from tests.attention.problems import Case
from tests.kernels.space import QUIET, assert_as_good_as_eager, gradients, role_rows, unwritten_is_nan, upstream_of

pytestmark = QUIET


def case_of(b: int, h: int, g: int, t: int, s: int, d: int, dv: int, r: int, **options: Any) -> Case:
    make = torch.Generator().manual_seed(t + s)
    q, k, v = (torch.randn(b, *x, generator=make) for x in ((h, t, d), (g, s, d), (g, s, dv)))
    q_roles, k_roles = (role_rows("random", b, n, r, make) for n in (t, s))
    bias = torch.randn(h, r, r, generator=make)
    options = {"privileged": (0,), **options, "sinks": torch.randn(h, generator=make)}
    return Case(q, k, v, q_roles, k_roles, bias, torch.rand(h, generator=make), options)


EMPTY = {
    "T=0": (2, 2, 1, 0, 5, 16, 8, 3),
    "S=0": (2, 2, 1, 5, 0, 16, 8, 3),
    "S=0, several tiles": (1, 2, 1, 70, 0, 16, 8, 3),
    "T=S=0": (1, 2, 2, 0, 0, 16, 8, 3),
    "B=0": (0, 2, 1, 5, 5, 16, 8, 3),
}


@pytest.mark.parametrize("name", EMPTY)
@pytest.mark.parametrize("roles", [True, False], ids=["roles", "plain"])
def test_empty_inputs_give_zeros(name: str, roles: bool) -> None:
    """Zeros of the right shape; gradients are zeros, of the tables too."""
    case = case_of(*EMPTY[name])
    if not roles:
        case = replace(case, bias=None, share=None)
    with unwritten_is_nan():
        found = gradients(case, "triton", upstream_of(case, torch.float32))
        inference = case.run("triton")
    assert inference.shape == found["out"].shape == (*case.q.shape[:3], case.v.shape[3])
    assert (inference == 0).all()
    for key, x in found.items():
        assert torch.equal(x, torch.zeros_like(x)), key


ONE = {
    "H=1": (1, 1, 1, 20, 20, 16, 16, 3),
    "D=1": (1, 2, 1, 20, 20, 1, 1, 3),
    "R=1": (1, 2, 1, 20, 20, 16, 16, 1),
    "T=S=1": (1, 1, 1, 1, 1, 1, 1, 1),
    "D=256": (1, 1, 1, 5, 5, 256, 3, 2),
    "DV=256": (1, 1, 1, 5, 5, 3, 256, 2),
    "R=16": (1, 1, 1, 20, 20, 16, 16, 16),
    "7 heads a key": (1, 7, 1, 3, 20, 16, 16, 2),
}


@pytest.mark.parametrize("name", ONE)
def test_sizes_of_one(name: str) -> None:
    case = case_of(*ONE[name]).to(torch.float64)
    assert_as_good_as_eager(case, torch.float32)


@pytest.mark.parametrize("train", [False, True])
def test_head_dim_of_one_with_any_stride(train: bool) -> None:
    """D = 1: PyTorch calls a tensor contiguous whatever the stride of a dimension of size 1."""
    case = case_of(1, 2, 2, 20, 20, 1, 1, 2)
    strided = {name: getattr(case, name).permute(2, 3, 0, 1).contiguous().permute(2, 3, 0, 1) for name in "qkv"}
    assert strided["q"].stride(-1) != 1
    results = []
    for tokens in ({name: getattr(case, name).clone() for name in "qkv"}, strided):
        out = replace(case, **{name: x.requires_grad_(train) for name, x in tokens.items()}).run("triton")
        results.append([out, *(torch.autograd.grad(out.sum(), list(tokens.values())) if train else ())])
    for expected, got in zip(*results, strict=True):
        assert torch.equal(got, expected)


@pytest.mark.parametrize("t, s", [(50, 3), (64, 16), (70, 40)])
@pytest.mark.parametrize("roles", [True, False], ids=["roles", "plain"])
def test_more_queries_than_keys(t: int, s: int, roles: bool) -> None:
    """Causal, aligned at the bottom right: the first T - S rows see nothing."""
    case = case_of(1, 1, 1, t, s, 16, 16, 2)
    if not roles:
        case = replace(case, bias=None, share=None)
    case = case.to(torch.float64)
    assert_as_good_as_eager(case, torch.float32)
    out = case.to(torch.float32).run("triton")
    assert (out[:, :, : t - s] == 0).all()
    assert (out[:, :, t - s :] != 0).any(-1).all()


def test_window_of_one_key() -> None:
    case = case_of(1, 2, 1, 40, 40, 16, 16, 2, window=1)
    case = replace(case, share=None, options={**case.options, "sinks": None})
    torch.testing.assert_close(case.run("triton"), case.v.expand(-1, 2, -1, -1))


@pytest.mark.parametrize("train", [False, True])
def test_tables_of_any_stride(train: bool) -> None:
    """One share for all heads is `expand`; kernels read numbers a head one behind the other."""
    make = torch.Generator().manual_seed(0)
    case = case_of(1, 4, 2, 3 if not train else 20, 20, 16, 16, 3)
    tables = {
        "share": torch.tensor([0.7]).expand(4),
        "bias": torch.randn(3, 3, 4, generator=make).permute(2, 1, 0),
    }
    sinks = torch.randn(8, generator=make)[::2]
    found = {}
    for impl in ("reference", "triton"):
        q = case.q.clone().requires_grad_(train)
        out = replace(case, q=q, **tables, options={**case.options, "sinks": sinks}).run(impl)
        found[impl] = (out.detach(), torch.autograd.grad(out.square().sum(), q)[0] if train else out)
    for expected, got in zip(found["reference"], found["triton"], strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


def test_lists_longer_than_a_chunk() -> None:
    """A row of more blocks than `role_lists_kernel` takes at a time."""
    from rolesafe_kernels.layout import BEFORE_CLEAN, CLEAN
    from rolesafe_kernels.ops import LIST_CHUNK, build_blocks

    roles = torch.arange(LIST_CHUNK * 16 * 2 + 40).div(160, rounding_mode="floor")[None] % 5
    blocks = build_blocks(roles, None, 0b11, 16)[1][0]
    n = blocks.shape[1] - 1
    assert n > 2 * LIST_CHUNK
    whole = range(roles.shape[1] // 16)
    one = [i for i in whole if roles[0, 16 * i : 16 * i + 16].unique().numel() == 1]
    assert blocks[BEFORE_CLEAN.value, n] == len(one)
    assert (blocks[CLEAN.value, : len(one)] >> 5).tolist() == one


def test_mask_skips_blocks_hidden_by_roles() -> None:
    """With a (T, S) mask and a share, blocks of a role that neither sees nor is seen are not read."""
    make = torch.Generator().manual_seed(2)
    roles = torch.tensor([0] * 32 + [3] * 32 + [2] * 16)[None]
    bias = torch.randn(2, 4, 4, generator=make)
    bias[:, 3] = bias[:, :, 3] = -torch.inf
    mask = torch.rand(1, 1, 80, 80, generator=make) < 0.8
    tensors = [torch.randn(1, heads, 80, 16, generator=make) for heads in (2, 1, 1, 2)]
    found = []
    for value in (0.0, float("nan")):
        q, k, v, upstream = (x.clone() for x in tensors)
        for x in (q, k, v, upstream):
            x[:, :, 32:64] = value
        leaves = [x.requires_grad_() for x in (q, k, v, bias.clone(), torch.tensor([0.3, 0.6]))]
        out = role_attention(
            *leaves[:3], roles, roles, bias=leaves[3], share=leaves[4], attention_mask=mask, causal=False, impl="triton"
        )
        found.append([out, *torch.autograd.grad(out, leaves, upstream)])
    for expected, got in zip(*found, strict=True):
        assert torch.isfinite(expected).all()
        assert torch.equal(got, expected)
