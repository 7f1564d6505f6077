"""Attention in pieces of one role on a CPU: where it is used, and calls that the random problems do not make.

Legend: B batch, H query heads, G key/value heads, T queries, S keys, D head dim, R roles.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from rolesafe import role_attention
from rolesafe.attention import sdpa, stretches

B, H, G, S, D, R = 2, 4, 2, 60, 16, 4
ROLES = torch.tensor([[0, 2, 3, 2, 3, 1], [1, 0, 2, 3, 3, 2]]).repeat_interleave(10, dim=1)


@pytest.fixture(autouse=True)
def way() -> None:
    """Replace the three ways of the folder by `calls`."""


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Plans of the calls that were computed in pieces."""
    seen: list[Any] = []

    def counted(problem: Any, bias: Any, plan: Any) -> Tensor:
        seen.append(plan)
        return original(problem, bias, plan)

    original = sdpa.pieces_attention
    monkeypatch.setattr(sdpa, "pieces_attention", counted)
    monkeypatch.setattr(sdpa, "FEW", 0)
    monkeypatch.setattr(stretches, "LEAST_AREA", 0)
    return seen


def tensors(batch: int = B, queries: int = S, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    """Return q, k, v with gradients, in the strides of transformers: (B, T, H, D) transposed."""
    make = torch.Generator().manual_seed(0)
    shapes = {"q": (queries, H), "k": (S, G), "v": (S, G)}
    return {
        name: torch.randn(batch, length, heads, D, generator=make, dtype=dtype).transpose(1, 2).requires_grad_()
        for name, (length, heads) in shapes.items()
    }


def table(learned: bool, hidden: bool = False) -> Tensor:
    bias = torch.randn(H, R, R, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    if hidden:
        bias[:, 2, 3] = bias[:, 3, 0] = -torch.inf
    return bias.requires_grad_(learned)


def compare(leaves: dict[str, Tensor], q_roles: Tensor, k_roles: Tensor, **options: Any) -> None:
    """Assert that outputs and all gradients of `sdpa` are those of `reference`, with and without grad mode."""
    tables = {name: x for name in ("bias", "share") if (x := options.get(name)) is not None and x.requires_grad}
    outs = {}
    for impl in ("reference", "sdpa"):
        out = role_attention(**leaves, q_roles=q_roles, k_roles=k_roles, impl=impl, **options)  # type: ignore[arg-type]
        upstream = torch.randn(out.shape, generator=torch.Generator().manual_seed(2), dtype=out.dtype)
        outs[impl] = [out.detach(), *torch.autograd.grad(out, [*leaves.values(), *tables.values()], upstream)]
    torch.testing.assert_close(outs["sdpa"], outs["reference"], rtol=1e-10, atol=1e-11)
    with torch.no_grad():
        out = role_attention(**leaves, q_roles=q_roles, k_roles=k_roles, impl="sdpa", **options)  # type: ignore[arg-type]
    torch.testing.assert_close(out, outs["reference"][0], rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("learned", [True, False])
@pytest.mark.parametrize("hidden", [False, True])
@pytest.mark.parametrize("parts", ["bias", "share", "dedicated", "inside a group", "integrity", "all"])
def test_pieces_equal_reference(calls: list[Any], parts: str, hidden: bool, learned: bool) -> None:
    share = torch.tensor([0.3, 1.0, 0.0, 0.9], dtype=torch.float64)
    options: dict[str, Any] = {
        "bias": {},
        "share": {"share": share.requires_grad_()},
        "dedicated": {"dedicated": 2, "share": share},
        "inside a group": {"dedicated": 1, "share": share},
        "integrity": {"integrity": True},
        "all": {"integrity": True, "share": share.requires_grad_(), "dedicated": 2},
    }[parts]
    compare(tensors(), ROLES, ROLES, bias=table(learned, hidden), **options)
    assert len(calls) == 2


@pytest.mark.parametrize("learned", [True, False])
def test_prefill_that_continues_a_cache(calls: list[Any], learned: bool) -> None:
    queries = 24
    share = torch.full((H,), 0.4, dtype=torch.float64)
    compare(tensors(queries=queries), ROLES[:, -queries:], ROLES, bias=table(learned), share=share)
    assert len(calls) == 2


@pytest.mark.parametrize("causal", [True, False])
def test_padding_on_either_side(calls: list[Any], causal: bool) -> None:
    padding = torch.ones(B, S, dtype=torch.int64)
    padding[0, :13] = padding[1, -21:] = 0
    compare(tensors(), ROLES, ROLES, bias=table(True), attention_mask=padding, causal=causal, dedicated=2)
    assert len(calls) == 2


@pytest.mark.parametrize("learned", [True, False])
def test_packed_documents(calls: list[Any], learned: bool) -> None:
    starts = torch.tensor([0, 17, 17, 45, S])
    compare(tensors(batch=1), ROLES[:1], ROLES[:1], bias=table(learned), cu_seqlens=starts, integrity=True)
    assert len(calls) == 2


def test_calls_of_training_and_of_inference(calls: list[Any]) -> None:
    """Training: one call for each run of keys. Inference: two for each run of queries, earlier keys and their own."""
    roles = torch.arange(S).div(5, rounding_mode="floor").remainder(2).expand(B, S) + 2
    compare(tensors(), roles, roles, bias=table(True))
    (training,), inference = calls[0][:1], calls[1][0]
    assert len(training) == 1
    assert [block.calls for block in training[0].blocks if block.role == 2] == [
        (stretches.Call(start, S, True),) for start in range(0, S, 10)
    ]
    assert [len(stretch.blocks) for stretch in inference] == [1] + [2] * (S // 5 - 1)
    assert [block.role for block in inference[-1].blocks] == [None, 3]


@pytest.mark.parametrize("grad", [True, False])
def test_roles_of_queries_that_differ_from_those_of_keys(calls: list[Any], grad: bool) -> None:
    """A run of keys that queries of several roles start in, one of which sees none of it."""
    q_roles = torch.tensor([[0, 3, 2, 3, 1, 2]]).repeat_interleave(10, dim=1).roll(3, dims=1).expand(B, S)
    compare(tensors(), q_roles, ROLES, bias=table(grad, hidden=True), share=torch.full((H,), 0.4, dtype=torch.float64))
    compare(tensors(queries=24), q_roles[:, -24:], ROLES, bias=table(grad, hidden=True), integrity=True)
    assert len(calls) == 4


def test_privileged_tokens_between_others(calls: list[Any]) -> None:
    """Integrity with developer tokens in the middle, and a share where early queries see no privileged key."""
    roles = torch.tensor([[2, 3, 1, 2, 0, 3], [3, 0, 2, 0, 1, 2]]).repeat_interleave(10, dim=1)
    share = torch.tensor([0.2, 1.0, 0.0, 0.7], dtype=torch.float64)
    for learned in (True, False):
        for options in ({"integrity": True}, {"dedicated": 2}, {}):
            compare(
                tensors(), roles, roles, bias=table(learned), share=share.clone().requires_grad_(learned), **options
            )
    compare(tensors(), roles, roles, share=share, integrity=True)
    assert len(calls) == 14


def test_whole_row_privileged_or_without_privileged_keys(calls: list[Any]) -> None:
    share = torch.full((H,), 0.4, dtype=torch.float64, requires_grad=True)
    for roles in (torch.zeros(B, S, dtype=torch.int64), torch.full((B, S), 2)):
        for dedicated in (0, 2, H):
            compare(tensors(), roles, roles, bias=table(True), share=share, dedicated=dedicated)
    assert len(calls) == 12


def test_scores_far_below_zero(calls: list[Any]) -> None:
    """Keys of a call are filled up with zeros, whose score is far above the others here."""
    x = {name: (y.detach() * (40 if name == "q" else 1)).requires_grad_() for name, y in tensors().items()}
    x["k"] = (x["q"].detach()[:, ::2] * -0.05).requires_grad_()
    compare(x, ROLES, ROLES, bias=table(True), share=torch.full((H,), 0.4, dtype=torch.float64))
    assert calls


@pytest.mark.filterwarnings("ignore:There is a performance drop")  # of vmap, by PyTorch
def test_calls_that_are_folded(calls: list[Any]) -> None:
    x = tensors(dtype=torch.float32)
    roles = {"q_roles": ROLES, "k_roles": ROLES, "impl": "sdpa"}
    bias, some_heads = table(False).float(), table(False).float()
    some_heads[1, 2, 2] = -torch.inf
    wide = {**x, "v": torch.randn(B, G, S, D + 8)}
    mask = torch.ones(1, 1, S, S, dtype=torch.bool)
    folded: list[dict[str, Any]] = [
        {**x, "bias": some_heads},
        {**x, "bias": bias, "window": 8},
        {**x, "bias": bias, "attention_mask": mask},
        {**x, "bias": bias, "mass_target": 0.3},
        {**x, "bias": bias, "dropout": 0.5},
        {**wide, "bias": bias},
        {**x, "bias": torch.zeros(H, R, R), "share": torch.zeros(H)},
    ]
    for options in folded:
        role_attention(**options, **roles)
    torch.func.vmap(lambda q: role_attention(q, x["k"].detach(), x["v"].detach(), bias=bias, **roles))(
        torch.randn(3, *x["q"].shape)
    )
    torch.compile(role_attention, backend="eager")(**x, bias=bias, **roles)
    assert not calls
    role_attention(**x, bias=bias, **roles)  # type: ignore[arg-type]
    assert calls


def test_many_short_stretches_are_folded(calls: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stretches, "LEAST_AREA", 64 * 64)
    roles = torch.arange(1024)[None] % 3
    q, k, v = torch.randn(3, 1, 2, 1024, 16).unbind()
    role_attention(q, k, v, roles, roles, bias=torch.randn(2, 4, 4), impl="sdpa")
    assert not calls
    one = (roles * 0 + 2).index_fill(1, torch.arange(100), 0)
    role_attention(q, k, v, one, one, bias=torch.randn(2, 4, 4), impl="sdpa")
    assert calls


def test_training_with_a_bias_alone_is_folded_up_to_larger_blocks(
    calls: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stretches, "LEAST_AREA", 64 * 256)
    roles = torch.arange(1024)[None] // 128 % 3
    q, k, v = torch.randn(3, 1, 2, 1024, 16).unbind()
    bias = torch.randn(2, 3, 3, requires_grad=True)
    options = {"q_roles": roles, "k_roles": roles, "bias": bias, "privileged": (0,), "impl": "sdpa"}
    role_attention(q, k, v, **options)  # type: ignore[arg-type]
    assert not calls
    role_attention(q, k, v, **options, share=torch.full((2,), 0.5))  # type: ignore[arg-type]
    assert len(calls) == 1
    ends = torch.tensor([0, 1024])
    role_attention(q, k, v, **options, cu_seqlens=ends)  # type: ignore[arg-type]
    assert len(calls) == 2
    with torch.no_grad():
        role_attention(q, k, v, **options)  # type: ignore[arg-type]
    assert len(calls) == 3


def test_second_derivative_is_refused(calls: list[Any]) -> None:
    x = tensors()
    out = role_attention(**x, q_roles=ROLES, k_roles=ROLES, bias=table(True), impl="sdpa")  # type: ignore[arg-type]
    first = torch.autograd.grad(out.square().sum(), x["q"], create_graph=True)[0]
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()


def test_expanded_and_strided_tokens(calls: list[Any]) -> None:
    """The gradient of a sum has stride 0, and tokens may be transposed in their last dimension."""
    x = {name: y.detach().mT.contiguous().mT.requires_grad_() for name, y in tensors().items()}
    bias = table(True)
    found = []
    for impl in ("reference", "sdpa"):
        out = role_attention(**x, q_roles=ROLES, k_roles=ROLES, bias=bias, impl=impl)  # type: ignore[arg-type]
        found.append(torch.autograd.grad(out.sum(), [*x.values(), bias]))
    torch.testing.assert_close(found[1], found[0], rtol=1e-10, atol=1e-11)
    assert calls
