"""The fused kernels agree with the specification: outputs and all gradients."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.attention.problems import Case, cases
from tests.kernels.space import (
    QUIET,
    assert_as_good_as_eager,
    examples,
    gradients,
    large_cases,
    role_rows,
    unwritten_is_nan,
    upstream_of,
)

pytestmark = QUIET

DTYPES = st.sampled_from([torch.float32, torch.float16])


def test_unwritten_memory_is_nan() -> None:
    like = torch.ones(3, dtype=torch.float16)
    with unwritten_is_nan():
        for x in (torch.empty(3), torch.empty_like(like), like.new_empty(2, 2), like.new_empty(3, dtype=torch.float32)):
            assert x.isnan().all()
        assert (like.new_empty(4, dtype=torch.int32) == torch.iinfo(torch.int32).max).all()
    assert not torch.are_deterministic_algorithms_enabled()


@examples(3)
@given(large_cases(), DTYPES)
def test_many_blocks(case: Case, dtype: torch.dtype) -> None:
    assert_as_good_as_eager(case, dtype)


@examples(3)
@given(cases(extras=True).filter(lambda case: case.q.shape[0] * case.q.shape[1] <= 4), DTYPES)
def test_less_than_a_block(case: Case, dtype: torch.dtype) -> None:
    assert_as_good_as_eager(case, dtype)


def conversation(roles: list[tuple[int, int]], heads: int = 1, **options: Any) -> Case:
    """B=1, D=16, DV=24: a row of (role, length) segments."""
    make = torch.Generator().manual_seed(7)
    row = torch.cat([torch.full((length,), role) for role, length in roles])[None]
    size = row.shape[1]
    q, k, v = (torch.randn(1, heads, size, d, generator=make, dtype=torch.float64) for d in (16, 16, 24))
    bias = torch.randn(heads, 5, 5, generator=make, dtype=torch.float64)
    share = torch.linspace(0.3, 1, heads, dtype=torch.float64)
    return Case(q, k, v, row, row, bias, share, options)


CONVERSATIONS = {
    "clean blocks": [(0, 32), (2, 32), (3, 16)],
    "clean but one token": [(0, 33), (2, 47)],
    "privileged in the middle": [(2, 32), (1, 16), (4, 32)],
    "no privileged key": [(2, 40), (3, 40)],
    "privileged alone": [(0, 40), (1, 40)],
}


@pytest.mark.parametrize("name", CONVERSATIONS)
def test_conversations(name: str) -> None:
    assert_as_good_as_eager(conversation(CONVERSATIONS[name]), torch.float32)


@pytest.mark.parametrize("hidden", ["pair", "column", "row"])
def test_hidden_roles_between_clean_blocks(hidden: str) -> None:
    case = conversation([(2, 16), (3, 16), (0, 16), (3, 16), (2, 16)], causal=False)
    assert case.bias is not None
    bias = case.bias.clone()
    where: Any = {"pair": (0, 2, 3), "column": (0, slice(None), 3), "row": (0, 3)}[hidden]
    bias[where] = -torch.inf
    assert_as_good_as_eager(replace(case, bias=bias, share=None), torch.float32)


@pytest.mark.parametrize("layout", ["heads last", "last dimension strided", "expanded", "sliced"])
def test_views_equal_copies(layout: str) -> None:
    """Views give the same results and gradients as their copies."""
    make = torch.Generator().manual_seed(3)
    roles = role_rows("runs", 2, 20, 3, make)

    def tensor(heads: int) -> torch.Tensor:
        if layout == "heads last":
            return torch.randn(2, 20, heads, 16, generator=make).transpose(1, 2)
        if layout == "last dimension strided":
            return torch.randn(2, heads, 16, 20, generator=make).transpose(2, 3)
        if layout == "expanded":
            return torch.randn(1, 1, 20, 16, generator=make).expand(2, heads, 20, 16)
        return torch.randn(2, heads, 24, 40, generator=make)[:, :, 2:22, 5:21]

    tensors = {"q": tensor(2), "k": tensor(1), "v": tensor(1)}
    bias = torch.randn(2, 3, 3, generator=make)
    mask = torch.ones(20, 20, 1, 2, dtype=torch.bool).tril().permute(3, 2, 1, 0)
    wide = roles.repeat_interleave(2, 1)
    found = []
    for view in (True, False):
        leaves = {name: (x if view else x.contiguous()).detach().requires_grad_() for name, x in tensors.items()}
        ids = wide[:, ::2] if view else roles
        case = Case(**leaves, q_roles=ids, k_roles=ids, bias=bias, options={"causal": False, "attention_mask": mask})
        with unwritten_is_nan():
            out = case.run("triton")
            out.backward(torch.ones_like(out[..., :1]).expand_as(out))
        found.append([out, *(x.grad for x in leaves.values())])
    for view, copy in zip(*found, strict=True):
        assert torch.equal(view, copy)


def test_results_have_same_bits() -> None:
    case = conversation([(0, 20), (2, 37)], heads=2, integrity=True)
    options = {**case.options, "sinks": torch.tensor([0.3, -0.2])}
    assert case.bias is not None
    assert case.share is not None
    case = replace(case.to(torch.float16), bias=case.bias.float(), share=case.share.float(), options=options)
    with unwritten_is_nan():
        runs = [gradients(case, "triton", upstream_of(case, torch.float16)) for _ in range(2)]
    for name, expected in runs[0].items():
        assert torch.equal(runs[1][name], expected), name


def test_gradients_of_some_arguments() -> None:
    """Arguments without gradient have none; gradients of the others are the same."""
    case = conversation([(0, 10), (2, 10)]).to(torch.float32)
    assert case.bias is not None
    case = replace(case, bias=case.bias.float(), share=torch.tensor([0.3]))
    full = gradients(case, "triton", upstream_of(case, torch.float32))
    for name in ("bias", "share", "v"):
        leaf = getattr(case, name).clone().requires_grad_()
        out = replace(case, **{name: leaf}).run("triton")
        out.backward(upstream_of(case, torch.float32))
        assert torch.equal(leaf.grad, full[name])
