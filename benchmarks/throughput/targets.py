"""Targets of the kernel and their outcomes. D=128, bf16, causal, T >= 4096."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

DIM, LEAST = 128, 4096
LARGE_CACHE = 128 * 2**20
"""Bytes of k and v from which bandwidth, not launching, bounds decoding."""

Found = Iterator[tuple[str, float]]
"""Places and the values there."""
Finder = Callable[[dict[str, Any]], Found]


class Target(NamedTuple):
    """A target. `values` finds them in a record; the worst counts."""

    name: str
    goal: float
    at_least: bool
    values: Finder


def cells(record: dict[str, Any], suite: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield place and cell of the cells of a suite that the targets judge."""
    for cell in record["cells"].values():
        shape = cell["shape"]
        if cell["suite"] == suite and shape["dim"] == DIM and shape["keys"] >= LEAST:
            yield f"T={shape['keys']}", cell


def time_ratio(suite: str, a: str, b: str, speed: bool = False) -> Finder:
    """Return a finder of the time of `a` by that of `b`; `speed`: of the speed of `a` by that of `b`."""

    def values(record: dict[str, Any]) -> Found:
        for place, cell in cells(record, suite):
            if found := cell["ratios"].get(f"{a} / {b}"):
                yield place, 1 / found["median"] if speed else found["median"]

    return values


def memory_ratio(suite: str, a: str, b: str) -> Finder:
    """Return a finder of the peak memory over the inputs of `a` by that of `b`."""

    def values(record: dict[str, Any]) -> Found:
        for place, cell in cells(record, suite):
            one, other = (cell["cases"].get(name, {}).get("peak_mib") for name in (a, b))
            if one is not None and other:
                yield place, one / other

    return values


def bandwidth(case: str, least_bytes: int = 0) -> Finder:
    """Return a finder of the bytes of k and v by time in a CUDA graph, of the copy bandwidth; one query."""

    def values(record: dict[str, Any]) -> Found:
        for _, cell in cells(record, "decode graph"):
            shape = cell["shape"]
            size = 4 * shape["batch"] * shape["groups"] * shape["keys"] * shape["dim"]
            share = cell["cases"].get(case, {}).get("of_copy")
            if share is not None and shape["queries"] == 1 and size >= least_bytes:
                yield f"B={shape['batch']} S={shape['keys']}", share

    return values


def train_ratio(record: dict[str, Any]) -> Found:
    """Yield the time of a training step, patched by unpatched."""
    cell = record["cells"].get("train")
    if cell and (found := cell["ratios"].get("bias / unpatched")):
        yield f"B={cell['shape']['batch']} T={cell['shape']['length']}", found["median"]


def both(name: str, goal: float, at_least: bool, a: str, b: str) -> list[Target]:
    """Return a target on time for forward and one for backward."""
    return [
        Target(f"{suite}: {name}", goal, at_least, time_ratio(suite, a, b, speed=at_least))
        for suite in ("forward", "backward")
    ]


TARGETS = (
    *both("time with roles (bias) by time without", 1.05, False, "bias", "off"),
    Target("forward: speed by FlexAttention, same bias", 1.3, True, time_ratio("forward", "bias", "flex bias", True)),
    Target("backward: speed by FlexAttention, same bias and its gradient", 5.0, True,
           time_ratio("backward", "bias", "flex bias", True)),
    *both("speed (bias) by cuDNN without roles", 0.75, True, "bias", "sdpa cudnn"),
    *both("speed (bias) by cuDNN without roles, further goal", 0.95, True, "bias", "sdpa cudnn"),
    *both("speed, half of the heads dedicated, by cuDNN without roles", 1.3, True, "half dedicated", "sdpa cudnn"),
    Target("decode: k and v read, of copy bandwidth (bias)", 0.80, True, bandwidth("bias")),
    Target("decode: the same, k and v of 128 MiB and more", 0.80, True, bandwidth("bias", LARGE_CACHE)),
    Target("training step: time patched (bias) by unpatched", 1.03, False, train_ratio),
    Target("forward: peak memory (bias) by SDPA flash", 1.02, False, memory_ratio("forward", "bias", "sdpa flash")),
    Target("forward + backward: peak memory (bias) by SDPA flash", 1.02, False,
           memory_ratio("backward", "bias", "sdpa flash")),
)  # fmt: skip


def judge(target: Target, record: dict[str, Any]) -> dict[str, Any]:
    """Return the outcome of a target: the worst value decides. "reached" is None where nothing was measured."""
    goal = f"{'>=' if target.at_least else '<='} {target.goal:.2f}x"
    found: dict[str, Any] = {"name": target.name, "goal": goal, "reached": None, "worst": None, "best": None}
    values = sorted(target.values(record), key=lambda one: one[1], reverse=not target.at_least)
    if not values:
        return found | {"where": "not measured"}
    where, worst = values[0]
    reached = worst >= target.goal if target.at_least else worst <= target.goal
    return found | {"reached": reached, "worst": worst, "best": values[-1][1], "where": where}


def evaluate(record: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the outcomes of all targets."""
    return [judge(target, record) for target in TARGETS]
