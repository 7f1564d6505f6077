"""The checks of `gpu.py`: cases against the specification in fp64, equal bits, CUDA graphs, torch.compile, bad roles.

B batch, H query heads, G key/value heads, T queries, S keys, D and DV head dims, R roles
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from gpu_cases import CHANNEL, DECODE, FEATURES, Case, all_cases
from rolesafe_kernels import role_attention as kernel_attention
from rolesafe_kernels.launch import architecture, by_descriptors
from rolesafe_kernels.timing import chat_roles, launched
from rolesafe_kernels.tune import DTYPES
from torch import Tensor

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # rolesafe need not be installed; it is imported late, inside functions

INF = float("inf")
DEVICE = torch.device("cuda")
FLOOR = 4e-6
"""What any error may be: the rounding of a dot product of 64 numbers in fp32, where the exact result is 0."""
RUNS = 50
"""Runs on the same input that have to give the same bits."""


Tensors = dict[str, Any]


def tensors_of(case: Case) -> Tensors:
    """Arguments of the call: q, k, v and grad in the case's dtype, tables in fp32."""
    make = torch.Generator(DEVICE).manual_seed(0)
    dtype, keys, device = DTYPES[case.dtype], case.keys or case.length, DEVICE

    def normal(*size: int) -> Tensor:
        return torch.randn(*size, generator=make, device=device)

    def tokens(heads: int, length: int, dim: int) -> Tensor:
        if case.transposed:
            return normal(case.batch, length, heads, dim).to(dtype).transpose(1, 2)
        return normal(case.batch, heads, length, dim).to(dtype)

    def chance(*size: int) -> Tensor:
        return torch.rand(*size, generator=make, device=device)

    dim_v = case.dim_v or case.dim
    roles = chat_roles(case.batch, max(keys, case.length), device)
    # a developer's text, and a stretch in which roles change at every token
    roles = torch.where(chance(*roles.shape) < 0.01, 1, roles)
    middle = roles[:, roles.shape[1] // 2 :][:, :40]
    middle.copy_(torch.arange(middle.shape[1], device=device) % 5)
    x: Tensors = {
        "q": tokens(case.heads, case.length, case.dim),
        "k": tokens(case.groups, keys, case.dim),
        "v": tokens(case.groups, keys, dim_v),
        "grad": normal(case.batch, case.heads, case.length, dim_v).to(dtype),
        "q_roles": roles[:, roles.shape[1] - case.length :],
        "k_roles": roles[:, roles.shape[1] - keys :],
        "bias": None, "share": None, "sinks": None, "attention_mask": None, "lengths": None, "cu_seqlens": None,
    }  # fmt: skip
    if case.bias:
        x["bias"] = normal(case.heads, 5, 5)
    if case.hidden:
        x["bias"] = x["bias"].masked_fill(chance(case.heads, 5, 5) < 0.3, -INF)
    if case.share:
        x["share"] = torch.linspace(0.0, 1.0, case.heads, device=device)
    if case.sinks:
        x["sinks"] = normal(case.heads)
    if case.mask == "padding":
        x["attention_mask"] = torch.arange(keys, device=device) >= torch.tensor([[keys // 3], [0]], device=device)
    elif case.mask == "lengths":
        x["lengths"] = torch.tensor([keys // 2, keys], device=device)
    elif case.mask in ("full", "heads"):
        wide = case.heads if case.mask == "heads" else 1
        x["attention_mask"] = chance(case.batch, wide, case.length, keys) < 0.6
    elif case.mask == "empty":
        x["attention_mask"] = torch.zeros(case.batch, keys, dtype=torch.bool, device=device)
    if case.documents:
        x["cu_seqlens"] = torch.tensor([0, keys // 7, keys // 7 + 1, keys // 7 + 1, keys // 2, keys], device=device)
    return x


LEAVES = ("q", "k", "v", "bias", "share", "sinks")


def options_of(case: Case, x: Tensors) -> dict[str, Any]:
    """Keyword arguments that do not depend on the heads."""
    return {
        "privileged": case.privileged, "integrity": case.integrity, "causal": case.causal, "window": case.window,
        "softcap": case.softcap, "lengths": x["lengths"], "cu_seqlens": x["cu_seqlens"],
    }  # fmt: skip


def collect(out: Tensor, leaves: dict[str, Tensor], train: bool) -> dict[str, Tensor]:
    """Output and, where there was a backward, the gradients of the leaves."""
    if not train:
        return {"out": out.detach()}
    return {"out": out.detach()} | {
        f"d{n}": torch.zeros_like(t) if t.grad is None else t.grad for n, t in leaves.items()
    }


def by_kernel(case: Case, x: Tensors) -> dict[str, Tensor]:
    """What the fused kernel makes of the case."""
    from rolesafe import role_attention

    leaves = {n: x[n].detach().requires_grad_(case.train) for n in LEAVES if x[n] is not None}
    q, k, v, *_ = leaves.values()
    tables: dict[str, Any] = {n: leaves.get(n) for n in LEAVES[3:]}
    options = {**options_of(case, x), "dedicated": case.dedicated, "attention_mask": x["attention_mask"]}
    out = role_attention(q, k, v, x["q_roles"], x["k_roles"], **tables, **options, impl="triton")
    if case.train:
        out.backward(x["grad"])
    return collect(out, leaves, case.train)


def by_reference(case: Case, x: Tensors, dtype: torch.dtype) -> dict[str, Tensor]:
    """The specification in `dtype`, one group of heads after the other."""
    from rolesafe import role_attention

    wide = torch.promote_types(dtype, torch.float32)
    leaves = {n: x[n].detach().to(dtype if n in "qkv" else wide) for n in LEAVES if x[n] is not None}
    leaves = {n: t.requires_grad_(case.train) for n, t in leaves.items()}
    size, parts = case.heads // case.groups, []
    for group in range(case.groups):
        own = slice(group * size, (group + 1) * size)
        mask = x["attention_mask"]
        if mask is not None and mask.ndim == 4 and mask.shape[1] > 1:
            mask = mask[:, own]
        out = role_attention(
            leaves["q"][:, own], leaves["k"][:, group : group + 1], leaves["v"][:, group : group + 1],
            x["q_roles"], x["k_roles"], **{n: leaves[n][own] for n in LEAVES[3:] if n in leaves}, attention_mask=mask,
            dedicated=min(max(case.dedicated - group * size, 0), size), impl="reference", **options_of(case, x),
        )  # fmt: skip
        if case.train and out.requires_grad:
            out.backward(x["grad"][:, own].to(dtype))
        parts.append(out.detach())
    return collect(torch.cat(parts, 1), leaves, case.train)


@contextmanager
def poisoned() -> Iterator[None]:
    """Within it, new tensors are full of NaN, or of the largest integer."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


def compare(found: dict[str, Tensor], exact: dict[str, Tensor], low: dict[str, Tensor]) -> dict[str, Any]:
    """Errors of each result as the largest and as the root mean square, each at most twice that of eager attention.

    The slack is a quarter of a rounding step of the measure; in fp32, where a product is three of tf32, 1e-5 of it.
    """
    wrong, errors = [], {}
    slack = 1e-5 if low["out"].dtype == torch.float32 else torch.finfo(low["out"].dtype).eps / 4
    for name, right in exact.items():
        if not right.numel():
            continue
        measures: dict[str, Callable[[Tensor], float]] = {
            "max": lambda t: t.abs().max().item(),
            "rms": lambda t: t.square().mean().sqrt().item(),
        }
        for kind, measure in measures.items():
            error = measure(found[name].double() - right)
            eager = measure(low[name].double() - right)
            allowed = 2 * eager + slack * measure(right) + FLOOR
            errors[f"{name} {kind}"] = [error, eager, allowed]
            if not error <= allowed:  # NaN is wrong too
                wrong.append(f"{name} {kind} {error:.2g}, allowed {allowed:.2g}")
    empty = (exact["out"] == 0).all(-1)
    if bool((found["out"][empty] != 0).any()):
        wrong.append("rows that see nothing are not 0")
    return {"errors": errors, "detail": "; ".join(wrong)}


def check_case(case: Case) -> dict[str, Any]:
    """One case against the specification, on poisoned memory."""
    x = tensors_of(case)
    with poisoned():
        found = by_kernel(case, x)
    return {
        "case": asdict(case),
        **compare(found, by_reference(case, x, torch.float64), by_reference(case, x, x["q"].dtype)),
    }


def check_determinism(case: Case) -> dict[str, Any]:
    """The same input gives the same bits, gradients included."""
    x = tensors_of(case)
    first, differ = by_kernel(case, x), set()
    for _ in range(RUNS):
        differ |= {name for name, own in by_kernel(case, x).items() if not torch.equal(own, first[name])}
    return {"detail": f"differ between runs: {', '.join(sorted(differ))}" if differ else ""}


def check_graph(case: Case, public: bool) -> dict[str, Any]:
    """A captured call, replayed on other tokens and other roles, gives the bits of a call."""
    from rolesafe import role_attention

    x = tensors_of(case)
    static = {name: x[name].clone() for name in ("q", "k", "v", "q_roles", "k_roles")}
    options = {name: x[name] for name in ("bias", "share", "sinks")}
    options |= {"dedicated": case.dedicated, "integrity": case.integrity}

    @torch.no_grad()
    def call() -> Tensor:
        if public:
            return role_attention(*static.values(), **options, impl="triton")
        return kernel_attention(*static.values(), **options)

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = call()
    for turn in range(3):
        for name, tensor in static.items():
            tensor.copy_(torch.randint_like(tensor, 5) if name.endswith("roles") else torch.randn_like(tensor))
        graph.replay()
        if not torch.equal(out, call()):
            return {"detail": f"replay {turn} differs from a call"}
    return {"detail": ""}


def check_compile(case: Case) -> dict[str, Any]:
    """torch.compile without graph breaks, at two lengths, gives what eager mode gives, gradients included."""
    from rolesafe import role_attention

    options: dict[str, Any] = {"dedicated": case.dedicated, "integrity": case.integrity, "impl": "triton"}

    def layer(q: Tensor, k: Tensor, v: Tensor, q_roles: Tensor, k_roles: Tensor, bias: Tensor, share: Tensor) -> Tensor:
        return role_attention(q * 1.5, k, v, q_roles, k_roles, bias=bias * 2, share=share, **options) * 0.5

    compiled = torch.compile(layer, fullgraph=True)
    for one in (case, replace(case, length=case.length + 76, keys=case.keys and case.keys + 76)):
        x, results = tensors_of(one), []
        for function in (layer, compiled):
            names = ("q", "k", "v", "bias", "share")
            leaves = {name: x[name].detach().clone().requires_grad_(case.train) for name in names}
            out = function(
                leaves["q"], leaves["k"], leaves["v"], x["q_roles"], x["k_roles"], leaves["bias"], leaves["share"]
            )
            if case.train:
                out.backward(x["grad"])
            results.append(collect(out, leaves, case.train))
        for name, right in results[0].items():
            error = (results[1][name].double() - right.double()).norm().item()
            if not error <= 0.01 * right.double().norm().item() + 1e-6:
                return {"detail": f"{name} differs from eager mode by {error:.2g} (norm) at T={one.length}"}
    return {"detail": ""}


def with_descriptors(check: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """`check` with launches that ask for tensor descriptors, where the GPU has them."""
    if architecture(DEVICE) < 90:
        return {"detail": ""}
    with launched(by_descriptors):
        return check()


NO_ROLES = (-1, 16, 17, 31, 32, 255, 256, 2**31, -(2**31), 2**62)


def check_bad_roles(case: Case, ids: tuple[int, ...] = NO_ROLES) -> dict[str, Any]:
    """Ids that are no role see nothing and are seen by nobody, and nothing else changes."""
    x = tensors_of(case)
    bad = torch.tensor(ids, device=DEVICE)
    wild = x["k_roles"].clone()
    wild[:, 3::7] = bad[torch.arange(wild[:, 3::7].shape[1], device=DEVICE) % len(bad)]
    known = (wild >= 0) & (wild < 5)
    calm = torch.where(known, wild, 0)
    rows = known[:, wild.shape[1] - case.length :]
    results = []
    for roles, key_mask in ((wild, None), (calm, known)):
        leaves = {name: x[name].detach().clone().requires_grad_(case.train) for name in LEAVES[:5]}
        own = roles[:, wild.shape[1] - case.length :]
        options: dict[str, Any] = {"bias": leaves["bias"], "share": leaves["share"], "key_mask": key_mask}
        options |= {"dedicated": case.dedicated, "integrity": case.integrity}
        out = kernel_attention(leaves["q"], leaves["k"], leaves["v"], own, roles, **options)
        out = out.where(rows[:, None, :, None], 0.0) if key_mask is not None else out
        if case.train:
            out.backward(x["grad"])
        results.append(collect(out, leaves, case.train))
    for name, right in results[1].items():
        error = (results[0][name].double() - right.double()).norm().item()
        if not error <= 0.01 * right.double().norm().item() + 1e-6:
            return {"detail": f"{name} differs by {error:.2g} (norm) from the call that masks those tokens"}
    return {"detail": ""}


def all_jobs() -> dict[str, Callable[[], dict[str, Any]]]:
    """Every check by its name, the slow ones first."""
    channel, decode = Case(**CHANNEL), Case(keys=700, **DECODE, **CHANNEL)
    long = Case(length=2000, dim=128, **CHANNEL)
    jobs: dict[str, Callable[[], dict[str, Any]]] = {
        "torch.compile forward and backward": partial(check_compile, channel),
        "torch.compile decode": partial(check_compile, decode),
        "same bits: T 2000 D 128 channel": partial(check_determinism, long),
        "same bits: everything": partial(check_determinism, Case(**FEATURES["everything"])),
        "same bits: D 256": partial(check_determinism, Case(dim=256, **CHANNEL)),
        "same bits: fp32": partial(check_determinism, Case(dtype="fp32", **CHANNEL)),
        "same bits: decode": partial(check_determinism, decode),
    }
    for name, public in (("", True), (" (kernel)", False)):
        jobs[f"graph forward{name}"] = partial(check_graph, replace(channel, train=False), public)
        jobs[f"graph decode{name}"] = partial(check_graph, decode, public)
    for name in ("plain", "channel", "full mask", "documents", "narrow values", "transposed", "everything"):
        jobs[f"descriptors: {name}"] = partial(with_descriptors, partial(check_case, Case(**FEATURES[name])))
    for dim in (16, 80, 128, 256):
        jobs[f"descriptors: D {dim} channel"] = partial(with_descriptors, partial(check_case, Case(dim=dim, **CHANNEL)))
    jobs["descriptors: graph forward"] = partial(
        with_descriptors, partial(check_graph, replace(channel, train=False), True)
    )
    jobs["descriptors: same bits: T 2000 D 128 channel"] = partial(with_descriptors, partial(check_determinism, long))
    jobs["bad roles forward and backward"] = partial(check_bad_roles, channel)
    jobs["bad roles decode"] = partial(check_bad_roles, decode)
    # no role of a table of 5, but of a larger one
    jobs["roles beyond the table"] = partial(check_bad_roles, channel, (5, 6, 15))
    jobs["roles beyond the table, decode"] = partial(check_bad_roles, decode, (5, 6, 15))
    return jobs | {name: partial(check_case, case) for name, case in all_cases().items()}


def run_job(name: str) -> dict[str, Any]:
    """One check: its name, whether it holds, seconds, and what was found. For the processes of a `Crew`."""
    begin = time.perf_counter()
    found = all_jobs()[name]()
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    return {"name": name, "ok": not found["detail"], "seconds": round(time.perf_counter() - begin, 2), **found}
