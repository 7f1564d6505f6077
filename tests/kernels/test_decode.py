"""Few queries against many keys: the decode kernel, static caches, several parts of the keys."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rolesafe_kernels import RoleLayout, document_ranges
from rolesafe_kernels.decode import role_attn_decode
from rolesafe_kernels.ops import role_attn_fwd
from torch import Tensor

from tests.attention.problems import Case
from tests.kernels.space import QUIET, cast, examples, large_cases, role_rows, unwritten_is_nan

pytestmark = QUIET


def both_kernels(case: Case, splits: int) -> tuple[Tensor, Tensor]:
    """Output of the decode kernel with so many parts, and of the forward kernel."""
    options = case.options
    mask = options.get("attention_mask")
    key_mask = mask if mask is not None and mask.ndim == 2 else None
    mask = mask if key_mask is None else None
    layout = RoleLayout(case.q_roles, case.k_roles, options["privileged"], key_mask)
    dim = max(case.q.shape[3], case.v.shape[3])
    scale = options["scale"] or case.q.shape[3] ** -0.5
    bits = sum(1 << role for role in options["privileged"])
    window, softcap = options.get("window") or 0, options.get("softcap") or 0.0
    settings = (scale, softcap, window, options["causal"], options["dedicated"], options["integrity"], bits)
    sides = []
    for kernel in ("decode", "forward"):
        k_roles, blocks = layout.keys(case.q, dim, kernel)
        sides.append((layout.queries(case.q, dim, kernel)[0], k_roles, blocks))
    tables = (case.bias, case.share, options.get("sinks"), mask)
    tokens = (case.q, case.k, case.v)
    decoded = role_attn_decode(*tokens, *sides[0], *tables, *settings, splits)
    full = role_attn_fwd(*tokens, *sides[1], None, None, *tables, None, None, *settings, False)[0]
    return decoded, full


@examples(5)
@given(large_cases(lengths=(1, 2, 4, 50, 80)), st.sampled_from([1, 2, 3, 7, 20]))
def test_decode_any_number_of_parts(case: Case, splits: int) -> None:
    case = replace(case, q=case.q[:, :, :4], q_roles=case.q_roles[:, :4])
    mask = case.options.get("attention_mask")
    if mask is not None and mask.ndim == 4:
        case = replace(case, options={**case.options, "attention_mask": mask[:, :, :4]})
    low = cast(case, torch.float32)
    expected = cast(low, torch.float64, torch.float64).run("reference")
    with unwritten_is_nan():
        decoded, full = both_kernels(low, splits)
    torch.testing.assert_close(decoded.double(), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(decoded, full, rtol=1e-4, atol=1e-5)
    blind = (cast(case, torch.float64).mass() == 0).all(-1)
    assert (decoded[blind] == 0).all()


def cache(length: int, capacity: int, filled: list[int]) -> tuple[Case, Tensor]:
    """A static cache of `capacity` keys, garbage behind the first `filled` of a row, and which are there (B, S)."""
    make = torch.Generator().manual_seed(capacity)
    batch = len(filled)
    q, k, v = (torch.randn(batch, h, n, 16, generator=make) for h, n in ((4, length), (2, capacity), (2, capacity)))
    there = torch.arange(capacity) < torch.tensor(filled)[:, None]
    k, v = (torch.where(there[:, None, :, None], x, 1e4) for x in (k, v))
    k_roles = role_rows("runs", batch, capacity, 5, make)
    q_roles = torch.stack([row[n - length : n] for row, n in zip(k_roles, filled, strict=True)])
    share = torch.tensor([0.0, 0.2, 1.0, 0.5])
    return Case(q, k, v, q_roles, k_roles, torch.randn(4, 5, 5, generator=make), share, {"causal": False}), there


def without_cache(case: Case, row: int, filled: int, seen: Tensor | None = None) -> Tensor:
    """Reference output of one row against the keys that are there."""
    one: dict[str, Any] = {"q": case.q[row : row + 1], "q_roles": case.q_roles[row : row + 1]}
    one |= {"k": case.k[row : row + 1, :, :filled], "v": case.v[row : row + 1, :, :filled]}
    one["k_roles"] = case.k_roles[row : row + 1, :filled]
    options = {**case.options, "causal": True}
    return replace(case, **one, options=options).run("reference", attention_mask=seen)


@pytest.mark.parametrize("form", ["(B, S)", "(B, 1, 1, S)"])
def test_decode_static_cache(form: str) -> None:
    filled = [1, 37]
    case, there = cache(1, 70, filled)
    mask = there.long() if form == "(B, S)" else there[:, None, None]
    with unwritten_is_nan():
        out = case.run("triton", attention_mask=mask)
    for row, count in enumerate(filled):
        torch.testing.assert_close(out[row : row + 1], without_cache(case, row, count), rtol=1e-4, atol=1e-5)


def test_decode_mask_becomes_key_mask() -> None:
    """(1, 1, 1, S) for two rows: also without any role part."""
    case, _ = cache(1, 40, [40, 40])
    seen = (torch.arange(40) % 3 != 0)[None, None, None]
    for changes in ({}, {"bias": None, "share": None}):
        plain = replace(case, **changes)
        expected = plain.run("reference", attention_mask=seen)
        torch.testing.assert_close(plain.run("triton", attention_mask=seen), expected, rtol=1e-4, atol=1e-5)


def test_decode_four_queries() -> None:
    """Four queries, each of which sees one more key of a static cache than the one before."""
    filled = [9, 50]
    case, _ = cache(4, 64, filled)
    last = torch.tensor(filled)[:, None] - 4 + torch.arange(4)  # position of each query
    mask = (torch.arange(64) <= last[..., None])[:, None]
    with unwritten_is_nan():
        out = case.run("triton", attention_mask=mask)
    for row, count in enumerate(filled):
        torch.testing.assert_close(out[row : row + 1], without_cache(case, row, count), rtol=1e-4, atol=1e-5)


def test_decode_steps_equal_one_call() -> None:
    """Prefill of 20 tokens, then one at a time: the rows of one causal call."""
    make = torch.Generator().manual_seed(1)
    q, k, v = (torch.randn(1, h, 24, 16, generator=make) for h in (2, 1, 1))
    roles = role_rows("runs", 1, 24, 3, make)
    case = Case(q, k, v, roles, roles, torch.randn(2, 3, 3, generator=make), torch.tensor([0.0, 0.4]))
    whole = case.run("triton")
    for end in (20, 21, 22, 24):
        start = 0 if end == 20 else end - 1
        keys = {"k": k[:, :, :end], "v": v[:, :, :end], "k_roles": roles[:, :end]}
        step = replace(case, q=q[:, :, start:end], q_roles=roles[:, start:end], **keys).run("triton")
        torch.testing.assert_close(step, whole[:, :, start:end], rtol=1e-4, atol=1e-5)


def test_decode_with_gradients_uses_forward_kernel() -> None:
    case, there = cache(1, 40, [20, 40])
    q = case.q.clone().requires_grad_()
    replace(case, q=q).run("triton", attention_mask=there).sum().backward()
    expected = case.q.clone().requires_grad_()
    replace(case, q=expected).run("reference", attention_mask=there).sum().backward()
    torch.testing.assert_close(q.grad, expected.grad, rtol=1e-3, atol=1e-3)


def test_decode_documents_use_forward_kernel() -> None:
    """Packed documents never go to the decode kernel, which knows no ranges."""
    ranges = document_ranges(torch.tensor([0, 1, 3]), 3, True, None)
    assert ranges[0].tolist() == [[[0, 1, 1], [1, 2, 3]]]
    assert ranges[1].tolist() == [[[0, 1, 2], [1, 3, 3]]]
