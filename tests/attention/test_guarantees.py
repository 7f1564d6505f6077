"""Guarantees of role-aware attention, as properties of any case."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from rolesafe import role_attention
from rolesafe.attention.problem import is_privileged
from tests.attention.problems import FEW, MANY, ONE_WAY, Case, cases

BACKENDS = ("reference", "sdpa")


def eager(q: Tensor, k: Tensor, v: Tensor, causal: bool, scale: float) -> Tensor:
    """`eager_attention_forward` of transformers."""
    groups = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
    scores = torch.matmul(q, k.transpose(2, 3)) * scale
    if causal:
        hidden = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
        scores = scores + torch.zeros(hidden.shape, dtype=q.dtype).masked_fill(hidden, torch.finfo(q.dtype).min)
    return torch.matmul(F.softmax(scores, dim=-1, dtype=torch.float32).to(q.dtype), v)


@ONE_WAY
@FEW
@given(case=cases(target=True))
def test_mass_target_is_reached(case: Case) -> None:
    """t / (1 + t) at least, where a privileged key is in sight and the row sees anything."""
    case = replace(case, share=None, options={**case.options, "dedicated": 0, "integrity": False})
    target, mass = case.options["mass_target"], case.mass()
    privileged = is_privileged(case.k_roles, case.options["privileged"])[:, None, None, :]
    sees = (replace(case, options={**case.options, "dedicated": case.q.shape[1]}).mass() > 0).any(-1)
    found = (mass * privileged).sum(-1)
    assert (found[sees] >= target / (1 + target) - 1e-12).all()
    torch.testing.assert_close(mass[sees].sum(-1), torch.ones_like(mass[sees].sum(-1)))


# ------------------------------------------------------------------------------------------------- 1. at rest: the base


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@FEW
@given(case=cases(plain=True, square=True), zeros=st.booleans())
def test_zero_tables_give_bits_of_base(dtype: torch.dtype, case: Case, zeros: bool) -> None:
    case = case.to(dtype)
    heads, groups = case.q.shape[1], case.k.shape[1]
    causal, scale = case.options["causal"], case.q.shape[-1] ** -0.5
    bias, share = (torch.zeros(heads, 16, 16), torch.zeros(heads)) if zeros else (None, None)

    def run(impl: str) -> Tensor:
        return role_attention(
            case.q, case.k, case.v, case.q_roles, case.k_roles, bias=bias, share=share, causal=causal, impl=impl
        )

    base = F.scaled_dot_product_attention(case.q, case.k, case.v, is_causal=causal, enable_gqa=heads != groups)
    assert torch.equal(run("sdpa"), base)
    assert torch.equal(run("auto"), base)
    assert torch.equal(run("reference"), eager(case.q, case.k, case.v, causal, scale))


def test_zero_tables_give_gradients_of_base() -> None:
    q, k, v = torch.randn(3, 2, 4, 33, 16).unbind()
    roles = torch.randint(0, 5, (2, 33))
    gradients = []
    for call in (
        lambda *x: F.scaled_dot_product_attention(*x, is_causal=True),
        lambda *x: role_attention(*x, roles, roles, bias=torch.zeros(4, 5, 5), impl="sdpa"),
    ):
        leaves = [x.clone().requires_grad_() for x in (q, k, v)]
        call(*leaves).square().sum().backward()
        gradients.append([x.grad for x in leaves])
    for expected, got in zip(*gradients, strict=True):
        assert torch.equal(expected, got)


# ------------------------------------------------------------------------------------------------ 2. the reserved share


@ONE_WAY
@MANY
@given(cases())
def test_privileged_mass_is_at_least_the_share(case: Case) -> None:
    if case.share is None:
        case = replace(case, share=torch.linspace(0, 1, case.q.shape[1], dtype=torch.float64))
    assert case.share is not None
    mass = case.mass()
    high = is_privileged(case.k_roles, case.options["privileged"])[:, None, None, :]
    on_privileged = (mass * high).sum(-1)
    # A row has a share to give where it sees a privileged key: then the privileged channel alone has mass.
    alone = replace(case, options={**case.options, "dedicated": case.q.shape[1]}).mass().sum(-1)
    assert (on_privileged >= case.share[:, None] * (alone > 0.5) - 1e-12).all()


def crowd(count: int, size: float, dtype: torch.dtype = torch.float32) -> Case:
    """3 system tokens, then `count` user tokens with keys of length `size` along every query."""
    make = torch.Generator().manual_seed(count)
    length, dim = count + 3, 8
    q = torch.randn(1, 4, length, dim, generator=make).abs()
    k = torch.randn(1, 4, length, dim, generator=make)
    k[:, :, 3:] = size * (1 + torch.rand(1, 4, count, dim, generator=make))
    v = torch.zeros(1, 4, length, dim)
    v[:, :, :3] = 1.0  # the output is the mass on privileged keys
    roles = torch.full((1, length), 2)
    roles[:, :3] = 0
    share = torch.tensor([0.0, 0.1, 0.5, 1.0])
    bias = torch.randn(4, 5, 5, generator=make)
    return Case(q, k, v, roles, roles, bias, share).to(dtype)


@pytest.mark.parametrize("impl", BACKENDS)
@pytest.mark.parametrize("count, size", [(1, 1.0), (50, 1e4), (3000, 1.0), (1000, 1e15)])
def test_many_or_large_keys_do_not_dilute_share(impl: str, count: int, size: float) -> None:
    case = crowd(count, size)
    if impl == "reference":  # the last rows suffice: no dense 3003 x 3003 computation
        case = replace(case, q=case.q[:, :, -4:], q_roles=case.q_roles[:, -4:])
    on_privileged = case.run(impl)[..., -1, :].mean(-1).squeeze(0)
    assert torch.isfinite(on_privileged).all()
    assert case.share is not None
    assert (on_privileged >= case.share - 1e-6).all()
    assert on_privileged[3] == pytest.approx(1.0)
    if size > 1:
        assert on_privileged[0] < 1e-6  # without a share the crowd wins


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_share_in_half_precision_is_exact(dtype: torch.dtype) -> None:
    case = crowd(500, 100.0, dtype)
    assert case.share is not None
    on_privileged = case.run("sdpa")[0, :, -1].float().mean(-1)
    assert (on_privileged >= case.share * (1 - torch.finfo(dtype).eps)).all()


# -------------------------------------------------------------------------------------------- 3. the privileged channel


@pytest.mark.parametrize("impl", BACKENDS)
@FEW
@given(case=cases(), factor=st.sampled_from([0.0, -1.0, 1e3, 1e30]))
def test_unprivileged_edits_keep_privileged_rows(impl: str, case: Case, factor: float) -> None:
    """Integrity: privileged rows, and all rows of dedicated heads, are the same bit for bit."""
    case = replace(case, options={**case.options, "integrity": True})
    privileged = case.options["privileged"]
    keys = is_privileged(case.k_roles, privileged)[:, None, :, None]
    queries = is_privileged(case.q_roles, privileged)[:, None, :, None]
    edited = replace(
        case,
        q=torch.where(queries, case.q, case.q.flip(-1) * factor),
        k=torch.where(keys, case.k, case.k.flip(-1) * factor),
        v=torch.where(keys, case.v, case.v.flip(-1) * factor),
    )
    before, after = case.run(impl), edited.run(impl)
    rows = queries.expand_as(before)
    assert torch.equal(before[rows], after[rows])
    edited = replace(edited, q=case.q)
    dedicated = case.options["dedicated"]
    assert torch.equal(before[:, :dedicated], edited.run(impl)[:, :dedicated])


@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
@FEW
@given(case=cases())
def test_nan_and_infinity_keep_privileged_rows(broken: float, case: Case) -> None:
    """In `sdpa`, which never reads the unprivileged keys there. (`reference` multiplies them by 0.)"""
    case = replace(case, options={**case.options, "integrity": True})
    share = torch.ones(case.q.shape[1], dtype=torch.float64)
    privileged = case.options["privileged"]
    keys = is_privileged(case.k_roles, privileged)[:, None, :, None]
    edited = replace(case, k=case.k.masked_fill(~keys, broken), v=case.v.masked_fill(~keys, broken))
    before, after = case.run("sdpa"), edited.run("sdpa")
    rows = is_privileged(case.q_roles, privileged)[:, None, :, None].expand_as(before)
    assert torch.equal(before[rows], after[rows])
    dedicated = case.options["dedicated"]
    assert torch.equal(before[:, :dedicated], after[:, :dedicated])
    # share = 1 looks at no unprivileged key either, in the rows that see a privileged one
    before, after = case.run("sdpa", share=share), edited.run("sdpa", share=share)
    alone = case.run("sdpa", dedicated=case.q.shape[1], share=None) != 0
    assert torch.equal(before[alone], after[alone])


@FEW
@given(case=cases(plain=True), more=st.integers(1, 20))
def test_dedicated_heads_ignore_later_text(case: Case, more: int) -> None:
    """The privileged channel is independent of the text that follows."""
    low = max(set(range(16)) - set(case.options["privileged"]))
    heads = case.q.shape[1]
    case = replace(case, bias=None, share=None, options={**case.options, "causal": False, "dedicated": heads})

    def lengthen(x: Tensor, fill: float) -> Tensor:
        return torch.cat([x, torch.full_like(x[:, :, :1], fill).expand(-1, -1, more, -1)], dim=2)

    roles = torch.cat([case.k_roles, torch.full_like(case.k_roles[:, :1], low).expand(-1, more)], dim=1)
    longer = replace(case, k=lengthen(case.k, 1e6), v=lengthen(case.v, 1e6), k_roles=roles)
    assert torch.equal(case.run("sdpa"), longer.run("sdpa"))


# ------------------------------------------------------------------------------------------------------ 4. roles matter


@pytest.mark.parametrize("impl", BACKENDS)
@FEW
@given(cases(plain=True, square=True))
def test_other_roles_change_output(impl: str, case: Case) -> None:
    heads, keys = case.q.shape[1], case.k.shape[2]
    case = replace(case, share=None, options={"causal": False, "privileged": ()})
    ones = torch.ones_like(case.k_roles)
    mixed = ones.clone()
    mixed[:, 0] = 0
    table = torch.zeros(heads, 2, 2, dtype=torch.float64)
    at_rest = [replace(case, bias=table, q_roles=r, k_roles=r).run(impl) for r in (ones, mixed)]
    assert torch.equal(*at_rest)
    table[:, :, 0] = 5.0
    if keys == 1:
        return  # one key has all the mass whatever its role
    trained = [replace(case, bias=table, q_roles=r, k_roles=r).run(impl) for r in (ones, mixed)]
    assert ((trained[0] - trained[1]).abs().amax((1, 2, 3)) > 0).all()
    torch.testing.assert_close(trained[0], at_rest[0])  # one role everywhere: a constant added to every score
