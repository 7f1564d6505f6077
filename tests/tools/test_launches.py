"""Recorded launches and the bench without a GPU: substitutes that are removed, repeats under the interpreter."""

from __future__ import annotations

import pytest
import torch
from rolesafe_kernels import api, call, launch, ops
from rolesafe_kernels.launch import INTERPRET, Tile

from tools import bench, gate, launches
from tools.inputs import Shape, make_inputs

CPU = torch.device("cpu")
TILE = Tile(16, 32, 1, 1)
SMALL = Shape(1, 2, 1, 35, 35, 16)


def test_record_after_error_restores_modules() -> None:
    before = (call.launch_of, api.launch_of, ops.role_attn_bwd_dq_kernel)

    def broken() -> None:
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        launches.record("dq", TILE, broken)
    assert (call.launch_of, api.launch_of, ops.role_attn_bwd_dq_kernel) == before


def test_launched_with_changes_one_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "INTERPRET", True)
    usual = launch.launch_of(CPU, torch.float32, 64)
    with launches.launched_with("dq", TILE):
        assert api.launch_of is call.launch_of is ops.launch_of
        assert ops.launch_of(CPU, torch.float32, 64) == usual._replace(dq=TILE)
    assert api.launch_of is call.launch_of is ops.launch_of is launch.launch_of


@pytest.mark.skipif(not INTERPRET, reason="the interpreter runs kernels on CPU tensors")
@pytest.mark.parametrize("kernel", ["forward", "decode", "dkdv"])
def test_run_recorded_launch_repeats(kernel: str) -> None:
    shape = Shape(2, 2, 1, 1, 35, 16) if kernel == "decode" else Shape(1, 2, 1, 66, 66, 16)
    x = make_inputs(shape, torch.float32, CPU)
    found, recorder = bench.run(kernel, TILE, x)
    right = gate.expected(x, bench.BIAS, gradients=kernel == "dkdv")
    assert not gate.compare(found, *right).detail
    name = bench.RESULTS[kernel][-1]
    if kernel != "decode":  # its kernel leaves parts, which another one puts together
        before = found[name].clone()
        found[name].zero_()
        recorder.repeat()
        torch.testing.assert_close(found[name], before, rtol=0, atol=0)
    found[name][0, 0, 0, 0] += 0.1
    assert f"{name} max" in gate.compare(found, *right).detail
    found[name][0, 0, 0, 0] = float("nan")
    assert f"{name} max nan" in gate.compare(found, *right).detail
