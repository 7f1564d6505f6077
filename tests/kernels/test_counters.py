"""Blocks that the kernel counts are those that the lists predict; blocks without a visible key are skipped."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from rolesafe_kernels.api import RoleLayout
from rolesafe_kernels.launch import INTERPRETED

from tools import counters
from tools.counters import BlockCounts, count_blocks, predict_blocks

HEADS = 2
CASES: dict[str, dict[str, Any]] = {
    "bias": {},
    "dedicated": {"dedicated": 1},
    "integrity": {"integrity": True},
    "window": {"window": 50},
    "not causal": {"causal": False},
    "no privileged role": {"privileged": ()},
}


def roles() -> torch.Tensor:
    """(1, 160): runs of one role, some as long as many blocks, system text in the middle too."""
    runs = ((0, 20), (2, 61), (3, 40), (0, 9), (2, 30))
    return torch.cat([torch.full((1, length), role) for role, length in runs], 1)


@pytest.mark.parametrize("name", CASES)
def test_count_blocks_equals_prediction(name: str) -> None:
    case, row = CASES[name], roles()
    bias = torch.randn(HEADS, 5, 5, generator=torch.Generator().manual_seed(0))
    bias[:, 3, 2] = -math.inf
    counted = count_blocks(row, row, HEADS, bias=bias, **case)
    layout, like = RoleLayout(row, row, case.get("privileged", (0, 1))), torch.zeros(1, dtype=torch.float16)
    lists = (layout.queries(like, 16, "forward")[0], layout.keys(like, 16, "forward")[1])
    assert counted == predict_blocks(*lists, row.shape[1], HEADS, INTERPRETED.forward, bias=bias, **case)
    assert counted.clean > 0
    assert counted.skipped >= 0


def test_count_blocks_skips_invisible_blocks() -> None:
    row = roles()
    everything = count_blocks(row, row, HEADS)
    assert everything.skipped == 0
    dedicated = count_blocks(row, row, HEADS, dedicated=HEADS)
    assert dedicated.in_range == everything.in_range
    assert dedicated.clean + dedicated.by_token < everything.in_range / 2
    nothing = count_blocks(row, row, HEADS, bias=torch.full((HEADS, 5, 5), -math.inf))
    assert nothing == BlockCounts(everything.in_range, 0, 0)
    padded = count_blocks(row, row, HEADS, key_mask=torch.arange(160)[None] < 64)
    assert padded.skipped > 0


def test_command_prints_a_row_for_each_case(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["counters", "--length", "1024", "--heads", "4"])
    counters.main()
    out = capsys.readouterr().out
    assert "| half of the heads dedicated | " in out
