"""A synthetic record: every cell of the default run, with times in known ratios."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

from benchmarks.throughput.cases import CASES, PAIRS
from benchmarks.throughput.cells import Cell
from benchmarks.throughput.model import PAIRS as MODEL_PAIRS
from benchmarks.throughput.model import PRESETS, UNPATCHED, Size
from benchmarks.throughput.record import Record
from benchmarks.throughput.session import cell
from benchmarks.throughput.shapes import LENGTHS, cache_bytes, decode_shapes, forward_flops, square_shapes
from tools.inputs import Shape

ENVIRONMENT: dict[str, Any] = {
    "date": "2026-01-01T00:00:00+00:00",
    "commit": "0123abc",
    "uncommitted_changes": False,
    "sources": "0123456789abcdef",
    "gpu": "NVIDIA Test",
    "driver": "1",
    "torch": "2.11.0",
    "triton": "3.6.0",
    "transformers": "5.17.0",
    "cuda": "13.0",
    "cudnn": 91900,
}
COPY = 4000.0
"""GB/s."""
FACTORS = {
    "off": 1.0,
    "bias": 1.04,
    "bias, new layout": 1.06,
    "bias + share": 1.2,
    "half dedicated": 0.6,
    "channel": 0.9,
    "integrity": 1.0,
    "sdpa flash": 1.1,
    "flash-attn": 0.9,
    "sdpa cudnn": 0.8,
    "sdpa default": 0.8,
    "sdpa materialised bias": 9.0,
    "flex bias": 1.5,
    "flex causal": 1.1,
    "folded bias": 1.3,
}
"""Time of each case by that of "off"; backward with FlexAttention takes ten times that of forward."""


def synthetic(path: Path) -> Record:
    """Return the record of a finished run."""
    record = Record(path, dict(ENVIRONMENT), {"quick": False})
    record.data["ceilings"] = {"matmul_tflops": 790.0, "matmul_side": 8192, "copy_gb_per_s": COPY, "copied_bytes": 1}
    for suite in ("forward", "backward"):
        for shape in square_shapes((128, 64), LENGTHS):
            add_square(record, suite, shape)
    for shape in decode_shapes():
        add_decode(record, shape)
    times = {
        name: {0: 100.0 * f, 1: 101.0 * f} for name, f in zip((UNPATCHED, *PRESETS), (1.0, 1.02, 1.3), strict=True)
    }
    for suite in ("train", "generate"):
        extra = {name: {"tokens_per_s": 1000.0, "peak_mib": 10.0} for name in times}
        record.add_cell(suite, cell(suite, asdict(Size()), times, extra, MODEL_PAIRS))
    return record


def add_square(record: Record, suite: str, shape: Shape) -> None:
    record.add_cell(key(suite, shape), timed(suite, shape))


def timed(suite: str, shape: Shape, refused: Mapping[str, dict[str, str]] | None = None) -> dict[str, Any]:
    """Return a cell with times in known ratios; less the cases in `refused`, which get that entry."""
    return copy.deepcopy(made_up(suite, shape, json.dumps(refused or {})))


@cache
def made_up(suite: str, shape: Shape, absent: str) -> dict[str, Any]:
    refused = json.loads(absent)
    if suite.startswith("decode"):
        share = 0.9 if shape.batch == 32 else 0.5
        ms = cache_bytes(shape) / COPY / 1e6 / share
        times = {case.name: {0: ms} for case in CASES if case.decodes and case.name not in refused}
        extra: dict[str, Any] = {name: {"gb_per_s": share * COPY, "of_copy": share} for name in times}
        return cell(suite, shape, times, {**extra, **refused}, PAIRS)
    base = forward_flops(shape) / 500e9
    times = {
        case.name: {r: base * (1 + 0.01 * r) * slower(case.name, suite) for r in range(5)}
        for case in CASES
        if case.trains and case.name not in refused
    }
    extra = {name: {"tflops": forward_flops(shape) / ms[0] / 1e9, "peak_mib": 100.0} for name, ms in times.items()}
    return cell(suite, shape, times, {**extra, **refused}, PAIRS)


def key(suite: str, shape: Shape) -> str:
    return Cell(suite, shape).key


def slower(case: str, suite: str) -> float:
    return FACTORS[case] * (10 if suite == "backward" and case == "flex bias" else 1)


def add_decode(record: Record, shape: Shape) -> None:
    record.add_cell(key("decode graph", shape), timed("decode graph", shape))
