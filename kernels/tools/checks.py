"""The checks on a GPU: calls against the specification, equal bits, CUDA graphs, torch.compile, ids that are no role.

B batch, H query heads, G key/value heads, T queries, S keys, D and DV head dims, R roles
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import partial
from typing import Any

import torch
from rolesafe_kernels import role_attention as kernel_attention
from rolesafe_kernels.launch import architecture, by_descriptors
from torch import Tensor

from rolesafe import role_attention
from tools.calls import CHANNEL, DECODE, FEATURES, Call, all_calls, call
from tools.gate import compare, expected, outcome, run_kernel
from tools.launches import launched

DEVICE = torch.device("cuda")
RUNS = 50
"""Runs on the same input that have to give the same bits."""

Check = Callable[[], dict[str, Any]]
"""Returns at least "detail": the reason why the check failed; empty where it holds."""


@contextmanager
def poisoned() -> Iterator[None]:
    """Within it, new tensors are full of NaN, or of the largest integer."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


def check_call(one: Call) -> dict[str, Any]:
    """Compare one call with the specification, on poisoned memory."""
    x = one.inputs(DEVICE)
    with poisoned():
        found = run_kernel(x, one.features, one.train)
    return {"call": asdict(one), **asdict(compare(found, *expected(x, one.features, one.train)))}


def check_determinism(one: Call) -> dict[str, Any]:
    """Compare the bits of several runs on the same input, gradients included."""
    x = one.inputs(DEVICE)
    first, differ = run_kernel(x, one.features, one.train), set()
    for _ in range(RUNS):
        again = run_kernel(x, one.features, one.train)
        differ |= {name for name, own in again.items() if not torch.equal(own, first[name])}
    return {"detail": f"differ between runs: {', '.join(sorted(differ))}" if differ else ""}


def check_graph(one: Call, public: bool) -> dict[str, Any]:
    """Compare a captured call, replayed on other tokens and other roles, with a call."""
    x = one.inputs(DEVICE)
    static = {name: getattr(x, name).clone() for name in ("q", "k", "v", "q_roles", "k_roles")}
    options = {**x.tables(one.features), "sinks": x.sinks if one.features.sinks else None}

    @torch.no_grad()
    def attend() -> Tensor:
        if public:
            return role_attention(*static.values(), **options, impl="triton")
        return kernel_attention(*static.values(), **options)

    side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        attend()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = attend()
    for turn in range(3):
        for name, tensor in static.items():
            tensor.copy_(torch.randint_like(tensor, 5) if name.endswith("roles") else torch.randn_like(tensor))
        graph.replay()
        if not torch.equal(out, attend()):
            return {"detail": f"replay {turn} differs from a call"}
    return {"detail": ""}


def difference(found: dict[str, Tensor], right: dict[str, Tensor]) -> str:
    """Return the first result that differs by more than 1% (norm); empty where none does."""
    for name, own in right.items():
        error = (found[name].double() - own.double()).norm().item()
        if not error <= 0.01 * own.double().norm().item() + 1e-6:
            return f"{name} differs by {error:.2g} (norm)"
    return ""


def check_compile(one: Call) -> dict[str, Any]:
    """Compare torch.compile without graph breaks, at two lengths, with eager mode, gradients included."""

    def layer(q: Tensor, k: Tensor, v: Tensor, q_roles: Tensor, k_roles: Tensor, tables: dict[str, Any]) -> Tensor:
        options = {**tables, "bias": tables["bias"] * 2}
        return role_attention(q * 1.5, k, v, q_roles, k_roles, **options, impl="triton") * 0.5

    compiled = torch.compile(layer, fullgraph=True)
    square = one.shape.square
    longer = replace(one.shape, queries=one.shape.queries + 76 * square, keys=one.shape.keys + 76)
    for shape in (one.shape, longer):
        x = replace(one, shape=shape).inputs(DEVICE)
        eager, own = (
            outcome(
                function(x.q, x.k, x.v, x.q_roles, x.k_roles, x.tables(one.features)),
                x.leaves(one.features),
                x.grad if one.train else None,
            )
            for function in (layer, compiled)
        )
        if wrong := difference(own, eager):
            return {"detail": f"{wrong} from eager mode at S={shape.keys}"}
    return {"detail": ""}


def with_descriptors(check: Check) -> dict[str, Any]:
    """Run `check` with launches that ask for tensor descriptors, on GPUs that have them."""
    if architecture(DEVICE) < 90:
        return {"detail": ""}
    with launched(by_descriptors):
        return check()


NO_ROLES = (-1, 16, 17, 31, 32, 255, 256, 2**31, -(2**31), 2**62)


def check_bad_roles(one: Call, ids: tuple[int, ...] = NO_ROLES) -> dict[str, Any]:
    """Compare a call with ids that are no role with one that masks those tokens."""
    x = one.inputs(DEVICE)
    bad = torch.tensor(ids, device=DEVICE)
    wild = x.k_roles.clone()
    wild[:, 3::7] = bad[torch.arange(wild[:, 3::7].shape[1], device=DEVICE) % len(bad)]
    known = (wild >= 0) & (wild < 5)
    found = []
    for roles, key_mask in ((wild, None), (torch.where(known, wild, 0), known)):
        own = roles[:, x.shape.keys - x.shape.queries :]
        out = kernel_attention(x.q, x.k, x.v, own, roles, **x.tables(one.features), key_mask=key_mask)
        if key_mask is not None:
            out = out.where(known[:, x.shape.keys - x.shape.queries :][:, None, :, None], 0.0)
        found.append(outcome(out, x.leaves(one.features), x.grad if one.train else None))
    wrong = difference(*found)
    return {"detail": f"{wrong} from the call that masks those tokens" if wrong else ""}


def all_checks() -> dict[str, Check]:
    """Return every check by name, the slow ones first."""
    channel, decode = call(**CHANNEL), call(keys=700, **DECODE, **CHANNEL)
    long, inference = call(length=2000, dim=128, **CHANNEL), call(train=False, **CHANNEL)
    found: dict[str, Check] = {
        "torch.compile forward and backward": partial(check_compile, channel),
        "torch.compile decode": partial(check_compile, decode),
        "same bits: T 2000 D 128 channel": partial(check_determinism, long),
        "same bits: everything": partial(check_determinism, call(**FEATURES["everything"])),
        "same bits: D 256": partial(check_determinism, call(dim=256, **CHANNEL)),
        "same bits: fp32": partial(check_determinism, call(dtype="float32", **CHANNEL)),
        "same bits: decode": partial(check_determinism, decode),
    }
    for name, public in (("", True), (" (kernel)", False)):
        found[f"graph forward{name}"] = partial(check_graph, inference, public)
        found[f"graph decode{name}"] = partial(check_graph, decode, public)
    read: dict[str, Check] = {
        name: partial(check_call, call(**FEATURES[name]))
        for name in ("plain", "channel", "full mask", "documents", "narrow values", "transposed", "everything")
    }
    read |= {f"D {dim} channel": partial(check_call, call(dim=dim, **CHANNEL)) for dim in (16, 80, 128, 256)}
    read["graph forward"] = partial(check_graph, inference, True)
    read["same bits: T 2000 D 128 channel"] = partial(check_determinism, long)
    found |= {f"descriptors: {name}": partial(with_descriptors, check) for name, check in read.items()}
    found["bad roles forward and backward"] = partial(check_bad_roles, channel)
    found["bad roles decode"] = partial(check_bad_roles, decode)
    # no role of a table of 5, but of a larger one
    found["roles beyond the table"] = partial(check_bad_roles, channel, (5, 6, 15))
    found["roles beyond the table, decode"] = partial(check_bad_roles, decode, (5, 6, 15))
    return found | {name: partial(check_call, one) for name, one in all_calls().items()}


def run_check(name: str) -> dict[str, Any]:
    """Run one check; return its name, "ok", seconds and details. For worker processes."""
    begin = time.perf_counter()
    found = all_checks()[name]()
    torch.cuda.synchronize()
    return {"name": name, "ok": not found["detail"], "seconds": round(time.perf_counter() - begin, 2), **found}
