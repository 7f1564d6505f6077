"""Random problems of role-aware attention, for property tests.

Legend: B batch, H query heads, G key/value heads, T queries, S keys, D head dim, R roles.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from torch import Tensor

from rolesafe import role_attention
from rolesafe.attention import Problem, RoleIndex
from rolesafe.attention.reference import reference_channels

FEW = settings(max_examples=40, deadline=None, derandomize=True)
MANY = settings(max_examples=120, deadline=None, derandomize=True)
ONE_WAY = pytest.mark.parametrize("way", ["few"], indirect=True)
"""Mark of a test in tests/attention that does not run `sdpa`."""

INF = float("inf")


def third(offset: int, *factors: Sequence[Any]) -> Iterator[tuple[Any, ...]]:
    """Yield every combination of values whose positions and `offset` have a sum that 3 divides.

    Two factors of at least two values reach every remainder. So each combination of the others occurs, together with
    the factors whose positions are added to `offset`.
    """
    for at in itertools.product(*(range(len(values)) for values in factors)):
        if (offset + sum(at)) % 3 == 0:
            yield tuple(values[i] for values, i in zip(factors, at, strict=True))


@dataclass(frozen=True)
class Case:
    """One call. `bias` and `share` may be None; `options` are the other keyword arguments."""

    q: Tensor
    k: Tensor
    v: Tensor
    q_roles: Tensor
    k_roles: Tensor
    bias: Tensor | None = None
    share: Tensor | None = None
    options: dict[str, Any] = field(default_factory=dict)

    def run(self, impl: str, **changes: Any) -> Tensor:
        options = {"bias": self.bias, "share": self.share, **self.options, **changes}
        return role_attention(self.q, self.k, self.v, self.q_roles, self.k_roles, impl=impl, **options)

    def to(self, dtype: torch.dtype) -> Case:
        """Cast tokens to `dtype` and keep the tables, as a model may."""
        return replace(self, q=self.q.to(dtype), k=self.k.to(dtype), v=self.v.to(dtype))

    def gradients(self, impl: str, output_gradient: Tensor) -> dict[str, Tensor]:
        """Return output and the gradients of q, k, v, bias, share, without absent ones."""
        leaves = {
            name: x.detach().clone().requires_grad_()
            for name in ("q", "k", "v", "bias", "share")
            if (x := getattr(self, name)) is not None
        }
        out = replace(self, **leaves).run(impl)
        if out.requires_grad:  # heads without a privileged key are 0 and read nothing
            out.backward(output_gradient.to(out.dtype))
        found = {name: torch.zeros_like(x) if x.grad is None else x.grad for name, x in leaves.items()}
        return {"out": out.detach(), **found}

    def mass(self) -> Tensor:
        """Return the attention mass of the specification, (B, H, T, S)."""
        options = {"privileged": (0, 1), "causal": True, **self.options}
        mask = options.pop("attention_mask", None)
        padding = mask.bool() if mask is not None and mask.ndim == 2 else None
        roles = RoleIndex(self.q_roles, self.k_roles, tuple(options.pop("privileged")), padding)
        full = mask if mask is not None and mask.ndim == 4 else None
        scale = options.pop("scale", None) or self.q.shape[-1] ** -0.5
        problem = Problem(self.q, self.k, self.v, roles, self.bias, self.share, mask=full, scale=scale, **options)
        return reference_channels(problem)[1]


@st.composite
def cases(draw: Any, *, plain: bool = False, square: bool = False, extras: bool = False, target: bool = False) -> Case:
    """Draw a case in fp64.

    Args:
        plain: No mask, no window, no -inf: every row sees a key.
        square: T == S.
        target: With a mass target, which `triton` does not compute.
        extras: With softcap and sinks, which `reference` alone computes.
    """
    batch, groups, per_group = draw(st.integers(1, 2)), draw(st.integers(1, 2)), draw(st.integers(1, 3))
    heads = groups * per_group
    keys = draw(st.integers(1, 12))
    length = keys if square else draw(st.sampled_from([1, keys, draw(st.integers(1, 14))]))
    dim, value_dim = draw(st.sampled_from([1, 3, 8, 16])), draw(st.sampled_from([1, 5, 8, 32]))
    roles = draw(st.sampled_from([1, 2, 3, 5, 16]))
    make = torch.Generator().manual_seed(draw(st.integers(0, 2**20)))

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=make, dtype=torch.float64)

    def chance(probability: float, *shape: int) -> Tensor:
        return torch.rand(*shape, generator=make) < probability

    k_roles = torch.randint(0, roles, (batch, keys), generator=make)
    q_roles = torch.randint(0, roles, (batch, length), generator=make)
    same = min(length, keys)
    q_roles[:, length - same :] = k_roles[:, keys - same :]
    bias, share = None, None
    if draw(st.booleans()):
        bias = normal(heads, roles, roles) * draw(st.sampled_from([0.0, 1.0, 10.0]))
        if not plain:
            bias = bias.masked_fill(chance(draw(st.sampled_from([0.0, 0.3, 1.0])), heads, roles, roles), -INF)
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
    if target:
        options["mass_target"] = draw(st.sampled_from([0.0, 0.2, 0.7, 1.0]))
    if not plain:
        if causal and draw(st.booleans()):
            options["window"] = draw(st.integers(1, keys + 1))
        mask = draw(st.sampled_from(["none", "padding", "bool"]))
        if mask == "padding":
            options["attention_mask"] = chance(draw(st.sampled_from([0.7, 0.2])), batch, keys).to(
                draw(st.sampled_from([torch.int64, torch.bool]))
            )
        elif mask == "bool":
            wide = (draw(st.sampled_from([1, batch])), draw(st.sampled_from([1, heads])))
            options["attention_mask"] = chance(0.6, *wide, length, keys) & chance(0.8, *wide, length, 1)
        if extras:
            options["softcap"] = draw(st.sampled_from([None, 2.0]))
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
