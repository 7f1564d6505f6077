"""The calls that `checks` compares with the specification.

B batch, H query heads, G key/value heads, T queries, S keys, D and DV head dims, R roles
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch

from tools.inputs import DTYPES, Features, Inputs, Shape, make_inputs


@dataclass(frozen=True)
class Call:
    """One call of `role_attention`. `transposed`: tokens lie in memory as (B, T, H, D). `train`: with gradients."""

    shape: Shape
    features: Features = field(default_factory=Features)
    dtype: str = "bfloat16"
    transposed: bool = False
    train: bool = True

    def inputs(self, device: torch.device) -> Inputs:
        """Draw the inputs, with roles that change at every token in places."""
        return make_inputs(
            self.shape, DTYPES[self.dtype], device, self.features, gradients=self.train, mixed=True,
            transposed=self.transposed,
        )  # fmt: skip


def call(
    *, batch: int = 2, groups: int = 2, length: int = 517, keys: int | None = None, dim: int = 64,
    dim_v: int | None = None, dtype: str = "bfloat16", transposed: bool = False, train: bool = True, **features: Any,
) -> Call:  # fmt: skip
    """Return a call with 8 heads; S is T unless `keys` is given."""
    shape = Shape(batch, 8, groups, length, length if keys is None else keys, dim, dim_v)
    return Call(shape, Features(**features), dtype, transposed, train)


CHANNEL: dict[str, Any] = {"bias": True, "share": True, "dedicated": 3 / 8, "integrity": True}
FEATURES: dict[str, dict[str, Any]] = {
    "plain": {},
    "bias": {"bias": True},
    "-inf table": {"bias": True, "hidden": True},
    "share": {"share": True},
    "dedicated": {"dedicated": 3 / 8},
    "all dedicated": {"dedicated": 1.0, "bias": True},
    "integrity": {"integrity": True, "bias": True},
    "channel": CHANNEL,
    "sinks": {"sinks": True},
    "channel, sinks": {**CHANNEL, "sinks": True},
    "softcap": {"softcap": 5.0, "bias": True},
    "window": {"window": 100},
    "window, channel": {"window": 100, **CHANNEL},
    "padding": {"mask": "padding", "bias": True},
    "padding, channel": {"mask": "padding", **CHANNEL},
    "lengths": {"mask": "lengths", "bias": True},
    "full mask": {"mask": "full", **CHANNEL},
    "mask of each head": {"mask": "heads", "bias": True},
    "nothing visible": {"mask": "empty", **CHANNEL},
    "documents": {"documents": True, "batch": 1, **CHANNEL},
    "documents, window": {"documents": True, "batch": 1, "window": 50},
    "not causal": {"causal": False, **CHANNEL},
    "nobody privileged": {"privileged": (), **CHANNEL},
    "cached prefix": {"length": 200, "keys": 517, **CHANNEL},
    "more queries than keys": {"length": 300, "keys": 131, **CHANNEL},
    "transposed": {"transposed": True, **CHANNEL},
    "wide values": {"dim_v": 128, **CHANNEL},
    "narrow values": {"dim": 96, "dim_v": 64, **CHANNEL},
    "one head a group": {"groups": 8, **CHANNEL},
    "one group": {"groups": 1, **CHANNEL},
    "everything": {
        **CHANNEL, "hidden": True, "sinks": True, "softcap": 5.0, "window": 200, "mask": "padding", "transposed": True,
    },
}  # fmt: skip
DECODE: dict[str, Any] = {"length": 1, "train": False}


def all_calls() -> dict[str, Call]:
    """Return calls by name, the slow ones first."""
    calls = {
        "T 4096 D 128 channel": call(batch=1, length=4096, dim=128, **CHANNEL),
        "T 4096 D 128 plain": call(batch=1, length=4096, dim=128),
        "T 4095 D 64 window": call(batch=1, length=4095, window=1024, **CHANNEL),
        "T 3001 D 128 -inf table": call(batch=1, length=3001, dim=128, bias=True, hidden=True),
    }
    for dim in (256, 128, 96, 80, 16):
        calls[f"D {dim} channel"] = call(dim=dim, **CHANNEL)
        calls[f"D {dim} plain"] = call(dim=dim)
    for dtype, short in (("float32", "fp32"), ("float16", "fp16")):
        for name in ("plain", "bias", "channel", "everything"):
            calls[f"{short} {name}"] = call(dtype=dtype, **FEATURES[name])
        for dim in (80, 128, 256):
            calls[f"{short} D {dim} channel"] = call(dtype=dtype, dim=dim, **CHANNEL)
        calls[f"{short} decode"] = call(dtype=dtype, keys=1000, **DECODE, **CHANNEL)
    calls |= {name: call(**options) for name, options in FEATURES.items()}
    for length in (1, 2, 15, 63, 64, 65, 127, 128, 129, 1023):
        calls[f"T {length}"] = call(length=length, **CHANNEL)
    for keys in (1, 2, 63, 64, 65, 1000, 4097):
        calls[f"decode S {keys}"] = call(keys=keys, **DECODE, **CHANNEL)
    for name in (
        "plain",
        "bias",
        "-inf table",
        "share",
        "softcap",
        "window",
        "padding",
        "nothing visible",
        "one group",
    ):
        calls[f"decode {name}"] = call(**{**FEATURES[name], "keys": 700, **DECODE})
    calls["decode full mask"] = call(keys=700, mask="full", **DECODE, **CHANNEL)
    calls["decode sinks"] = call(keys=700, sinks=True, **DECODE, **CHANNEL)
    calls["decode 4 queries"] = call(keys=700, length=4, train=False, **CHANNEL)
    for dim in (80, 128, 256):
        calls[f"decode D {dim}"] = call(dim=dim, keys=2049, **DECODE, **CHANNEL)
    return calls
