"""The measured cases: the fused kernel with its parts switched on one by one, and its alternatives.

B batch, H query heads, G key/value heads, T queries, S keys, D head dim, R roles
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

import rolesafe
from benchmarks.throughput.shapes import pair_bytes
from tools.inputs import Features, Inputs, Shape

LARGEST_BIAS = 16 * 2**30
"""Bytes: a materialised bias of this size or more is not tried."""
FLEX_BATCH = 8
"""FlexAttention compiles for every shape; its decoding is measured at this batch alone."""
EVERYWHERE = ("cuda", "cpu")


class Built(NamedTuple):
    """A prepared call (-> (B, H, T, D)), a note for the record, and own tensors that replace k and v of the inputs."""

    call: Callable[[], Tensor]
    note: str = ""
    replaced: dict[str, Tensor] | None = None

    def leaves_of(self, x: Inputs, features: Features) -> dict[str, Tensor]:
        """Return the tensors that the call differentiates, by name."""
        return x.leaves(features) | (self.replaced or {})


@dataclass(frozen=True)
class Case:
    """One way to compute attention with some features of the roles.

    Attributes:
        build: Prepares role layout or block mask, as a model does once for all layers, outside the timing.
        own: It is the fused kernel: an error is a failure, not a peer that this PyTorch lacks.
        devices: Devices it runs on.
        gradients: Devices where it has a backward.
        decodes: It is measured in decoding too.
        trains: It is measured in the grid of forward and backward.
        compiles: A first call compiles, so preparing it beforehand saves time.
    """

    name: str
    features: Features
    build: Callable[[Inputs], Built]
    own: bool = False
    devices: tuple[str, ...] = ("cuda",)
    gradients: tuple[str, ...] = EVERYWHERE
    decodes: bool = False
    trains: bool = True
    compiles: bool = False

    def absent(self, reason: str) -> dict[str, str]:
        """Return the entry of the record for a case that raised."""
        return {"failed" if self.own else "unavailable": reason}

    def skipped(self, shape: Shape) -> str | None:
        """Return the reason why the case is not tried at `shape`; None if it is."""
        if self.name == MATERIALISED and pair_bytes(shape) >= LARGEST_BIAS:
            return f"the (B, H, T, S) bias would take {pair_bytes(shape) / 2**30:.0f} GiB"
        if self.name.startswith("flex") and not shape.square and shape.batch != FLEX_BATCH:
            return f"compiles for every shape, measured at B={FLEX_BATCH} alone"
        return None


def own(features: Features, fresh: bool = False) -> Callable[[Inputs], Built]:
    """Build the fused kernel. `fresh`: the role layout is made in every call, as in a model of one layer."""

    def build(x: Inputs) -> Built:
        from rolesafe_kernels import RoleLayout, role_attention  # late: it imports triton

        if features == Features():
            return Built(lambda: role_attention(x.q, x.k, x.v))
        kept = None if fresh else RoleLayout(x.q_roles, x.k_roles)
        tables = x.tables(features)
        return Built(lambda: role_attention(x.q, x.k, x.v, x.q_roles, x.k_roles, layout=kept, **tables))

    return build


def folded(x: Inputs) -> Built:
    """Build the backend `sdpa` of this library: the bias folded into the head dimension."""
    tables = x.tables(BIAS)
    return Built(lambda: rolesafe.role_attention(x.q, x.k, x.v, x.q_roles, x.k_roles, impl="sdpa", **tables))


def order(x: Inputs) -> tuple[Tensor | None, bool]:
    """Return mask (T, S) and `is_causal` for ``scaled_dot_product_attention``, which aligns at the top left."""
    shape = x.shape
    if shape.square or shape.queries == 1:
        return None, shape.square
    seen = torch.ones(shape.queries, shape.keys, dtype=torch.bool, device=x.q.device)
    return seen.tril(shape.keys - shape.queries), False


EXPANDED = "key heads repeated for each query head, outside the timing: this backend does not share them"


def expand(x: Inputs) -> dict[str, Tensor]:
    """Return leaves k and v with every head repeated for each of its query heads: (B, H, S, D)."""
    times = x.shape.heads // x.shape.groups
    return {
        name: kv.detach().repeat_interleave(times, dim=1).requires_grad_(kv.requires_grad)
        for name, kv in (("k", x.k), ("v", x.v))
    }


def sdpa(backend: SDPBackend | None) -> Callable[[Inputs], Built]:
    """Build PyTorch's causal attention without roles; None: the backend of its own choice."""

    def build(x: Inputs) -> Built:
        mask, causal = order(x)
        if mask is not None and backend is SDPBackend.FLASH_ATTENTION:
            from torch.nn.attention.bias import causal_lower_right  # the flash backend takes no other mask

            mask = causal_lower_right(x.shape.queries, x.shape.keys)

        def attend(k: Tensor, v: Tensor, grouped: bool) -> Tensor:
            with sdpa_kernel(backend) if backend is not None else nullcontext():
                return F.scaled_dot_product_attention(x.q, k, v, mask, is_causal=causal, enable_gqa=grouped)

        call = partial(attend, x.k, x.v, x.shape.heads != x.shape.groups)
        if backend is None or x.shape.heads == x.shape.groups:
            return Built(call)
        try:
            call()
        except RuntimeError:
            own = expand(x)
            return Built(partial(attend, own["k"], own["v"], False), EXPANDED, own)
        return Built(call)

    return build


def materialised(x: Inputs) -> Built:
    """Build attention with the bias as a (B, H, T, S) tensor, which the memory-efficient backend takes as a mask.

    Forward only: the gradient of the lookup would sort B*H*T*S indices.
    """
    future = torch.ones(x.shape.queries, x.shape.keys, dtype=torch.bool, device=x.q.device)
    future = future.triu(1 + x.shape.keys - x.shape.queries)
    backend = SDPBackend.EFFICIENT_ATTENTION if x.q.device.type == "cuda" else SDPBackend.MATH
    own = expand(x)

    def call() -> Tensor:
        with torch.no_grad():
            pairs = x.bias.to(x.q.dtype)[:, x.q_roles[:, :, None], x.k_roles[:, None, :]].transpose(0, 1)
            pairs.masked_fill_(future, float("-inf"))
            with sdpa_kernel(backend):
                return F.scaled_dot_product_attention(x.q, own["k"], own["v"], pairs)

    return Built(call, EXPANDED)


def flash_attn(x: Inputs) -> Built:
    """Build the package flash-attn, where it is installed; its causal order is aligned at the bottom right."""
    from flash_attn import flash_attn_func

    def call() -> Tensor:
        out: Tensor = flash_attn_func(*(y.transpose(1, 2) for y in (x.q, x.k, x.v)), causal=True)
        return out.transpose(1, 2)

    return Built(call)


@cache
def flex_attention(device: str) -> Callable[..., Tensor]:
    """Return FlexAttention, compiled for every shape on its own; eager on a CPU."""
    from torch.nn.attention.flex_attention import flex_attention as eager

    if device != "cuda":
        return eager
    import torch._dynamo
    import torch._functorch.config

    torch._dynamo.config.recompile_limit = 256  # past the limit of 8 it would run eagerly, without a warning
    torch._functorch.config.donated_buffer = False  # or the backward could not be repeated on one graph
    return torch.compile(eager, dynamic=False, fullgraph=True)


def flex(bias: bool) -> Callable[[Inputs], Built]:
    """Build FlexAttention, causal by a block mask; with `bias`, the table is looked up for every score.

    The block mask is made by the eager ``create_block_mask``: the same mask, without a compilation for every shape.
    """

    def build(x: Inputs) -> Built:
        from torch.nn.attention.flex_attention import create_block_mask

        attend = flex_attention(x.q.device.type)
        shape, table = x.shape, x.bias
        q_roles, k_roles = x.q_roles.int(), x.k_roles.int()
        behind = shape.keys - shape.queries

        def seen(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
            return i + behind >= j

        def score(s: Tensor, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
            return s + table[h, q_roles[b, i], k_roles[b, j]]

        blocks = None
        if shape.queries > 1:
            blocks = create_block_mask(seen, None, None, shape.queries, shape.keys, device=x.q.device.type)
        arguments = {"score_mod": score if bias else None, "block_mask": blocks, "enable_gqa": True}
        return Built(lambda: attend(x.q, x.k, x.v, **arguments))

    return build


BIAS = Features(bias=True)
CHANNEL = Features(bias=True, share=True, dedicated=0.25, integrity=True)
MATERIALISED = "sdpa materialised bias"
FLEX: dict[str, Any] = {"devices": EVERYWHERE, "gradients": ("cuda",), "compiles": True}
OWN: dict[str, Any] = {"own": True, "compiles": True}

CASES = (
    Case("off", Features(), own(Features()), decodes=True, **OWN),
    Case("bias", BIAS, own(BIAS), decodes=True, **OWN),
    Case("half dedicated", Features(bias=True, dedicated=0.5), own(Features(bias=True, dedicated=0.5)), **OWN),
    Case("sdpa cudnn", Features(), sdpa(SDPBackend.CUDNN_ATTENTION), decodes=True),
    Case("sdpa flash", Features(), sdpa(SDPBackend.FLASH_ATTENTION), decodes=True, devices=EVERYWHERE),
    Case("flash-attn", Features(), flash_attn, decodes=True),
    Case("flex bias", BIAS, flex(bias=True), decodes=True, **FLEX),
    Case("channel", CHANNEL, own(CHANNEL), decodes=True, **OWN),
    Case("bias + share", Features(bias=True, share=True), own(Features(bias=True, share=True)), **OWN),
    Case("integrity", Features(bias=True, integrity=True), own(Features(bias=True, integrity=True)), **OWN),
    Case("bias, new layout", BIAS, own(BIAS, fresh=True), own=True),
    Case("sdpa default", Features(), sdpa(None), decodes=True, trains=False, devices=EVERYWHERE),
    Case("flex causal", Features(), flex(bias=False), **FLEX),
    Case(MATERIALISED, BIAS, materialised, devices=EVERYWHERE, gradients=()),
    Case("folded bias", BIAS, folded, devices=EVERYWHERE),
)
"""In the order in which a cell prepares them: what the table shows first."""

PAIRS = (
    ("bias", "off"),
    ("bias, new layout", "bias"),
    ("bias + share", "bias"),
    ("half dedicated", "bias"),
    ("integrity", "bias"),
    ("channel", "bias"),
    ("off", "sdpa cudnn"),
    ("bias", "sdpa cudnn"),
    ("half dedicated", "sdpa cudnn"),
    ("off", "sdpa flash"),
    ("bias", "flash-attn"),
    ("bias", "sdpa flash"),
    ("bias", "sdpa default"),
    ("bias", MATERIALISED),
    ("bias", "flex bias"),
    ("off", "flex causal"),
    ("flex bias", "flex causal"),
    ("bias", "folded bias"),
)
"""Ratios of time in the record: the first by the second."""
