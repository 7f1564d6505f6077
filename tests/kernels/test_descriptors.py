"""Loops that read by tensor descriptors give the same bits as by pointers, where both read edges in whole blocks.

Legend: B batch, H query heads, G key/value heads, T queries, S keys, D and DV head dims, R roles.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from rolesafe_kernels import call, launch, ops
from rolesafe_kernels.launch import INTERPRETED, Launch, by_descriptors
from torch import Tensor

from tests.attention.problems import Case
from tests.kernels.space import QUIET, gradients, role_rows, unwritten_is_nan, upstream_of
from tools.launches import launched

pytestmark = QUIET

FULL: dict[str, Any] = {"bias": True, "share": True, "integrity": True, "dedicated": 1}


def make_case(
    shape: tuple[int, int, int, int, int] = (1, 2, 1, 50, 50),
    dims: tuple[int, int] = (16, 16),
    bias: bool = False,
    share: bool = False,
    mask: bool = False,
    sinks: bool = False,
    dtype: torch.dtype = torch.float16,
    **options: Any,
) -> Case:
    """`shape` is B, H, G, T, S, `dims` D and DV; roles in runs, a table with a hidden pair."""
    make = torch.Generator().manual_seed(5)
    batch, heads, groups, length, keys = shape

    def normal(*size: int) -> Tensor:
        return torch.randn(*size, generator=make)

    q = normal(batch, heads, length, dims[0])
    k, v = (normal(batch, groups, keys, dim) for dim in dims)
    roles = role_rows("runs", batch, max(length, keys), 4, make)
    table = normal(heads, 4, 4)
    table[0, 2, 3] = -torch.inf
    if mask:
        options["attention_mask"] = torch.rand(batch, 1, length, keys, generator=make) < 0.7
    if sinks:
        options["sinks"] = normal(heads)
    return Case(
        *(x.to(dtype) for x in (q, k, v)),
        roles[:, -length:],
        roles[:, -keys:],
        table if bias else None,
        torch.linspace(0.2, 0.9, heads) if share else None,
        options,
    )


def whole_edges(entry: Launch) -> Launch:
    """Blocks of 16, too short to be read in parts where they are edges, as pointers read longer ones."""
    kernels = ("forward", "dq", "dkdv")
    return entry._replace(**{name: getattr(entry, name)._replace(block=16) for name in kernels})


def both_ways(case: Case, monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Compares output and all gradients; which of forward, dq and dkdv used descriptors when asked to."""
    used, usual = [], call.loop_operands

    def seen(*arguments: Any) -> tuple[tuple[Any, ...], bool]:
        operands, by_descriptors = usual(*arguments)
        used.append(by_descriptors)
        return operands, by_descriptors

    upstream = upstream_of(case, case.q.dtype)
    with unwritten_is_nan():
        with launched(whole_edges):
            expected = gradients(case, "triton", upstream)
        monkeypatch.setattr(ops, "loop_operands", seen)
        with launched(lambda entry: by_descriptors(whole_edges(entry))):
            found = gradients(case, "triton", upstream)
    for name, x in expected.items():
        assert torch.isfinite(x).all(), name
        assert torch.equal(found[name], x), name
    assert len(used) == 3
    return used


CASES: dict[str, dict[str, Any]] = {
    "plain": {"causal": False},
    "roles, queries after keys": {"shape": (2, 1, 1, 20, 50), "bias": True},
    "channel": {"shape": (1, 4, 2, 48, 48), **FULL},
    "padded head dims": {"dims": (80, 96), "bias": True, "share": True},
    "window, cap, sinks": {"window": 21, "softcap": 2.0, "sinks": True, "bias": True},
    "mask": {"mask": True, "shape": (1, 2, 2, 40, 40), **FULL},
    "documents": {"cu_seqlens": torch.tensor([0, 16, 19, 50]), "bias": True, "share": True},
    "less than a block": {"shape": (2, 2, 1, 3, 5), "causal": False, **FULL},
}


@pytest.mark.parametrize("name", CASES)
def test_descriptors_give_bits_of_pointers(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert both_ways(make_case(**CASES[name]), monkeypatch) == [True] * 3


def test_descriptors_of_fused_projection() -> None:
    """Heads of one tensor are aligned, so descriptors can describe them."""
    made = torch.randn(2, 40, 4 * 16, generator=torch.Generator().manual_seed(1)).half().unflatten(-1, (4, 16))
    q, k, v = (x.transpose(1, 2) for x in made.split((2, 1, 1), 2))
    case = replace(make_case((2, 2, 1, 40, 40), bias=True), q=q, k=k, v=v)
    found = []
    for change in (whole_edges, lambda entry: by_descriptors(whole_edges(entry))):
        with launched(change):
            leaves = [x.detach().requires_grad_() for x in (q, k, v)]
            out = replace(case, **dict(zip("qkv", leaves, strict=True))).run("triton")
            found.append([out, *torch.autograd.grad(out, leaves, torch.ones_like(out))])
    assert all(call.describable(x) for x in (q, k, v))
    assert all(map(torch.equal, *found))


def test_descriptors_of_longer_blocks_agree() -> None:
    """By pointers an edge of 32 tokens is read in two parts, so its sums are added up in another order."""
    case = make_case((1, 2, 1, 50, 50), **FULL)
    upstream = upstream_of(case, case.q.dtype)
    expected = gradients(case, "triton", upstream)
    with launched(by_descriptors):
        found = gradients(case, "triton", upstream)
    for name, x in expected.items():
        torch.testing.assert_close(found[name].float(), x.float(), rtol=2e-3, atol=2e-3, msg=name)


@pytest.mark.parametrize("what", ["row of 40 bytes", "fp32"])
def test_indescribable_tensors_use_pointers(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    changes: dict[str, Any] = {"dims": (20, 20)} if what == "row of 40 bytes" else {"dtype": torch.float32}
    assert both_ways(make_case((1, 2, 1, 20, 20), bias=True, **changes), monkeypatch) == [False] * 3


def test_kernels_choose_descriptors_separately(monkeypatch: pytest.MonkeyPatch) -> None:
    """Values of 40 bytes and their gradient: neither V nor dO can be described."""
    assert both_ways(make_case((1, 1, 1, 20, 20), dims=(16, 20)), monkeypatch) == [False] * 3
    tile = INTERPRETED.forward._replace(descriptors=True)
    x, odd = torch.zeros(1, 1, 8, 16).half(), torch.zeros(1, 1, 8, 20).half()
    assert call.loop_operands(tile, x, x)[1]
    assert not call.loop_operands(tile, x, odd)[1]
    assert call.loop_operands(INTERPRETED.forward, x, x) == ((x, x), False)


def test_describable_checks_alignment() -> None:
    x = torch.zeros(2, 3, 24, 40, dtype=torch.float16)
    good = {"dense": x, "heads last": x.transpose(1, 2), "aligned slice": x[:, :, 3:, 8:24], "bf16": x.bfloat16()}
    bad = {
        "fp32": x.float(),
        "start": x[..., 1:17],
        "stride of tokens": torch.zeros(2, 3, 24, 36).half(),
        "transposed": x.transpose(2, 3),
        "expanded": x[:1].expand(2, 3, 24, 40),
        "empty": x[:, :, :0],
    }
    assert [name for name, tensor in good.items() if not call.describable(tensor)] == []
    assert [name for name, tensor in bad.items() if call.describable(tensor)] == []


@pytest.mark.parametrize("path", sorted(launch.TABLES.glob("sm_*.json")), ids=lambda path: path.stem)
def test_older_tables_use_no_descriptors(path: Any) -> None:
    """The copy engine is there from compute capability 9.0 on, and takes 16-bit entries alone; decode has none."""
    arch = int(path.stem.removeprefix("sm_"))
    for key, entry in launch.launch_table(arch).items():
        for kernel, tile in entry._asdict().items():
            assert not tile.descriptors or (arch >= 90 and key.startswith("16/") and kernel != "decode"), (key, kernel)
