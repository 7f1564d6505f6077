"""Comparison with the specification: nothing is timed, tuned or released that disagrees with it.

The exact result is ``rolesafe.role_attention(impl="reference")`` in fp64. A result passes where its largest and its
root-mean-square error, of the output and of every gradient, are at most twice those of the same formula in the
precision of the call, plus a quarter of a rounding step of the result (in fp32, where a product is three of tf32, 1e-5
of it) and `FLOOR`. Of the table gradient the factor to the exact one is compared too: rounding has no direction.

The eager table gradient takes the mean of a row's score gradients from the rounded output, as the backward of
FlashAttention and the kernel's do, see :func:`rounding_of_means`.

B batch, H query heads, G key/value heads, T queries, S keys, D and DV head dims, R roles
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

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
        errors: By "<tensor> max" and "<tensor> rms", and "dbias scale": error of the result, error of eager attention,
            allowed error.
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
    parts = []
    for own, group, arguments in by_group(x, features, leaves):
        k, v = (leaves[name][:, group] for name in "kv")
        out = role_attention(leaves["q"][:, own], k, v, x.q_roles, x.k_roles, **arguments, impl="reference")
        if gradients and out.requires_grad:
            torch.autograd.backward(out, x.grad[:, own].to(dtype))
        parts.append(out.detach())
    found = {"out": torch.cat(parts, 1)}
    if gradients:
        found |= {f"d{name}": torch.zeros_like(x) if x.grad is None else x.grad for name, x in leaves.items()}
    return found


def by_group(
    x: Inputs, features: Features, leaves: Mapping[str, Tensor]
) -> Iterator[tuple[slice, slice, dict[str, Any]]]:
    """Yield the query heads, the key head and the arguments of each group of heads, the tables from `leaves`."""
    arguments = x.arguments(features)
    size = x.shape.heads // x.shape.groups
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
        yield own, slice(group, group + 1), dict(arguments)


def expected(x: Inputs, features: Features, gradients: bool) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return the specification's result in fp64 and in the dtype of `x`."""
    exact, eager = (run_reference(x, features, gradients, dtype) for dtype in (torch.float64, x.q.dtype))
    if gradients and features.bias:
        eager["dbias"] = eager["dbias"] + rounding_of_means(x, features, exact["out"])
    return exact, eager


@torch.no_grad()
def rounding_of_means(x: Inputs, features: Features, out: Tensor) -> Tensor:
    """Return the change of the table gradient (H, R, R) by row means that come from a rounded output.

    The score gradient of a key of mass a is a (do . v - delta), and delta, the mean of do . v, is do . out. With the
    output `out` (B, H, T, DV) rounded to the dtype of `x` the gradients of a row no longer add up to 0, and the table
    sums rows. A share needs the means of both channels, and do . (p - o) is rounded too.
    """
    dtype, wide = x.q.dtype, torch.promote_types(x.q.dtype, torch.float32)
    leaves = {name: leaf.detach().to(wide) for name, leaf in x.leaves(features).items()}
    roles = torch.arange(x.bias.shape[-1], device=x.q.device)
    of_key = (x.k_roles[:, None, :, None] == roles).to(wide)  # (B, 1, S, R): as values, they give the mass of each role
    of_query = (x.q_roles[:, :, None] == roles).to(wide)
    found = []
    for own, group, arguments in by_group(x, features, leaves):
        q, k, v = leaves["q"][:, own], leaves["k"][:, group], leaves["v"][:, group]

        def attend(v: Tensor, q: Tensor = q, k: Tensor = k, **changes: Any) -> Tensor:
            """Return the attention of the group with other values; `changes` replace arguments."""
            changed = {**arguments, **changes}  # noqa: B023
            return role_attention(q, k, v, x.q_roles, x.k_roles, **changed, impl="reference")

        mass, grad, exact = attend(of_key), x.grad[:, own].to(wide), out[:, own].to(wide)
        if features.share:
            # the kernel stores p, reads it again for the output, and stores p - o
            alone: dict[str, Any] = {"share": None, "dedicated": q.shape[1], "sinks": None}
            p, of_privileged = attend(v, **alone), attend(of_key, **alone)
            o, of_ordinary = attend(v, share=None), attend(of_key, share=None)
            part = of_ordinary[..., list(features.privileged)].sum(-1, keepdim=True)
            dedicated = torch.arange(q.shape[1], device=q.device) < arguments["dedicated"]
            share = torch.where(dedicated, 0.0, arguments["share"])[:, None, None]
            stored = lost(p, dtype)
            in_output, in_difference = (share + (1.0 - share) * part) * stored, (1.0 - part) * stored
            mean = ((in_output + lost(exact - in_output, dtype)) * grad).sum(-1, keepdim=True)
            gain = ((in_difference + lost(p - o - in_difference, dtype)) * grad).sum(-1, keepdim=True)
            change = mean * mass + share * gain * (of_privileged - mass)
        else:
            change = (lost(exact, dtype) * grad).sum(-1, keepdim=True) * mass
        found.append(torch.einsum("btr,bhtc->hrc", of_query, change))
    return torch.cat(found)


def lost(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the part of `x` that rounding to `dtype` loses."""
    return x - x.to(dtype).to(x.dtype)


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
        spread = root_mean_square(right)
        if name == "dbias" and spread > 0:
            # rounding has no direction: of n numbers, its part along the exact result falls with the root of n
            error, own = (abs(along(x.double() - right, right)) for x in (result, eager[name]))
            random = root_mean_square(eager[name].double() - right) / spread / right.numel() ** 0.5
            allowed = 2 * own + 4 * random + slack + FLOOR / spread
            errors[f"{name} scale"] = (error, own, allowed)
            if not error <= allowed:
                wrong.append(f"{name} scale {error:.2g}, allowed {allowed:.2g}")
    if "out" in found and bool((found["out"][(exact["out"] == 0).all(-1)] != 0).any()):
        wrong.append("rows that see nothing are not 0")
    return Comparison(errors, "; ".join(wrong))


def along(x: Tensor, y: Tensor) -> float:
    """Return the factor of `y` in `x`, by least squares."""
    return ((x * y).sum() / y.square().sum()).item()


def largest(x: Tensor) -> float:
    return x.abs().max().item()


def root_mean_square(x: Tensor) -> float:
    return x.square().mean().sqrt().item()
