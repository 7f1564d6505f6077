"""`sdpa` agrees with `reference`: outputs and gradients, in every precision."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given

from tests.attention.problems import FEW, MANY, Case, cases


@MANY
@given(cases(target=True))
def test_sdpa_fp64_equals_reference(case: Case) -> None:
    upstream = torch.randn(
        *case.q.shape[:3], case.v.shape[3], generator=torch.Generator().manual_seed(0), dtype=torch.float64
    )
    reference, sdpa = (case.gradients(impl, upstream) for impl in ("reference", "sdpa"))
    for name, expected in reference.items():
        assert torch.isfinite(expected).all(), name
        torch.testing.assert_close(sdpa[name], expected, rtol=1e-10, atol=1e-10, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@FEW
@given(cases(target=True))
def test_sdpa_low_precision_error_is_eager(dtype: torch.dtype, case: Case) -> None:
    """The rule of flash-attention's tests: at most twice the error of the eager computation in the same precision."""
    low = case.to(dtype)
    tables = {name: None if x is None else x.float() for name, x in (("bias", case.bias), ("share", case.share))}
    low = replace(low, **tables)
    exact = replace(low.to(torch.float64), **{name: None if x is None else x.double() for name, x in tables.items()})
    upstream = torch.randn(*case.q.shape[:3], case.v.shape[3], generator=torch.Generator().manual_seed(0)).to(dtype)
    truth = exact.gradients("reference", upstream)
    eager, sdpa = low.gradients("reference", upstream), low.gradients("sdpa", upstream)
    largest = [float(x.abs().max()) for x in (low.v, upstream, low.q, low.k)]
    for name, expected in truth.items():
        assert torch.isfinite(sdpa[name]).all(), name
        allowed = 2 * (eager[name].double() - expected).abs().max()
        # With one query and two keys the eager result may be exact by luck: the rounding of the largest term.
        size = largest[0] if name == "out" else max(1.0, largest[0]) * largest[1] * max(1.0, *largest[2:])
        allowed += 2 * torch.finfo(dtype).eps * size
        error = (sdpa[name].double() - expected).abs().max()
        assert error <= allowed, f"{name}: off by {error:.3g}, allowed {allowed:.3g}"


@pytest.mark.parametrize("impl", ["reference", "sdpa"])
@FEW
@given(cases(target=True))
def test_rows_without_visible_keys_are_0(impl: str, case: Case) -> None:
    blind = (case.mass() == 0).all(-1)
    out = case.run(impl)
    assert torch.isfinite(out).all()
    assert (out[blind] == 0).all()


@pytest.mark.parametrize("impl", ["reference", "sdpa"])
@pytest.mark.parametrize("causal", [True, False])
def test_masks_of_zeros(impl: str, causal: bool) -> None:
    q, k, v = torch.randn(3, 2, 4, 5, 8).unbind()
    roles = torch.arange(5).expand(2, 5)
    for mask in (torch.zeros(2, 5), torch.zeros(1, 1, 5, 5, dtype=torch.bool)):
        case = Case(q, k, v, roles, roles, torch.randn(4, 5, 5), torch.rand(4), {"causal": causal})
        out = case.run(impl, attention_mask=mask)
        assert torch.equal(out, torch.zeros_like(out))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_hidden_pairs_with_large_scores_stay_hidden(dtype: torch.dtype) -> None:
    """-inf is a finite number inside the fold: it has to outdo any score that a model makes."""
    q, k = torch.full((1, 1, 4, 64), 8.0, dtype=dtype), torch.full((1, 1, 4, 64), -8.0, dtype=dtype)
    k[:, :, 1:] *= -100.0  # scores of -512 for the key in sight, of 51,200 for the others
    v = torch.arange(4.0).view(1, 1, 4, 1).to(dtype).expand(1, 1, 4, 64)
    roles = torch.tensor([[0, 1, 1, 1]])
    bias = torch.zeros(1, 2, 2)
    bias[..., 1] = -torch.inf
    case = Case(q, k, v, roles, roles, bias, None, {"privileged": (), "causal": False})
    assert torch.equal(case.run("sdpa"), torch.zeros_like(q))
    padding = torch.tensor([[1, 0, 0, 0]])
    assert torch.equal(case.run("sdpa", bias=None, attention_mask=padding), torch.zeros_like(q))
    assert torch.equal(case.run("sdpa", attention_mask=padding), torch.zeros_like(q))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_keeps_table_precision(dtype: torch.dtype) -> None:
    """Two entries that are one number in half precision give two different outputs."""
    q, k = torch.zeros(2, 1, 1, 2, 8, dtype=dtype)
    v = torch.tensor([0.0, 1.0]).view(1, 1, 2, 1).to(dtype).expand(1, 1, 2, 8)
    roles = torch.tensor([[0, 1]])
    bias = torch.zeros(1, 2, 2)
    bias[0, :, 0], bias[0, :, 1] = 30.0, 30.04
    out = Case(q, k, v, roles, roles, bias, None, {"causal": False}).run("sdpa")
    assert out.float().mean() == pytest.approx(torch.sigmoid(torch.tensor(0.04)).item(), abs=4e-3)
    assert out.float().mean() > 0.505
