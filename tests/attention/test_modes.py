"""Uses of the operation: decoding, shared key heads, torch.compile, checkpointing, autocast; its memory."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import checkpoint

from rolesafe.attention import resolve_impl
from tests.attention.problems import FEW, Case, cases


class Largest(TorchDispatchMode):
    """Largest number of elements of any tensor that an operation made."""

    numel = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for x in tree_leaves(out):
            if isinstance(x, Tensor) and x.untyped_storage().nbytes() > 0:
                self.numel = max(self.numel, x.untyped_storage().nbytes() // x.element_size())
        return out


def chat(length: int = 512, heads: int = 8, dim: int = 32, groups: int | None = None) -> Case:
    make = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, n, length, dim, generator=make) for n in (heads, groups or heads, groups or heads))
    roles = torch.full((1, length), 2)
    roles[:, : length // 16] = 0
    roles[:, length // 2 :] = 3
    return Case(q, k, v, roles, roles, torch.randn(heads, 5, 5, generator=make), torch.rand(heads, generator=make))


# more queries than `few` takes
@pytest.mark.parametrize("way", ["stretches", "folded"], indirect=True)
@pytest.mark.parametrize("parts", ["bias", "share", "padding", "dedicated", "all"])
@pytest.mark.parametrize("groups", [8, 2])
def test_sdpa_makes_no_score_matrix(parts: str, groups: int) -> None:
    length = 512
    case = chat(length, groups=groups)
    padding = torch.ones(1, length, dtype=torch.int64)
    padding[:, -30:] = 0
    changes: dict[str, Any] = {
        "bias": {"share": None},
        "share": {"bias": None},
        "padding": {"bias": None, "share": None, "attention_mask": padding},
        "dedicated": {"dedicated": 4, "integrity": True, "share": None},
        "all": {"attention_mask": padding, "integrity": True},
    }[parts]
    leaves = {name: getattr(case, name).requires_grad_() for name in ("q", "k", "v", "bias", "share")}
    with Largest() as seen:
        replace(case, **leaves).run("sdpa", **changes).sum().backward()
    assert 0 < seen.numel < length * length, f"{seen.numel} elements; a (T, S) tensor has {length * length}"
    with Largest() as dense:
        case.run("reference", **changes)
    assert dense.numel >= 8 * length * length  # the probe sees the score matrix of `reference`


@pytest.mark.parametrize("changes", [{"window": 64}, {"attention_mask": torch.ones(1, 1, 512, 512).bool()}], ids=str)
def test_masks_are_shared_by_all_heads(changes: dict[str, Any]) -> None:
    case = chat(512)
    with Largest() as seen:
        case.run("sdpa", **changes)
    assert seen.numel <= 2 * 512 * 512


def test_dedicated_heads_read_privileged_keys_only() -> None:
    """All heads dedicated: 32 of 512 keys are privileged, and no other key is in a product."""
    case = replace(chat(512), share=None, bias=None, options={"dedicated": 8})
    lengths = []

    class Keys(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if "scaled_dot_product" in str(func):
                lengths.append(args[1].shape[2])
            return func(*args, **(kwargs or {}))

    with Keys():
        case.run("sdpa")
    assert set(lengths) == {32}


@pytest.mark.parametrize("impl", ["reference", "sdpa"])
@FEW
@given(cases(square=True))
def test_decoding_one_token_equals_last_row(impl: str, case: Case) -> None:
    options = {**case.options, "causal": True}
    mask = options.get("attention_mask")
    last = {**options, "attention_mask": mask[:, :, -1:] if mask is not None and mask.ndim == 4 else mask}
    full = replace(case, options=options).run(impl)
    step = replace(case, q=case.q[:, :, -1:], q_roles=case.q_roles[:, -1:], options=last).run(impl)
    torch.testing.assert_close(step, full[:, :, -1:], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("dedicated", [0, 2, 3, 4, 8])
def test_shared_key_heads_equal_repeated(dedicated: int) -> None:
    case = replace(chat(64, groups=2), options={"dedicated": dedicated, "integrity": True})
    repeated = replace(case, k=case.k.repeat_interleave(4, 1), v=case.v.repeat_interleave(4, 1))
    torch.testing.assert_close(case.run("sdpa"), repeated.run("sdpa"), rtol=0, atol=1e-6)


OPTIONS: list[dict[str, Any]] = [
    {},
    {"bias": None, "share": None},
    {"dedicated": 4, "integrity": True},
    {"attention_mask": torch.ones(1, 32, dtype=torch.int64)},
    {"attention_mask": torch.ones(32, 32).tril().bool()[None, None], "integrity": True},
    {"window": 7},
]


# compiled code is folded; stretches, which would break the graph, are those to be left out
@pytest.mark.parametrize("changes", OPTIONS, ids=lambda x: "+".join(x) or "plain")
@pytest.mark.parametrize("impl, way", [("reference", "few"), ("sdpa", "stretches")], indirect=["way"])
def test_compile_makes_one_graph(impl: str, changes: dict[str, Any]) -> None:
    case = chat(32)
    torch._dynamo.reset()
    run = torch.compile(case.run, backend="eager", fullgraph=True)
    torch.testing.assert_close(run(impl, **changes), case.run(impl, **changes), rtol=1e-4, atol=1e-5)


def test_checkpointing_keeps_gradients() -> None:
    case = chat(64)
    results = []
    for wrap in (lambda f, *x: f(*x), lambda f, *x: checkpoint(f, *x, use_reentrant=False)):
        leaves = [getattr(case, n).clone().requires_grad_() for n in ("q", "k", "v", "bias", "share")]
        out = wrap(lambda q, k, v, b, s: replace(case, q=q, k=k, v=v, bias=b, share=s).run("sdpa"), *leaves)
        out.square().sum().backward()
        results.append([x.grad for x in leaves])
    for plain, again in zip(*results, strict=True):
        assert plain is not None
        assert torch.equal(plain, again)


@pytest.mark.parametrize("impl", ["reference", "sdpa"])
def test_autocast_keeps_tables(impl: str) -> None:
    case = chat(64)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = case.run(impl)
    assert out.dtype == torch.bfloat16
    assert torch.equal(out, case.to(torch.bfloat16).run(impl))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert case.to(torch.float64).run(impl).dtype == torch.float64


@pytest.mark.parametrize("share", [0.0, 1.0])
@pytest.mark.parametrize("impl", ["reference", "sdpa"])
def test_share_of_0_and_1_has_gradient(impl: str, share: float) -> None:
    leaf = torch.full((8,), share, requires_grad=True)
    out = chat(64).run(impl, share=leaf)
    out.square().sum().backward()
    assert leaf.grad is not None
    assert (leaf.grad != 0).all()


def test_dropout_equals_pytorch() -> None:
    case = chat(64)
    torch.manual_seed(0)
    dropped = case.run("sdpa", dropout=0.5)
    assert not torch.allclose(dropped, case.run("sdpa"))
    assert torch.isfinite(dropped).all()


def test_resolve_impl_returns_choice_of_auto() -> None:
    assert resolve_impl("auto") == "sdpa"
    assert resolve_impl("auto", softcap=True) == resolve_impl("auto", sinks=True) == "reference"
    assert resolve_impl("reference") == "reference"
