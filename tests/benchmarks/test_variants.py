"""What the gate compiles is what the cells launch."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import pytest

from benchmarks.throughput.cases import CASES, Case
from benchmarks.throughput.cells import MODEL_SHAPES, Cell, all_cells, all_checks
from benchmarks.throughput.shapes import gate_shape
from tests.benchmarks.launcher import Key, keys_of
from tools.inputs import Shape

OWN = {case.name: case for case in CASES if case.own}
SHAPES = {cell.shape: cell for cell in all_cells() if cell.shape is not None and cell.suite != "profile"}


def grid(cell: Cell) -> list[Case]:
    """Return the cases of the fused kernel that are timed in a cell."""
    assert cell.shape is not None
    return [case for case in OWN.values() if (case.trains if cell.shape.square else case.decodes)]


def test_gate_compiles_all_variants_of_the_cells(monkeypatch: pytest.MonkeyPatch) -> None:
    found = cache(lambda case, shape: frozenset(keys_of(OWN[case], shape, monkeypatch)))
    checked = all_checks(all_cells())
    gate: set[Key] = set()
    for check in checked:
        if check.case in OWN:
            gate |= found(check.case, check.shape)
    launched = {(case.name, shape) for shape, cell in SHAPES.items() for case in grid(cell)}
    launched |= {(case.name, shape) for shape in MODEL_SHAPES for case in OWN.values() if case.compiles}
    assert len(launched) > 150
    for name, shape in sorted(launched, key=str):
        missing = found(name, shape) - gate
        assert not missing, f"{name}, {shape}: not compiled by the gate: {sorted(missing)[0]}"
    kernels = {key[0] for key in gate}
    assert {"role_attn_fwd_kernel", "role_attn_merge_kernel", "role_attn_bwd_dq_kernel"} <= kernels
    assert {"role_attn_bwd_dkdv_kernel", "role_attn_bwd_rows_kernel", "role_lists_kernel"} <= kernels


@pytest.mark.parametrize(
    "change",
    [{"heads": 8, "groups": 2}, {"keys": 611}],
    ids=["heads that are no multiple of 16", "an odd number of keys"],
)
def test_other_gate_shapes_compile_other_variants(monkeypatch: pytest.MonkeyPatch, change: dict[str, int]) -> None:
    shape = Shape(8, 32, 8, 1, 4096, 128)
    small = gate_shape(shape)
    measured = keys_of(OWN["bias"], shape, monkeypatch)
    assert measured == keys_of(OWN["bias"], small, monkeypatch)
    assert measured - keys_of(OWN["bias"], replace(small, **change), monkeypatch)
