"""The calls that `gpu_checks.py` compares with the specification.

B batch, H query heads, G key/value heads, T queries, S keys, D and DV head dims, R roles
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any


@dataclass(frozen=True)
class Case:
    """One call of `role_attention`. `mask`: "", "padding", "lengths", "full", "heads" or "empty"."""

    dtype: str = "bf16"
    batch: int = 2
    heads: int = 8
    groups: int = 2
    length: int = 517
    keys: int | None = None
    dim: int = 64
    dim_v: int | None = None
    bias: bool = False
    hidden: bool = False
    share: bool = False
    sinks: bool = False
    dedicated: int = 0
    integrity: bool = False
    softcap: float | None = None
    window: int | None = None
    causal: bool = True
    mask: str = ""
    documents: bool = False
    privileged: tuple[int, ...] = (0, 1)
    transposed: bool = False
    train: bool = True


CHANNEL: dict[str, Any] = {"bias": True, "share": True, "dedicated": 3, "integrity": True}
FEATURES: dict[str, dict[str, Any]] = {
    "plain": {},
    "bias": {"bias": True},
    "-inf table": {"bias": True, "hidden": True},
    "share": {"share": True},
    "dedicated": {"dedicated": 3},
    "all dedicated": {"dedicated": 8, "bias": True},
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


def all_cases() -> dict[str, Case]:
    """Name to case, the slow ones first."""
    cases = {
        "T 4096 D 128 channel": Case(batch=1, length=4096, dim=128, **CHANNEL),
        "T 4096 D 128 plain": Case(batch=1, length=4096, dim=128),
        "T 4095 D 64 window": Case(batch=1, length=4095, window=1024, **CHANNEL),
        "T 3001 D 128 -inf table": Case(batch=1, length=3001, dim=128, bias=True, hidden=True),
    }
    for dim in (256, 128, 96, 80, 16):
        cases[f"D {dim} channel"] = Case(dim=dim, **CHANNEL)
        cases[f"D {dim} plain"] = Case(dim=dim)
    for dtype in ("fp32", "fp16"):
        for name in ("plain", "bias", "channel", "everything"):
            cases[f"{dtype} {name}"] = Case(dtype=dtype, **FEATURES[name])
        for dim in (80, 128, 256):
            cases[f"{dtype} D {dim} channel"] = Case(dtype=dtype, dim=dim, **CHANNEL)
        cases[f"{dtype} decode"] = Case(dtype=dtype, keys=1000, **DECODE, **CHANNEL)
    cases |= {name: Case(**options) for name, options in FEATURES.items()}
    for length in (1, 2, 15, 63, 64, 65, 127, 128, 129, 1023):
        cases[f"T {length}"] = Case(length=length, **CHANNEL)
    for keys in (1, 2, 63, 64, 65, 1000, 4097):
        cases[f"decode S {keys}"] = Case(keys=keys, **DECODE, **CHANNEL)
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
        cases[f"decode {name}"] = replace(Case(**FEATURES[name]), keys=700, **DECODE)
    cases["decode full mask"] = Case(keys=700, mask="full", **DECODE, **CHANNEL)
    cases["decode sinks"] = Case(keys=700, sinks=True, **DECODE, **CHANNEL)
    cases["decode 4 queries"] = replace(Case(keys=700, **CHANNEL), length=4, train=False)
    for dim in (80, 128, 256):
        cases[f"decode D {dim}"] = Case(dim=dim, keys=2049, **DECODE, **CHANNEL)
    return cases
