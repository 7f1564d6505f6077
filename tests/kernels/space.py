"""Random problems that are larger than a block, for the fused kernels under Triton's interpreter.

Legend: B batch, H query heads, G key/value heads, T queries, S keys, D and DV head dims, R roles.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from torch import Tensor

from rolesafe.attention.problem import is_privileged
from tests.attention.problems import INF, Case

EFFORT = int(os.environ.get("KERNEL_TEST_EFFORT", "1"))
"""Examples are multiplied by it, and drawn at random above 1. The interpreter takes about half a second for each."""

QUIET = pytest.mark.filterwarnings("ignore::RuntimeWarning:triton.runtime.interpreter")
"""NumPy, in which the interpreter computes, warns where an infinity is subtracted from itself."""


def examples(count: int) -> settings:
    """Return the settings of a property test with `count` examples."""
    return settings(max_examples=count * EFFORT, deadline=None, derandomize=EFFORT == 1)


@contextmanager
def unwritten_is_nan() -> Iterator[None]:
    """Fill memory that is allocated without being written with NaN, or with the largest integer."""
    before = torch.are_deterministic_algorithms_enabled(), torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0])
        torch.utils.deterministic.fill_uninitialized_memory = before[1]


def role_rows(kind: str, batch: int, length: int, roles: int, make: torch.Generator) -> Tensor:
    """Draw (B, length) role ids: "random", in "runs" as in a conversation, "sorted", or "one" a row."""
    if kind == "random":
        return torch.randint(0, roles, (batch, length), generator=make)
    if kind == "one":
        return torch.randint(0, roles, (batch, 1), generator=make).repeat(1, length)
    if kind == "sorted":
        return torch.randint(0, roles, (batch, length), generator=make).sort(dim=1).values
    rows = torch.empty(batch, length, dtype=torch.int64)
    for row in rows:
        at = 0
        while at < length:
            run = int(torch.randint(1, 45, (), generator=make))
            row[at : at + run] = int(torch.randint(0, roles, (), generator=make))
            at += run
    return rows


SHAPES = ((1, 1, 1), (1, 1, 2), (1, 2, 1), (1, 1, 3), (2, 1, 1), (1, 2, 2))
LENGTHS = (1, 5, 16, 17, 31, 33, 48, 50, 64, 80)
DIMS = (1, 8, 16, 24, 40, 64, 80)


@st.composite
def large_cases(draw: Any, *, square: bool = False, lengths: tuple[int, ...] = LENGTHS, extras: bool = True) -> Case:
    """Draw a case in fp64 with several blocks of keys and queries.

    Args:
        square: T == S.
        lengths: To draw T and S from.
        extras: With softcap and sinks.
    """
    batch, groups, per_group = draw(st.sampled_from(SHAPES))
    heads = groups * per_group
    keys = draw(st.sampled_from(lengths))
    length = keys if square else draw(st.sampled_from([keys, draw(st.sampled_from(lengths))]))
    if batch * heads > 1:
        length, keys = min(length, 48), min(keys, 64 if not square else 48)
    dim, value_dim = draw(st.sampled_from(DIMS)), draw(st.sampled_from(DIMS))
    roles = draw(st.sampled_from([1, 2, 3, 5, 16]))
    make = torch.Generator().manual_seed(draw(st.integers(0, 2**20)))

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=make, dtype=torch.float64)

    def chance(probability: float, *shape: int) -> Tensor:
        return torch.rand(*shape, generator=make) < probability

    kinds = st.sampled_from(["runs", "runs", "random", "sorted", "one"])
    k_roles = role_rows(draw(kinds), batch, keys, roles, make)
    q_roles = role_rows(draw(kinds), batch, length, roles, make)
    same = min(length, keys)
    if draw(st.sampled_from([True, True, False])):
        q_roles[:, length - same :] = k_roles[:, keys - same :]
    bias, share = None, None
    if draw(st.sampled_from([True, True, False])):
        bias = normal(heads, roles, roles) * draw(st.sampled_from([0.0, 1.0, 10.0]))
        bias = bias.masked_fill(chance(draw(st.sampled_from([0.0, 0.0, 0.3, 1.0])), heads, roles, roles), -INF)
    if draw(st.booleans()):
        share = torch.rand(heads, generator=make, dtype=torch.float64)
        share[0] = draw(st.sampled_from([0.0, 0.3, 1.0]))
    causal = draw(st.booleans())
    options: dict[str, Any] = {
        "privileged": tuple(draw(st.sets(st.integers(0, roles - 1), max_size=min(3, roles)))),
        "causal": causal,
        "dedicated": draw(st.sampled_from([0, 0, 1, heads // 2, heads])),
        "integrity": draw(st.booleans()),
        "scale": draw(st.sampled_from([None, 0.3])),
    }
    if causal and draw(st.booleans()):
        options["window"] = draw(st.integers(1, keys + 1))
    mask = draw(st.sampled_from(["none", "none", "padding", "left", "bool"]))
    if mask == "padding":
        options["attention_mask"] = chance(draw(st.sampled_from([0.9, 0.2])), batch, keys).to(
            draw(st.sampled_from([torch.int64, torch.bool, torch.float32]))
        )
    elif mask == "left":
        options["attention_mask"] = torch.arange(keys) >= torch.randint(0, keys + 1, (batch, 1), generator=make)
    elif mask == "bool":
        wide = (draw(st.sampled_from([1, batch])), draw(st.sampled_from([1, heads])))
        options["attention_mask"] = chance(0.6, *wide, length, keys) & chance(0.8, *wide, length, 1)
    if extras:
        options["softcap"] = draw(st.sampled_from([None, None, 2.0]))
        options["sinks"] = normal(heads) if draw(st.booleans()) else None
    return Case(
        normal(batch, heads, length, dim),
        normal(batch, groups, keys, dim),
        normal(batch, groups, keys, value_dim),
        q_roles,
        k_roles,
        bias,
        share,
        options,
    )


def cast(case: Case, dtype: torch.dtype, tables: torch.dtype = torch.float32) -> Case:
    """Cast tokens to `dtype`, bias, share and sinks to `tables`."""
    bias, share, sinks = (
        None if x is None else x.to(tables) for x in (case.bias, case.share, case.options.get("sinks"))
    )
    return replace(case.to(dtype), bias=bias, share=share, options={**case.options, "sinks": sinks})


def gradients(case: Case, impl: str, upstream: Tensor) -> dict[str, Tensor]:
    """Return output and the gradients of q, k, v, bias, share, sinks, without absent ones."""
    tensors = {name: getattr(case, name) for name in ("q", "k", "v", "bias", "share")}
    tensors["sinks"] = case.options.get("sinks")
    leaves = {name: x.detach().clone().requires_grad_() for name, x in tensors.items() if x is not None}
    options = dict(case.options)
    if "sinks" in leaves:
        options["sinks"] = leaves["sinks"]
    own = {name: x for name, x in leaves.items() if name != "sinks"}
    out = replace(case, **own, options=options).run(impl)
    if out.requires_grad:
        out.backward(upstream.to(out.dtype))
    found = {name: torch.zeros_like(x) if x.grad is None else x.grad for name, x in leaves.items()}
    return {"out": out.detach(), **found}


def upstream_of(case: Case, dtype: torch.dtype) -> Tensor:
    """Draw a gradient of the output, the same at every call."""
    make = torch.Generator().manual_seed(0)
    return torch.randn(*case.q.shape[:3], case.v.shape[3], generator=make).to(dtype)


def assert_as_good_as_eager(case: Case, dtype: torch.dtype) -> None:
    """Assert that errors of output and gradients in `dtype` are at most twice those of eager attention."""
    low = cast(case, dtype)
    exact = cast(low, torch.float64, torch.float64)
    upstream = upstream_of(case, dtype)
    truth, eager = (gradients(x, "reference", upstream) for x in (exact, low))
    with unwritten_is_nan():
        fused = gradients(low, "triton", upstream)
        inference = low.run("triton")
    assert fused["out"].dtype == inference.dtype == dtype
    blind = (exact.mass() == 0).all(-1)
    assert (fused["out"][blind] == 0).all()
    assert (inference[blind] == 0).all()
    largest = [float(x.abs().max()) for x in (low.v, upstream, low.q, low.k)]
    for name, expected in truth.items():
        allowed = 2 * (eager[name].double() - expected).abs().max()
        size = largest[0] if name == "out" else max(1.0, largest[0]) * largest[1] * max(1.0, *largest[2:])
        allowed += 2 * torch.finfo(dtype).eps * size
        for got in (fused[name], inference) if name == "out" else (fused[name],):
            assert got.shape == expected.shape, name
            assert torch.isfinite(got).all(), name
            error = (got.double() - expected).abs().max()
            assert error <= allowed, f"{name}: off by {error:.3g}, allowed {allowed:.3g}"


def privileged_keys(case: Case) -> Tensor:
    """Return (B, 1, S, 1) bool."""
    return is_privileged(case.k_roles, case.options["privileged"])[:, None, :, None]


def privileged_queries(case: Case) -> Tensor:
    """Return (B, 1, T, 1) bool."""
    return is_privileged(case.q_roles, case.options["privileged"])[:, None, :, None]
