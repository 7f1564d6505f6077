"""Guarantees of role-aware attention, by the fused kernels and across blocks."""

from __future__ import annotations

import functools
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tests.attention.problems import Case
from tests.kernels.space import QUIET, cast, examples, large_cases, privileged_keys, privileged_queries, role_rows

pytestmark = QUIET

LENGTHS = (1, 17, 40)


@examples(3)
@given(large_cases(lengths=LENGTHS), st.sampled_from([torch.float32, torch.float16]))
def test_privileged_mass_is_at_least_the_share(case: Case, dtype: torch.dtype) -> None:
    """Values 1 at privileged keys and 0 elsewhere make the output that mass."""
    share = torch.linspace(0.1, 1, case.q.shape[1], dtype=torch.float64) if case.share is None else case.share
    case = replace(case, share=share, v=privileged_keys(case).expand_as(case.v).to(case.v.dtype))
    low = cast(case, dtype)
    assert low.share is not None
    alone = cast(replace(case, options={**case.options, "dedicated": case.q.shape[1]}), torch.float64).mass().sum(-1)
    expected = low.share[:, None] * (alone > 0.5)
    with torch.no_grad():
        mass = low.run("triton")
    assert (mass.amin(-1).float() >= expected - 2 * torch.finfo(dtype).eps).all()
    assert (mass <= 1 + 2 * torch.finfo(dtype).eps).all()


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("size", [1.0, 1e4, 1e15])
def test_many_or_large_keys_do_not_dilute_share(size: float, train: bool) -> None:
    """3 system tokens, then 90 user tokens with keys along every query."""
    make = torch.Generator().manual_seed(0)
    q = torch.randn(1, 4, 2, 16, generator=make).abs().requires_grad_(train)
    k, v = torch.randn(1, 4, 93, 16, generator=make), torch.zeros(1, 4, 93, 16)
    k[:, :, 3:] = size * (1 + torch.rand(1, 4, 90, 16, generator=make))
    v[:, :, :3] = 1.0
    roles = torch.full((1, 93), 2)
    roles[:, :3] = 0
    share = torch.tensor([0.0, 0.1, 0.5, 1.0])
    mass = Case(q, k, v, roles[:, -2:], roles, None, share).run("triton").detach()[0, :, -1].mean(-1)
    assert (mass >= share - 1e-6).all()
    assert mass[3] == pytest.approx(1.0)
    if size > 1:
        assert mass[0] < 1e-6


def edited(case: Case, factor: float) -> Case:
    """Other unprivileged tokens in the same places."""
    keys, queries = privileged_keys(case), privileged_queries(case)
    return replace(
        case,
        q=torch.where(queries, case.q, case.q.flip(-1) * factor),
        k=torch.where(keys, case.k, case.k.flip(-1) * factor),
        v=torch.where(keys, case.v, case.v.flip(-1) * factor),
    )


@pytest.mark.parametrize("train", [False, True])
@examples(2)
@given(large_cases(lengths=LENGTHS), st.sampled_from([0.0, -1.0, 1e3, 1e15]))
def test_unprivileged_edits_keep_privileged_rows(train: bool, case: Case, factor: float) -> None:
    """Integrity, and dedicated heads: the same bit for bit, by the forward and by the decode kernel."""
    case = cast(replace(case, options={**case.options, "integrity": True}), torch.float32)
    other = edited(case, factor)
    rows = privileged_queries(case)

    def run(case: Case) -> Tensor:
        return replace(case, q=case.q.clone().requires_grad_(train)).run("triton").detach()

    before = run(case)
    after = run(other)
    where = rows.expand_as(before)
    assert torch.equal(before[where], after[where])
    dedicated = case.options["dedicated"]
    if dedicated:
        after = run(replace(other, q=case.q))
        assert torch.equal(before[:, :dedicated], after[:, :dedicated])


@functools.cache
def finite(roles: str) -> tuple[Case, Tensor]:
    """Return a case and its output."""
    make = torch.Generator().manual_seed(0)
    q, k, v = torch.randn(3, 1, 2, 48, 16, generator=make).unbind()
    row = torch.full((1, 48), 2)
    row[:, : 32 if roles == "blocks of one role" else 20] = 0
    options = {"integrity": True, "dedicated": 1, "privileged": (0, 1)}
    case = Case(q, k, v, row, row, None, torch.tensor([1.0, 0.5]), options)
    with torch.no_grad():
        return case, case.run("triton")


@pytest.mark.parametrize("broken", [float("nan"), float("inf"), 3e38])
@pytest.mark.parametrize("roles", ["blocks of one role", "mixed blocks"])
@pytest.mark.parametrize("what", ["k", "v"])
def test_nan_and_infinity_keep_privileged_rows(broken: float, roles: str, what: str) -> None:
    """Unread keys have no effect; a value that is not finite may give NaN, never a wrong number."""
    case, before = finite(roles)
    other = replace(case, **{what: getattr(case, what).masked_fill(~privileged_keys(case), broken)})
    with torch.no_grad():
        after = other.run("triton")
    where = privileged_queries(case).expand_as(before).clone()
    where[:, :1] = True  # the dedicated head
    same = before[where] == after[where]
    if what == "v" and roles == "mixed blocks" and not math.isfinite(broken):
        assert (same | after[where].isnan()).all()  # 0 * NaN, where such a key shares a block with one that is seen
    else:
        assert same.all()


def test_dedicated_heads_unprivileged_gradient_is_0() -> None:
    make = torch.Generator().manual_seed(0)
    q, k, v = (x.clone().requires_grad_() for x in torch.randn(3, 1, 2, 40, 16, generator=make).unbind())
    row = role_rows("runs", 1, 40, 3, make)
    row[:, :7] = 0
    Case(q, k, v, row, row, None, torch.rand(2), {"dedicated": 2}).run("triton").sum().backward()
    low = (row > 1)[0]
    for x in (k, v):
        assert (x.grad[:, :, low] == 0).all()
        assert (x.grad[:, :, ~low] != 0).any()


def test_dedicated_heads_ignore_later_text() -> None:
    """The privileged channel is independent of the length of the text, across blocks too."""
    make = torch.Generator().manual_seed(0)
    q, k, v = torch.randn(3, 1, 2, 80, 16, generator=make).unbind()
    row = torch.full((1, 80), 3)
    row[:, :21] = 1
    outputs = []
    for length in (21, 32, 45, 80):
        keys: dict[str, Any] = {"k": k[:, :, :length], "v": v[:, :, :length], "k_roles": row[:, :length]}
        case = Case(q[:, :, :40], q_roles=row[:, :40], **keys, options={"causal": False, "dedicated": 2})
        with torch.enable_grad():
            outputs.append(replace(case, q=case.q.clone().requires_grad_()).run("triton").detach())
    for longer in outputs[1:]:
        assert torch.equal(outputs[0], longer)


@pytest.mark.parametrize("kind", ["mixed blocks", "blocks of one role"])
def test_other_roles_change_output(kind: str) -> None:
    make = torch.Generator().manual_seed(2)
    q, k, v = torch.randn(3, 1, 2, 40, 16, generator=make).unbind()
    ones = torch.ones(1, 40, dtype=torch.int64)
    mixed = role_rows("random", 1, 40, 3, make) if kind == "mixed blocks" else ones.clone()
    mixed[:, :16] = 0
    table = torch.zeros(2, 3, 3)
    rest = [Case(q, k, v, r, r, table).run("triton") for r in (ones, mixed)]
    torch.testing.assert_close(*rest, rtol=1e-5, atol=1e-6)
    table[:, :, 0] = 5.0
    trained = [Case(q, k, v, r, r, table).run("triton") for r in (ones, mixed)]
    assert ((trained[0] - trained[1]).abs().amax((1, 2, 3)) > 0.1).all()
    torch.testing.assert_close(trained[0], rest[0], rtol=1e-5, atol=1e-6)


def test_privileged_roles_change_output() -> None:
    make = torch.Generator().manual_seed(2)
    q, k, v = torch.randn(3, 1, 2, 40, 16, generator=make).unbind()
    row = torch.full((1, 40), 2)
    row[:, :8] = 0
    share = torch.tensor([0.5, 0.5])
    other = row.clone()
    other[:, 3] = 2
    out = [Case(q, k, v, r, r, None, share).run("triton") for r in (row, other)]
    assert torch.equal(out[0][:, :, :3], out[1][:, :, :3])  # causal: rows before it
    assert (out[0][:, :, 3:] != out[1][:, :, 3:]).any(-1).all()
