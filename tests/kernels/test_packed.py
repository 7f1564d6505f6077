"""`cu_seqlens` and `lengths`: a packed or padded document has the same result as alone, on every backend."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from rolesafe import role_attention
from tests.kernels.space import QUIET, role_rows, unwritten_is_nan

pytestmark = QUIET

IMPLS = ("reference", "sdpa", "triton")
DOCUMENTS = {"many": [1, 16, 0, 23, 9], "one": [33], "two blocks": [32, 32]}

Leaves = dict[str, Tensor]


def problem(length: int, batch: int = 1) -> tuple[Leaves, Tensor]:
    """Leaves q (B, 2, length, 16), k, v (B, 1, length, 16), bias (2, 3, 3), share (2,), and roles (B, length)."""
    make = torch.Generator().manual_seed(length)
    sizes = {"q": (batch, 2, length, 16), "k": (batch, 1, length, 16), "v": (batch, 1, length, 16), "bias": (2, 3, 3)}
    leaves = {name: torch.randn(*size, generator=make) for name, size in sizes.items()}
    leaves["share"] = torch.tensor([0.0, 0.4])
    return {name: x.requires_grad_() for name, x in leaves.items()}, role_rows("runs", batch, length, 3, make)


def run(leaves: Leaves, roles: Tensor, rows: slice, **options: Any) -> Tensor:
    q, k, v = (leaves[name][:, :, rows] for name in "qkv")
    tables = {"bias": leaves["bias"], "share": leaves["share"]}
    return role_attention(q, k, v, roles[:, rows], roles[:, rows], **tables, **options)


def gradients(leaves: Leaves, out: Tensor) -> list[Tensor]:
    make = torch.Generator().manual_seed(1)
    return list(torch.autograd.grad(out, list(leaves.values()), torch.randn(out.shape, generator=make)))


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize(
    "name, options",
    [
        ("many", {"causal": True}),
        ("many", {"causal": True, "window": 6}),
        ("many", {"causal": False, "integrity": True}),
        ("two blocks", {"causal": False, "dedicated": 1}),
        ("one", {"causal": True}),
    ],
    ids=["causal", "window", "integrity", "dedicated", "one"],
)
def test_packed_documents_are_independent(impl: str, name: str, options: dict[str, Any]) -> None:
    sizes = torch.tensor([0, *DOCUMENTS[name]])
    starts = sizes.cumsum(0)
    leaves, roles = problem(int(starts[-1]))
    with unwritten_is_nan():
        packed = run(leaves, roles, slice(None), impl=impl, cu_seqlens=starts.int(), **options)
        found = gradients(leaves, packed)
    rows = [slice(a, b) for a, b in zip(starts[:-1].tolist(), starts[1:].tolist(), strict=True)]
    alone = torch.cat([run(leaves, roles, r, impl="reference", **options) for r in rows], dim=2)
    torch.testing.assert_close(packed, alone, rtol=1e-4, atol=1e-5)
    for got, expected in zip(found, gradients(leaves, alone), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("impl", IMPLS)
def test_packed_documents_with_padding(impl: str) -> None:
    leaves, roles = problem(40)
    q, k, v = (leaves[name].detach() for name in "qkv")
    starts = torch.tensor([0, 17, 40])
    padding = torch.arange(40)[None] < 30

    def plain(rows: slice, **options: Any) -> Tensor:
        tokens = (x[:, :, rows] for x in (q, k, v))
        return role_attention(*tokens, roles[:, rows], roles[:, rows], causal=False, **options)

    for mask in (None, padding):
        packed = plain(slice(None), impl=impl, cu_seqlens=starts, attention_mask=mask)
        for rows in (slice(0, 17), slice(17, 40)):
            part = None if mask is None else mask[:, rows]
            alone = plain(rows, impl="reference", attention_mask=part)
            torch.testing.assert_close(packed[:, :, rows], alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("options", [{"causal": True}, {"causal": True, "window": 7}, {"causal": False}], ids=str)
def test_lengths_equal_unpadded_rows(impl: str, options: dict[str, Any]) -> None:
    leaves, roles = problem(33, batch=3)
    lengths = torch.tensor([33, 17, 0])
    with unwritten_is_nan():
        out = run(leaves, roles, slice(None), impl=impl, lengths=lengths, **options)
        there = (torch.arange(33) < lengths[:, None])[:, None, :, None]
        found = gradients(leaves, out * there)
    for row, length in enumerate(lengths.tolist()):
        one = {name: x[row : row + 1] if x.ndim == 4 else x for name, x in leaves.items()}
        alone = run(one, roles[row : row + 1], slice(length), impl="reference", **options)
        torch.testing.assert_close(out[row : row + 1, :, :length], alone, rtol=1e-4, atol=1e-5)
    assert (out[2] == 0).all()
    masked = run(leaves, roles, slice(None), impl="reference", attention_mask=there[:, 0, :, 0], **options)
    for got, expected in zip(found, gradients(leaves, masked * there), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("impl", IMPLS)
def test_lengths_combine_with_mask(impl: str) -> None:
    leaves, roles = problem(20, batch=2)
    mask = torch.arange(20).expand(2, 20) > 2
    got = run(leaves, roles, slice(None), impl=impl, lengths=torch.tensor([12, 20]), attention_mask=mask)
    both = mask & (torch.arange(20) < torch.tensor([[12], [20]]))
    expected = run(leaves, roles, slice(None), impl="reference", attention_mask=both)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


BAD: list[tuple[dict[str, Any], str]] = [
    ({"cu_seqlens": torch.tensor([0, 5, 8])}, "ascending numbers from 0 to T = 9, got [0, 5, 8]"),
    ({"cu_seqlens": torch.tensor([1, 9])}, "ascending numbers from 0 to T = 9, got [1, 9]"),
    ({"cu_seqlens": torch.tensor([0, 7, 5, 9])}, "ascending numbers from 0 to T = 9, got [0, 7, 5, 9]"),
    ({"cu_seqlens": torch.tensor([9])}, "(documents + 1,) on cpu, got torch.int64 of shape (1,)"),
    ({"cu_seqlens": torch.tensor([[0, 9]])}, "(documents + 1,) on cpu, got torch.int64 of shape (1, 2)"),
    ({"cu_seqlens": torch.tensor([0.0, 9.0])}, "integers of shape (documents + 1,) on cpu, got torch.float32"),
    ({"cu_seqlens": torch.tensor([0, 9], device="meta")}, "on cpu, got torch.int64 of shape (2,) on meta"),
    ({"lengths": torch.tensor([10])}, "0 to 9 (the keys of a row), got [10]"),
    ({"lengths": torch.tensor([-1])}, "0 to 9 (the keys of a row), got [-1]"),
    ({"lengths": torch.tensor([4, 4])}, "integers of shape (1,) on cpu, got torch.int64 of shape (2,)"),
    ({"lengths": torch.tensor([4.0])}, "integers of shape (1,) on cpu, got torch.float32"),
    ({"lengths": torch.tensor([True])}, "integers of shape (1,) on cpu, got torch.bool"),
    ({"lengths": torch.tensor([4], device="meta")}, "on cpu, got torch.int64 of shape (1,) on meta"),
]


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("changes, message", BAD, ids=[f"{next(iter(b[0]))}-{b[1]}" for b in BAD])
def test_bad_values_raise(impl: str, changes: dict[str, Any], message: str) -> None:
    leaves, roles = problem(9)
    with pytest.raises(ValueError, match=f"^`{next(iter(changes))}`") as error:
        run(leaves, roles, slice(None), impl=impl, **changes)
    assert message in str(error.value)


@pytest.mark.parametrize("impl", IMPLS)
def test_packed_documents_of_two_rows_raise(impl: str) -> None:
    leaves, roles = problem(9, batch=2)
    with pytest.raises(ValueError, match=r"^`cu_seqlens`: expected one row .* got B = 2, T = 9, S = 9"):
        run(leaves, roles, slice(None), impl=impl, cu_seqlens=torch.tensor([0, 9]))
    leaves, roles = problem(9)
    q, k, v = (leaves[name] for name in "qkv")
    with pytest.raises(ValueError, match=r"^`cu_seqlens`: expected one row .* got B = 1, T = 4, S = 9"):
        role_attention(q[:, :, :4], k, v, roles[:, :4], roles, impl=impl, cu_seqlens=torch.tensor([0, 4]))
