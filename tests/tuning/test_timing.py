"""The bench without a GPU: patches that are taken back, launches recorded under the interpreter, processes that die."""

from __future__ import annotations

import time

import pytest
import torch
from rolesafe_kernels import api, call, launch, ops, timing
from rolesafe_kernels.crew import Crew, Lost
from rolesafe_kernels.launch import INTERPRET, Tile

from tests.tuning.jobs import work_on

CPU = torch.device("cpu")
TILE = Tile(16, 32, 1, 1)
SMALL = timing.Shape(1, 35, 35, heads=2, groups=1)


def test_patches_are_taken_back_after_an_error() -> None:
    before = (call.launch_of, api.launch_of, ops.role_attn_bwd_dq_kernel)
    x = timing.make_inputs(SMALL, torch.float32, 16, CPU)
    with pytest.raises(ValueError, match="`q`"):
        timing.record("dq", TILE, x._replace(q=x.q[0]))
    assert (call.launch_of, api.launch_of, ops.role_attn_bwd_dq_kernel) == before


def test_one_kernel_alone_is_launched_with_the_candidate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "INTERPRET", True)
    usual = launch.launch_of(CPU, torch.float32, 64)
    with timing.launched_with("dq", TILE):
        assert api.launch_of is call.launch_of is ops.launch_of
        assert ops.launch_of(CPU, torch.float32, 64) == usual._replace(dq=TILE)
    assert api.launch_of is call.launch_of is ops.launch_of is launch.launch_of


@pytest.mark.skipif(not INTERPRET, reason="the interpreter runs kernels on CPU tensors")
@pytest.mark.parametrize("kernel", ["forward", "decode", "dkdv"])
def test_recorded_launch_is_right_and_can_be_repeated(kernel: str) -> None:
    shape = timing.Shape(2, 1, 35, heads=2, groups=1) if kernel == "decode" else SMALL._replace(length=66, keys=66)
    x = timing.make_inputs(shape, torch.float32, 16, CPU)
    found, recorder = timing.record(kernel, TILE, x)
    exact, low = timing.eager(x, torch.float64), timing.eager(x, torch.float32)
    assert timing.wrong(found, exact, low) is None
    name = "out" if kernel in ("forward", "decode") else "dv"
    if kernel != "decode":  # its kernel leaves parts, which another one puts together
        right = found[name].clone()
        found[name].zero_()
        recorder.repeat()
        torch.testing.assert_close(found[name], right, rtol=0, atol=0)
    found[name][0, 0, 0, 0] += 0.1
    assert "wrong" in (timing.wrong(found, exact, low) or "")
    found[name][0, 0, 0, 0] = float("nan")
    assert "nan" in (timing.wrong(found, exact, low) or "")


def test_eager_attention_is_the_specification() -> None:
    from rolesafe import role_attention

    x = timing.make_inputs(timing.Shape(2, 9, 30, heads=4, groups=2), torch.float64, 8, CPU)
    q, k, v, bias = (t.double().requires_grad_() for t in (x.q, x.k, x.v, x.bias))
    out = role_attention(q, k, v, x.q_roles, x.k_roles, bias=bias, impl="reference")
    gradients = torch.autograd.grad(out, (q, k, v, bias), x.grad)
    found = timing.eager(x, torch.float64)
    for name, right in zip(("out", "dq", "dk", "dv", "dbias"), (out, *gradients), strict=True):
        torch.testing.assert_close(found[name], right)


def test_chat_has_system_text_first_and_several_roles() -> None:
    roles = timing.chat_roles(3, 500, CPU)
    assert roles.shape == (3, 500)
    assert (roles[:, :20] == 0).all()
    assert set(roles.unique().tolist()) >= {0, 2, 3}
    assert not torch.equal(roles[0], roles[1])


def test_crew_process_killed_while_idle_costs_nothing() -> None:
    crew = Crew(work_on, 1)
    try:
        assert dict(crew.run(["a"], limit=60.0)) == {"a": "A"}
        (process, _), *_ = crew.idle
        process.kill()
        process.join()
        assert dict(crew.run(["b"], limit=60.0)) == {"b": "B"}
        crew.idle[0][0].kill()
    finally:
        crew.close()


def test_a_crew_survives_errors_deaths_and_hanging() -> None:
    crew = Crew(work_on, 1)
    try:
        assert dict(crew.run(["warm"], limit=60.0)) == {"warm": "WARM"}
        found = dict(crew.run(["a", "error", "b", "death"], limit=60.0))
        assert (found["a"], found["b"]) == ("A", "B")
        assert found["death"] == Lost("its process died with exit code 7")
        assert found["error"] == Lost("ValueError: no such tile")
        assert dict(crew.run(["c"], limit=60.0)) == {"c": "C"}, "and goes on"
        assert dict(crew.run(["hang"], limit=0.2)) == {"hang": Lost("took too long")}
        late = dict(crew.run(["d", "e"], limit=20.0, until=time.monotonic()))
        assert set(late.values()) == {Lost("no time left")}
    finally:
        crew.close()
