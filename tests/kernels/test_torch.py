"""The operations inside PyTorch: opcheck, torch.compile, checkpointing, autocast."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from rolesafe_kernels import RoleLayout
from rolesafe_kernels import role_attention as fused
from rolesafe_kernels.decode import role_attn_decode
from rolesafe_kernels.ops import role_attn_bwd, role_attn_fwd, role_blocks
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend
from torch.utils.checkpoint import checkpoint

from rolesafe import role_attention
from tests.attention.problems import Case
from tests.kernels.space import QUIET

pytestmark = QUIET


@pytest.fixture(autouse=True)
def _fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def tensors(length: int = 20, keys: int | None = None, grad: bool = True) -> dict[str, Tensor]:
    """Leaves: B=1, H=2, G=1, D=16, DV=8, R=3."""
    make = torch.Generator().manual_seed(length)
    keys = length if keys is None else keys
    sizes = {"q": (1, 2, length, 16), "k": (1, 1, keys, 16), "v": (1, 1, keys, 8), "bias": (2, 3, 3)}
    leaves = {name: torch.randn(*size, generator=make) for name, size in sizes.items()}
    leaves["share"] = torch.tensor([0.2, 0.7])
    return {name: x.requires_grad_(grad) for name, x in leaves.items()}


def ids(length: int) -> Tensor:
    return torch.randint(0, 3, (1, length), generator=torch.Generator().manual_seed(length))


def arguments(kernel: str, share: bool = True, grad: bool = True, mask: bool = False) -> tuple[Any, ...]:
    """Arguments of the operation `kernel` ("forward" or "decode") but the last."""
    x = tensors(grad=grad)
    q, k, v = x["q"], x["k"], x["v"]
    layout = RoleLayout(ids(20), ids(20))
    k_roles, blocks = layout.keys(q, 16, kernel)
    tables = (x["bias"], x["share"] if share else None, torch.tensor([0.1, 0.2]).requires_grad_(grad))
    hidden = torch.rand(1, 2, 20, 20, generator=torch.Generator().manual_seed(0)) < 0.7 if mask else None
    settings = (0.25, 0.0, 7, True, 0, False, 3)
    if kernel == "decode":
        return (q, k, v, k_roles, k_roles, blocks, *tables, hidden, *settings)
    dq, dkdv = layout.keys(q, 16, "dq")[1], layout.queries(q, 16, "dkdv")[1]
    return (q, k, v, k_roles, k_roles, blocks, dq, dkdv, *tables, hidden, None, None, *settings)


CHECKS = ("test_schema", "test_autograd_registration", "test_faketensor")


@pytest.mark.parametrize("mask", [False, True])
def test_opcheck_role_blocks(mask: bool) -> None:
    hidden = torch.rand(1, 20) < 0.5 if mask else None
    # memory after the end of a list is never written: the values of two runs may differ
    torch.library.opcheck(role_blocks, (ids(20), hidden, 3, torch.float32, 16, "forward"), test_utils=CHECKS)


@pytest.mark.parametrize("share, mask", [(True, False), (False, True)])
def test_opcheck_forward_with_gradients(share: bool, mask: bool) -> None:
    checks = CHECKS if mask else (*CHECKS, "test_aot_dispatch_dynamic")
    torch.library.opcheck(role_attn_fwd, (*arguments("forward", share, mask=mask), True), test_utils=checks)


def test_opcheck_forward_plain() -> None:
    x = tensors()
    nothing = (None,) * 11
    settings = (0.25, 0.0, 0, True, 0, False, 0, True)
    torch.library.opcheck(role_attn_fwd, (x["q"], x["k"], x["v"], *nothing, *settings), test_utils=CHECKS)


@pytest.mark.parametrize("share, bias", [(True, True), (False, False)])
def test_opcheck_backward(share: bool, bias: bool) -> None:
    call = list(arguments("forward", share, grad=False))
    call[8] = call[8] if bias else None
    q, k, v, q_roles, k_roles, _, dq, dkdv, *rest = call
    out = role_attn_fwd(*call, True)
    grad = torch.ones(()).expand(out[0].shape)
    settings = rest[6:]
    torch.library.opcheck(
        role_attn_bwd, (grad, q, k, v, *out, q_roles, k_roles, dq, dkdv, *rest[:6], *settings), test_utils=CHECKS
    )


@pytest.mark.parametrize("share, splits", [(False, 0), (True, 2)])
def test_opcheck_decode(share: bool, splits: int) -> None:
    call = (*arguments("decode", share, grad=False), splits)
    torch.library.opcheck(role_attn_decode, call, test_utils=(*CHECKS, "test_aot_dispatch_dynamic"))


def attend(x: dict[str, Tensor], q_roles: Tensor, k_roles: Tensor, **options: Any) -> Tensor:
    return role_attention(
        x["q"], x["k"], x["v"], q_roles, k_roles, bias=x["bias"], share=x["share"], impl="triton", **options
    )


def gradients(run: Any, x: dict[str, Tensor], roles: Tensor, **options: Any) -> list[Tensor]:
    out = run(x, roles, roles, **options)
    return [out.detach(), *torch.autograd.grad(out.square().sum(), list(x.values()))]


OPTIONS: list[dict[str, Any]] = [
    {"integrity": True, "dedicated": 1},
    {"attention_mask": torch.arange(20)[None] < 15, "window": 5},
    {"cu_seqlens": torch.tensor([0, 7, 20])},
]


@pytest.mark.parametrize("options", OPTIONS, ids=["integrity", "padding", "documents"])
def test_compile_makes_one_graph(options: dict[str, Any]) -> None:
    x, roles = tensors(), ids(20)
    compiled = torch.compile(attend, fullgraph=True, backend="aot_eager")
    expected = gradients(attend, x, roles, **options)
    for got, eager in zip(gradients(compiled, x, roles, **options), expected, strict=True):
        assert torch.equal(got, eager)


def graphs(backend: CompileCounterWithBackend) -> int:
    """Graphs compiled, empty ones apart."""
    return sum(len(graph.graph.nodes) > 0 for graph in backend.graphs)


@pytest.mark.parametrize("form", ["(B, S)", "(B, 1, 1, S)"])
def test_compile_decode_makes_one_graph(form: str) -> None:
    """Every step has the shapes of the one before: one graph."""
    backend = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(attend, fullgraph=True, backend=backend)
    x, keys = tensors(1, 40, grad=False), ids(40)
    for filled in (5, 6, 33):
        mask = torch.arange(40)[None] < filled
        call = {"attention_mask": mask if form == "(B, S)" else mask[:, None, None], "causal": False}
        with torch.no_grad():
            got = compiled(x, keys[:, filled - 1 : filled].clone(), keys, **call)
        torch.testing.assert_close(got, attend(x, keys[:, filled - 1 : filled], keys, **call), rtol=1e-5, atol=1e-6)
    assert graphs(backend) == 1


def test_compile_packed_documents_share_graph() -> None:
    backend = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(attend, fullgraph=True, backend=backend)
    x, roles = tensors(grad=False), ids(20)
    for end in (5, 6, 13):
        starts = torch.tensor([0, end, 20])
        assert torch.equal(compiled(x, roles, roles, cu_seqlens=starts), attend(x, roles, roles, cu_seqlens=starts))
    assert graphs(backend) == 1


@pytest.mark.parametrize("train", [False, True])
def test_compile_three_lengths_make_two_graphs(train: bool) -> None:
    backend = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(attend, fullgraph=True, backend=backend)
    for length in (18, 20, 35) if train else (34, 36, 40):  # more queries than the decode kernel takes
        x, roles = tensors(length, grad=train), ids(length)
        got, expected = (run(x, roles, roles) for run in (compiled, attend))
        assert torch.equal(got, expected)
        if train:
            leaves = list(x.values())
            for a, b in zip(*(torch.autograd.grad(o.sum(), leaves) for o in (got, expected)), strict=True):
                assert torch.equal(a, b)
    assert graphs(backend) <= 2


def test_compile_dynamic_makes_one_graph() -> None:
    backend = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(attend, fullgraph=True, backend=backend, dynamic=True)
    for length in (34, 36, 40):  # more queries than the decode kernel takes
        x, roles = tensors(length, grad=False), ids(length)
        assert torch.equal(compiled(x, roles, roles), attend(x, roles, roles))
    assert graphs(backend) == 1


def test_checkpointing_keeps_gradients() -> None:
    x, roles = tensors(), ids(20)

    def again(x: dict[str, Tensor], q_roles: Tensor, k_roles: Tensor) -> Tensor:
        return checkpoint(attend, x, q_roles, k_roles, use_reentrant=False)

    for got, expected in zip(gradients(again, x, roles), gradients(attend, x, roles), strict=True):
        assert torch.equal(got, expected)


def test_two_forwards_before_one_backward() -> None:
    x, roles = tensors(), ids(20)
    other = {name: x.detach().flip(-1).requires_grad_() for name, x in tensors().items()}
    first, second = attend(x, roles, roles), attend(other, roles.flip(1), roles.flip(1))
    together = torch.autograd.grad(first.square().sum() + second.sum(), list(x.values()))
    for got, expected in zip(together, gradients(attend, x, roles)[1:], strict=True):
        assert torch.equal(got, expected)


def test_autocast_keeps_tables() -> None:
    x, roles = tensors(grad=False), ids(20)
    half = {name: y.half() if name in "qkv" else y for name, y in x.items()}
    expected = attend(half, roles, roles)
    with torch.autocast("cpu", dtype=torch.float16):
        out = attend(x, roles, roles)
    assert out.dtype == torch.float16
    assert torch.equal(out, expected)


def test_autocast_bfloat16_interpreted_raises() -> None:
    x, roles = tensors(grad=False), ids(20)
    refused = pytest.raises(ValueError, match=r"^`impl`: .*multiplies bfloat16")
    with torch.autocast("cpu", dtype=torch.bfloat16), refused:
        attend(x, roles, roles)


@pytest.mark.parametrize("kind", [torch.float16, torch.float64], ids=str)
def test_tables_of_other_dtype(kind: torch.dtype) -> None:
    """Their gradients come in their own."""
    x, roles = tensors(), ids(20)
    tables = {name: x[name].detach().to(kind) for name in ("bias", "share")}
    mixed = {**x, **{name: y.clone().requires_grad_() for name, y in tables.items()}}
    same = {**x, **{name: y.float().requires_grad_() for name, y in tables.items()}}
    got, expected = gradients(attend, mixed, roles), gradients(attend, same, roles)
    assert [y.dtype for y in got[4:]] == [kind, kind]
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a.float(), b.float(), rtol=2e-3, atol=2e-3)


def test_kernels_equal_backend() -> None:
    x, roles = tensors(grad=False), ids(20)
    case = Case(x["q"], x["k"], x["v"], roles, roles, x["bias"], x["share"], {"privileged": (0, 2), "window": 9})
    alone = fused(case.q, case.k, case.v, roles, roles, bias=case.bias, share=case.share, privileged=(0, 2), window=9)
    assert torch.equal(case.run("triton"), alone)
    plain = replace(case, bias=None, share=None, options={"causal": False})
    assert torch.equal(plain.run("triton"), fused(case.q, case.k, case.v, causal=False))
