"""Repeated calls: no checks and no registered operations in eager mode, the same launches, the same errors."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from rolesafe_kernels import RoleLayout, api, replay
from rolesafe_kernels import role_attention as fused
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from tests.kernels.space import QUIET

pytestmark = QUIET
ROOT = Path(__file__).resolve().parents[2]


class Operations(TorchDispatchMode):
    """Keep the names of the registered operations that run."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function.namespace == "rolesafe":
            self.names.append(function.name())
        return function(*args, **(kwargs or {}))


def call(keys: int = 20, length: int = 1, seed: int = 0, grad: bool = False) -> dict[str, Any]:
    make = torch.Generator().manual_seed(seed)
    sizes = {"q": (1, 2, length, 16), "k": (1, 1, keys, 16), "v": (1, 1, keys, 8), "bias": (2, 3, 3)}
    x: dict[str, Any] = {name: torch.randn(*size, generator=make).requires_grad_(grad) for name, size in sizes.items()}
    x["share"] = torch.tensor([0.2, 0.7])
    x["k_roles"] = torch.randint(0, 3, (1, keys), generator=make)
    x["q_roles"] = x["k_roles"][:, keys - length :].clone()
    return x


@pytest.fixture
def checks(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """Calls of `check`, from a state without plans."""
    usual, seen = api.check, []
    monkeypatch.setattr(api, "check", lambda *args: (seen.append(args), usual(*args))[1])
    replay.PLANS.clear()
    return seen


@pytest.mark.parametrize("grad", [False, True])
def test_same_form_is_checked_once(checks: list[Any], grad: bool) -> None:
    for seed in range(2):
        fused(**call(seed=seed, grad=grad))
    assert len(checks) == 1
    fused(**call(keys=21))
    assert len(checks) == 2


def test_replay_equals_registered_operation() -> None:
    """First calls, repeated ones, growing caches and a static one."""
    replay.PLANS.clear()
    for keys in (18, 33, 18):
        for seed in range(2):
            x = call(keys, seed=seed)
            with Operations() as seen:
                registered = fused(**x)
            assert seen.names == ["rolesafe::role_blocks", "rolesafe::role_blocks", "rolesafe::role_attn_decode"]
            assert torch.equal(fused(**x), registered)


@pytest.mark.parametrize("grad", [False, True])
def test_eager_call_takes_no_registered_operation(grad: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    def registered(*_: Any) -> None:
        raise AssertionError("a registered operation in eager mode")

    monkeypatch.setattr(api, "role_attn_decode", registered)
    monkeypatch.setattr(api, "role_attn_fwd", registered)
    monkeypatch.setattr(api, "role_blocks", registered)
    out = fused(**call(length=20, grad=grad))
    assert out.requires_grad == grad


def test_replay_takes_each_tensor_of_the_call() -> None:
    """One object in several places when the launches are kept, then others of the same form."""
    replay.PLANS.clear()
    x = call()
    same = torch.randn(1, 1, 20, 16, generator=torch.Generator().manual_seed(1))
    fused(**{**x, "k": same, "v": same})
    other = torch.randn(1, 1, 20, 16, generator=torch.Generator().manual_seed(2))
    found = fused(**{**x, "k": same, "v": other})
    with replay.bypassed():
        assert torch.equal(found, fused(**{**x, "k": same, "v": other}))


def test_replay_of_unaligned_tensors() -> None:
    replay.PLANS.clear()
    x = call()
    expected = fused(**x)
    memory = torch.empty(x["k"].numel() + 1)
    moved = memory[1:].view(x["k"].shape).copy_(x["k"])
    assert not replay.aligned(moved)
    assert torch.equal(fused(**{**x, "k": moved}), expected)
    assert torch.equal(fused(**x), expected)


BAD: list[tuple[str, Any, str]] = [
    ("k", lambda x: x.half(), "`k`: expected 4 dimensions, torch.float32"),
    ("k", lambda x: x.to("meta"), "`k`: expected 4 dimensions, torch.float32 on cpu"),
    ("v", lambda x: x[:, :, :19], "`v`: expected shape"),
    ("k_roles", lambda x: x[:, :19], "`k_roles`: expected shape"),
    ("k_roles", lambda x: x.bool(), "`k_roles`: expected integer"),
    ("bias", lambda x: x[:1], "`bias`: expected shape"),
    ("share", lambda x: x.long(), "`share`: expected floating"),
]


@pytest.mark.parametrize("name, change, message", BAD, ids=[f"{name}-{i}" for i, (name, *_) in enumerate(BAD)])
def test_error_after_a_kept_call(name: str, change: Any, message: str) -> None:
    x = call()
    fused(**x)
    with pytest.raises(ValueError, match=message):
        fused(**{**x, name: change(x[name])})


def test_layout_of_other_roles_raises_after_a_kept_call() -> None:
    x = call()
    layout = RoleLayout(x["q_roles"], x["k_roles"])
    fused(**x, layout=layout)
    with pytest.raises(ValueError, match="`layout`: expected the layout of"):
        fused(**{**x, "k_roles": x["k_roles"].clone()}, layout=layout)


def test_kept_rows_that_see_nothing_are_zero() -> None:
    x = call()
    hidden = torch.zeros(1, 20, dtype=torch.bool)
    for _ in range(2):
        assert not fused(**x, key_mask=hidden).any()
        assert not fused(**{**x, "bias": torch.full((2, 3, 3), -torch.inf)}).any()


def test_kept_call_of_strided_tensors() -> None:
    x = call()
    k, v = (x[name].transpose(2, 3).contiguous().transpose(2, 3) for name in "kv")
    bias = x["bias"].transpose(1, 2).contiguous().transpose(1, 2)
    for _ in range(2):
        assert torch.equal(fused(**{**x, "k": k, "v": v, "bias": bias}), fused(**x))


def test_second_derivative_raises() -> None:
    x = call(length=20, grad=True)
    (first,) = torch.autograd.grad(fused(**x).square().sum(), [x["q"]], create_graph=True)
    with pytest.raises(RuntimeError, match="no autograd formula was registered"):
        torch.autograd.grad(first.sum(), [x["q"]])


def test_vmap_and_tracing_take_registered_operations() -> None:
    from torch.fx.experimental.proxy_tensor import make_fx

    x = call(keys=4, length=3)
    q = x.pop("q")

    def attend(q: Tensor) -> Tensor:
        return fused(q, **x)

    graph = make_fx(attend)(q)
    assert any("role_attn_decode" in str(node.target) for node in graph.graph.nodes)
    both = torch.stack([q, q.flip(1)])
    assert torch.equal(torch.vmap(attend)(both), torch.stack([attend(one) for one in both]))


def test_kept_entries_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replay, "MOST", 3)
    kept = replay.Kept()
    for i in range(10):
        kept.keep(i, str(i))
        assert kept.find(i) == str(i)
    assert sum(kept.find(i) is not None for i in range(10)) <= 3
    with replay.bypassed():
        assert kept.find(9) is None


LAUNCHES = """
import torch
from rolesafe_kernels import RoleLayout, replay, role_attention
from tools.inputs import Features, Shape, make_inputs
from tools.stub import stub_device

def place(x, names):
    return names.get(x.data_ptr(), (x.dtype, x.shape, x.stride())) if hasattr(x, "data_ptr") else x

def arguments(seen, tensors):
    names = {x.data_ptr(): name for name, x in tensors.items()}
    return [(kernel.name, grid, [place(x, names) for x in found]) for kernel, grid, found in seen]

CASES = [Features(), Features(bias=True), Features(bias=True, share=True, dedicated=0.5, integrity=True, sinks=True),
         Features(bias=True, softcap=5.0, window=100)]
with stub_device() as stub, torch.no_grad():
    for features in CASES:
        for keys in (64, 65, 300):
            for dtype in (torch.bfloat16, torch.float32)[: 1 + features.share]:
                for turn in range(2):
                    x = make_inputs(Shape(1, 8, 2, 1, keys, 64), dtype, torch.device("cpu"), features, seed=turn)
                    roles = (x.q_roles, x.k_roles) if features.bias else ()
                    layout = RoleLayout(*roles) if roles else None
                    options = {**x.tables(features), "sinks": x.sinks if features.sinks else None, "layout": layout,
                               "softcap": features.softcap, "window": features.window}
                    call = lambda: role_attention(x.q, x.k, x.v, *roles, **options)
                    call()
                    lookups, found = stub.lookups, []
                    for bypass in (True, False):
                        seen = []
                        stub.see = lambda kernel, grid, given: seen.append((kernel, grid, given))
                        if bypass:
                            with replay.bypassed():
                                call()
                            assert stub.lookups == lookups + 2
                        else:
                            call()
                            assert stub.lookups == lookups + 2, "a kept call looks nothing up"
                        own = {name: getattr(x, name) for name in ("q", "k", "v", "bias", "share", "sinks")}
                        found.append((seen, arguments(seen, own)))
                        stub.see = None
                    (usual, usual_arguments), (kept, kept_arguments) = found
                    assert len(usual) == 2 and [k is o for (k, *_), (o, *_) in zip(usual, kept)] == [True, True]
                    assert usual_arguments == kept_arguments, (usual_arguments, kept_arguments)
print("same launches")
"""


def test_kept_launches_equal_those_of_triton() -> None:
    """Compiled kernel, grid and every argument, as Triton's own look-up gives them."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(ROOT / "kernels")])
    run = subprocess.run([sys.executable, "-c", LAUNCHES], env=environment, capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr[-3000:]
    assert run.stdout.strip() == "same launches"
