"""Comparison with the specification: nothing is timed, tuned or released that disagrees with it.

The exact result is ``rolesafe.role_attention(impl="reference")`` in fp64. A result passes where its largest and its
root-mean-square error, of the output and of every gradient, are at most twice those of the same formula in the
precision of the call, plus a quarter of a rounding step of the result (in fp32, where a product is three of tf32, 1e-5
of it) and `FLOOR`.

B batch, H query heads, G key/value heads, T queries, S keys, D and DV head dims, R roles
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from rolesafe import role_attention
from tools.inputs import Features, Inputs

FLOOR = 4e-6
"""Error that is always allowed: the rounding of a dot product of 64 numbers in fp32, where the exact result is 0."""

Results = Mapping[str, Tensor]
"""Output under "out", gradients under "dq", "dk", ..."""


@dataclass(frozen=True)
class Comparison:
    """Errors of a result.

    Attributes:
        errors: By "<tensor> max" and "<tensor> rms": error of the result, error of eager attention, allowed error.
        detail: Reason why the result is wrong; empty where it passes.
    """

    errors: dict[str, tuple[float, float, float]] = field(default_factory=dict)
    detail: str = ""


def outcome(out: Tensor, leaves: Mapping[str, Tensor], grad: Tensor | None) -> dict[str, Tensor]:
    """Return `out` and, for an upstream gradient `grad`, the gradients of `leaves`; 0 for those without effect."""
    found = {"out": out.detach()}
    if grad is not None:
        given = torch.autograd.grad(out, list(leaves.values()), grad.to(out.dtype), materialize_grads=True)
        found |= {f"d{name}": gradient for name, gradient in zip(leaves, given, strict=True)}
    return found


def run_kernel(x: Inputs, features: Features, gradients: bool) -> dict[str, Tensor]:
    """Return output and gradients of the fused kernel."""
    x = x.requires_grad_(gradients)
    out = role_attention(x.q, x.k, x.v, x.q_roles, x.k_roles, **x.arguments(features), impl="triton")
    return outcome(out, x.leaves(features), x.grad if gradients else None)


def run_reference(x: Inputs, features: Features, gradients: bool, dtype: torch.dtype) -> dict[str, Tensor]:
    """Return output and gradients of the specification in `dtype`, one group of heads after the other to save memory.

    Tables are in fp32 at least.
    """
    wide = torch.promote_types(dtype, torch.float32)
    leaves = {
        name: leaf.detach().to(dtype if name in "qkv" else wide).requires_grad_(gradients)
        for name, leaf in x.leaves(features).items()
    }
    arguments = x.arguments(features)
    size, parts = x.shape.heads // x.shape.groups, []
    for group in range(x.shape.groups):
        own = slice(group * size, (group + 1) * size)
        mask = x.attention_mask
        if mask is not None and mask.ndim == 4 and mask.shape[1] > 1:
            mask = mask[:, own]
        arguments |= {name: leaves[name][own] for name in ("bias", "share", "sinks") if name in leaves}
        arguments |= {
            "attention_mask": mask,
            "dedicated": min(max(x.tables(features)["dedicated"] - own.start, 0), size),
        }
        k, v = (leaves[name][:, group : group + 1] for name in "kv")
        out = role_attention(leaves["q"][:, own], k, v, x.q_roles, x.k_roles, **arguments, impl="reference")
        if gradients and out.requires_grad:
            torch.autograd.backward(out, x.grad[:, own].to(dtype))
        parts.append(out.detach())
    found = {"out": torch.cat(parts, 1)}
    if gradients:
        found |= {f"d{name}": torch.zeros_like(x) if x.grad is None else x.grad for name, x in leaves.items()}
    return found


def expected(x: Inputs, features: Features, gradients: bool) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return the specification's result in fp64 and in the dtype of `x`."""
    return tuple(run_reference(x, features, gradients, dtype) for dtype in (torch.float64, x.q.dtype))  # type: ignore[return-value]


def compare(found: Results, exact: Results, eager: Results) -> Comparison:
    """Compare `found` with the results of `expected`. NaN is an error."""
    wrong, errors = [], {}
    dtype = eager["out"].dtype
    slack = 1e-5 if dtype in (torch.float32, torch.float64) else torch.finfo(dtype).eps / 4
    for name, result in found.items():
        right = exact[name]
        if not right.numel():
            continue
        for kind, measure in (("max", largest), ("rms", root_mean_square)):
            error, own = measure(result.double() - right), measure(eager[name].double() - right)
            allowed = 2 * own + slack * measure(right) + FLOOR
            errors[f"{name} {kind}"] = (error, own, allowed)
            if not error <= allowed:
                wrong.append(f"{name} {kind} {error:.2g}, allowed {allowed:.2g}")
    if "out" in found and bool((found["out"][(exact["out"] == 0).all(-1)] != 0).any()):
        wrong.append("rows that see nothing are not 0")
    return Comparison(errors, "; ".join(wrong))


def largest(x: Tensor) -> float:
    return x.abs().max().item()


def root_mean_square(x: Tensor) -> float:
    return x.square().mean().sqrt().item()
