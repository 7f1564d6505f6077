"""`role_blocks` and the layout kept for all layers, against a few lines of Python."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rolesafe_kernels import RoleLayout, ops
from rolesafe_kernels.launch import launch_of
from rolesafe_kernels.layout import BEFORE_CLEAN, BEFORE_MIXED, BITS, CLEAN, MIXED, NO_ROLE, PAD, ROWS, RUNS
from rolesafe_kernels.ops import role_blocks
from torch import Tensor

from tests.kernels.space import QUIET, examples, unwritten_is_nan

pytestmark = QUIET

CPU = torch.device("cpu")
BLOCK = launch_of(CPU, torch.float32, 16).forward.block


def written_by_hand(roles: list[int], privileged: set[int], block: int) -> dict[str, Any]:
    """Bits of each block, end and role of its run; for the lists ALL, PRIVILEGED, UNPRIVILEGED the clean (block, role)
    and the mixed blocks."""
    blocks = [set(roles[at : at + block]) for at in range(0, len(roles), block)]
    short = len(roles) % block != 0
    if short:
        blocks[-1].add(PAD.value)
    lists = []
    for kind in (set(range(16)), privileged, set(range(16)) - privileged):
        members = [n for n, found in enumerate(blocks) if found & kind]
        clean = [n for n in members if len(blocks[n]) == 1]
        lists.append(
            {
                "clean": [(n, *blocks[n]) for n in clean],
                "mixed": [n for n in members if n not in clean],
                "before_clean": [sum(m < n for m in clean) for n in range(len(blocks) + 1)],
                "before_mixed": [sum(m < n for m in members if m not in clean) for n in range(len(blocks) + 1)],
            }
        )
    runs = []
    for n, found in enumerate(blocks):
        clean = len(found) == 1 and PAD.value not in found
        end = n + 1
        while clean and end < len(blocks) and blocks[end] == found:
            end += 1
        runs.append((end, *found) if clean else (end, NO_ROLE.value))
    return {"bits": [sum(1 << r for r in found) for found in blocks], "runs": runs, "lists": lists}


def read(blocks: Tensor) -> dict[str, Any]:
    """The same from the kernels' table (ROWS, N + 1) of one row."""
    rows = blocks.tolist()
    lists = []
    for which in range(3):
        before_clean, before_mixed = rows[BEFORE_CLEAN.value + which], rows[BEFORE_MIXED.value + which]
        clean = rows[CLEAN.value + which][: before_clean[-1]]
        mixed = rows[MIXED.value + which][: before_mixed[-1]]
        assert rows[CLEAN.value + which][-1] == sum({1 << (entry & 31) for entry in clean})
        lists.append(
            {
                "clean": [(entry >> 5, entry & 31) for entry in clean],
                "mixed": [entry >> 5 for entry in mixed],
                "before_clean": before_clean,
                "before_mixed": before_mixed,
            }
        )
    runs = [(entry >> 5, entry & 31) for entry in rows[RUNS.value][:-1]]
    return {"bits": rows[BITS.value][:-1], "runs": runs, "lists": lists}


def check(rows: list[list[int]], mask: Tensor | None, privileged: set[int], dtype: torch.dtype) -> None:
    bits = sum(1 << r for r in privileged)
    with unwritten_is_nan():
        roles8, blocks = role_blocks(torch.tensor(rows, dtype=dtype), mask, bits, torch.float32, 16, "forward")
    seen = [[True] * len(rows[0])] * len(rows) if mask is None else (mask != 0).tolist()
    assert roles8.dtype == torch.int8
    assert blocks.shape == (len(rows), ROWS.value, -(-len(rows[0]) // BLOCK) + 1)
    for i, row in enumerate(rows):
        known = [r if ok and 0 <= r < 16 else PAD.value for r, ok in zip(row, seen[i], strict=True)]
        assert roles8[i].tolist() == known
        assert read(blocks[i]) == written_by_hand(known, privileged, BLOCK)


@examples(25)
@given(st.data())
def test_role_blocks_lists(data: st.DataObject) -> None:
    batch, length = data.draw(st.integers(1, 2)), data.draw(st.sampled_from([0, 1, 15, 16, 17, 48, 63, 100]))
    alphabet = st.sampled_from(data.draw(st.sampled_from([[2], [0, 1, 2], [0, 3, 15], [*range(16)], [0, 16, 5, 127]])))
    runs = st.lists(st.tuples(alphabet, st.sampled_from([1, 5, 16, 32])), min_size=1, max_size=12)
    rows = []
    for _ in range(batch):
        row: list[int] = []
        for role, count in data.draw(runs):
            row += [role] * count
        rows.append((row * length)[:length])
    mask = None
    if data.draw(st.booleans()):
        make = torch.Generator().manual_seed(data.draw(st.integers(0, 99)))
        keep = torch.rand(batch, length, generator=make) < data.draw(st.sampled_from([0.0, 0.5, 0.98]))
        mask = keep.to(data.draw(st.sampled_from([torch.bool, torch.int64, torch.float32])))
    dtype = data.draw(st.sampled_from([torch.int8, torch.uint8, torch.int16, torch.int32, torch.int64]))
    check(rows, mask, data.draw(st.sets(st.sampled_from([0, 1, 3, 15]))), dtype)


@pytest.mark.parametrize("length", [1, 2, 3, 4, 5, 9])
@pytest.mark.parametrize("roles", [[2], [2, 0], [2, 2, 0, 0, 0, 2], [1, 16, 1]])
def test_runs_across_chunks(monkeypatch: pytest.MonkeyPatch, roles: list[int], length: int) -> None:
    """A program that takes four blocks at a time finds the ends of longer runs too."""
    monkeypatch.setattr(ops, "LIST_CHUNK", 4)
    check([[role for role in roles for _ in range(length * BLOCK)]], None, {0, 1}, torch.int64)


@pytest.mark.parametrize("roles", [[-1, -(2**40), 2**40, 200, 127, 16, 3] + [3] * 25, [2**32] * 32, [-(2**63)] * 4])
def test_role_blocks_invalid_ids(roles: list[int]) -> None:
    check([roles], None, {0, 1}, torch.int64)


def test_role_blocks_of_strided_tensors() -> None:
    roles = torch.randint(0, 5, (40, 3), generator=torch.Generator().manual_seed(0))
    mask = torch.ones(1, 1, dtype=torch.bool).expand(3, 40)
    found, blocks = role_blocks(roles.T, mask, 3, torch.float32, 16, "dq")
    expected, expected_blocks = role_blocks(roles.T.contiguous(), None, 3, torch.float32, 16, "dq")
    assert torch.equal(found, expected)
    for row, other in zip(blocks, expected_blocks, strict=True):
        assert read(row) == read(other)


def test_layout_is_computed_once() -> None:
    roles, other = torch.randint(0, 3, (2, 1, 40), generator=torch.Generator().manual_seed(0)).unbind()
    tokens = torch.randn(1, 1, 40, 16)
    layout = RoleLayout(roles, roles)
    first = layout.keys(tokens, 16, "forward")
    assert layout.keys(tokens, 16, "forward")[1] is first[1]
    assert layout.queries(tokens, 16, "forward")[1] is first[1]  # the same roles, nothing hidden
    masked = RoleLayout(roles, roles, key_mask=torch.zeros(1, 40))
    assert (masked.keys(tokens, 16, "forward")[0] == PAD.value).all()
    assert torch.equal(masked.queries(tokens, 16, "forward")[0].long(), roles)  # a hidden key still asks
    two = RoleLayout(other, roles)
    assert torch.equal(two.queries(tokens, 16, "forward")[0].long(), other)
