"""Runs of blocks of one role: of one block, of many, cut off by the diagonal or a window, hidden from some queries."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.attention.problems import INF, Case
from tests.kernels.space import QUIET, assert_as_good_as_eager, gradients, unwritten_is_nan

pytestmark = QUIET

BLOCK = 32
"""Tokens of the interpreter's largest block: segments of it are clean blocks for every kernel."""

SEGMENTS: dict[str, tuple[tuple[int, int], ...]] = {
    "one role": ((2, 4 * BLOCK),),
    "runs of one block": ((0, BLOCK), (2, BLOCK), (3, BLOCK), (2, BLOCK)),
    "the same role again": ((2, BLOCK), (0, 5), (2, BLOCK - 5), (2, 2 * BLOCK)),
    "short segments": tuple((role, 7) for role in (0, 2, 3, 1, 2, 4, 2) * 2),
    "odd end": ((0, BLOCK), (2, 2 * BLOCK), (3, 3)),
}


def case_of(name: str, **options: Any) -> Case:
    """A case in fp64 with two query heads on one key head; its table hides role 0 from role 3."""
    row = torch.cat([torch.full((1, length), role) for role, length in SEGMENTS[name]], 1)
    make = torch.Generator().manual_seed(len(name))
    q, k, v = (torch.randn(1, h, row.shape[1], 16, generator=make, dtype=torch.float64) for h in (2, 1, 1))
    bias = torch.randn(2, 5, 5, generator=make, dtype=torch.float64)
    bias[:, 3, 0] = -INF
    share = torch.tensor([0.3, 0.0], dtype=torch.float64)
    chosen = {"privileged": (0, 1), "causal": True, "dedicated": 0, "integrity": False, "scale": None, **options}
    return Case(q, k, v, row, row, bias, share, chosen)


@pytest.mark.parametrize("name", SEGMENTS)
def test_runs_of_every_kind_match_reference(name: str) -> None:
    assert_as_good_as_eager(case_of(name), torch.float32)


@pytest.mark.parametrize(
    "options",
    [{"causal": False}, {"window": 40}, {"dedicated": 1, "integrity": True}],
    ids=["not causal", "window", "channel"],
)
def test_runs_with_options_match_reference(options: dict[str, Any]) -> None:
    assert_as_good_as_eager(case_of("runs of one block", **options), torch.float16)


def test_runs_hidden_from_all_give_zero() -> None:
    """A run that no query of a tile sees is skipped; where nothing is visible, output and gradients are 0."""
    case = case_of("runs of one block", causal=False)
    assert case.bias is not None
    hidden = torch.full_like(case.bias, -INF)
    hidden[:, 2, 2] = 1.0
    case = replace(case, bias=hidden, share=None)
    assert_as_good_as_eager(case, torch.float32)
    blind = (case.q_roles[0] != 2).nonzero()[:, 0]
    with unwritten_is_nan():
        found = gradients(case.to(torch.float32), "triton", torch.ones(1, 2, 4 * BLOCK, 16))
    assert (found["out"][:, :, blind] == 0).all()
    assert (found["q"][:, :, blind] == 0).all()


def test_share_in_one_launch_repeats_its_bits() -> None:
    """Both looks of a program, and gradients, twice the same; of tensors that are not contiguous too."""
    case = case_of("the same role again").to(torch.float32)

    def spread(x: Tensor) -> Tensor:
        return x.transpose(1, 2).contiguous().transpose(1, 2)

    upstream = torch.randn(1, 2, 4 * BLOCK, 16, generator=torch.Generator().manual_seed(1))
    runs = [
        gradients(one, "triton", upstream)
        for one in (case, case, replace(case, q=spread(case.q), k=spread(case.k), v=spread(case.v)))
    ]
    for name, first in runs[0].items():
        assert torch.equal(first, runs[1][name]), name
        assert torch.equal(first, runs[2][name]), name
