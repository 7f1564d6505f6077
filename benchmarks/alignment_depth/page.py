"""Part of docs/alignment-depth.md that comes from the record."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.alignment_depth.arms import ARMS
from benchmarks.alignment_depth.measure import FORCED, rate

RESULTS = Path(__file__).parents[1] / "results" / "alignment_depth.json"
SHOWN = (0, 1, 2, 4, 8, 12)

Record = Mapping[str, Any]


def block(kind: str) -> str:
    """Return the Markdown of one table: ``attacks``, ``recovery`` or ``costs``."""
    record = json.loads(RESULTS.read_text(encoding="utf-8"))
    makers = {"attacks": _attacks, "recovery": _recovery, "costs": _costs}
    if kind not in makers:
        raise ValueError(f"`kind`: expected one of {sorted(makers)}, got {kind!r}")
    return makers[kind](record)


def _attacks(record: Record) -> str:
    columns = [*(f"prefill {k}" for k in SHOWN if k), "random 1", "random 4", "worst 1", "worst 4", "banned"]
    lines = [_about(record), "", f"| arm | {' | '.join(columns)} |", f"| --- |{' --: |' * len(columns)}"]
    for name in _measured(record):
        cells = [_share(record, name, "success", column) for column in columns]
        lines.append(f"| `{name}` | {' | '.join(cells)} |")
    if missing := [f"`{name}`" for name in ARMS if name not in _measured(record)]:
        lines += ["", f"Not measured yet: {', '.join(missing)}."]
    return "\n".join(lines)


def _recovery(record: Record) -> str:
    lines = [f"| arm | {' | '.join(f'k = {k}' for k in SHOWN)} | least of all k | description |"]
    lines.append(f"| --- |{' --: |' * (len(SHOWN) + 1)} --- |")
    for name in _measured(record):
        cells = [_share(record, name, "recovery", f"prefill {k}") for k in SHOWN]
        every = [_value(record, name, "recovery", f"prefill {k}") for k in FORCED]
        known = [value for value in every if value is not None]
        least = f"{100 * min(known):.0f}" if known else "-"
        lines.append(f"| `{name}` | {' | '.join(cells)} | {least} | {ARMS[name].about}, {ARMS[name].steps} steps |")
    return "\n".join(lines)


def _costs(record: Record) -> str:
    lines = [
        "| arm | benign, right | mentions, right | benign refused | mentions refused | KL to `base` | "
        "error of predicted recovery |"
    ]
    lines.append("| --- | --: | --: | --: | --: | --: | --: |")
    for name in _measured(record):
        kinds = ("benign", "mention", "benign refused", "mention refused")
        cells = [_share(record, name, kind) for kind in kinds]
        kl = [seed[name]["kl"] for seed in record["seeds"].values() if name in seed]
        cells.append(f"{sum(kl) / len(kl):.3f}" if kl else "-")
        errors = [found["mean"] for seed in record["seeds"].values() if (found := seed[name].get("prediction"))]
        cells.append(f"{sum(errors) / len(errors):.3f}" if errors else "-")
        lines.append(f"| `{name}` | {' | '.join(cells)} |")
    return "\n".join(lines)


def _measured(record: Record) -> list[str]:
    return [name for name in ARMS if any(name in seed for seed in record["seeds"].values())]


def _about(record: Record) -> str:
    seeds = len(record["seeds"])
    where = record["environment"]["hardware"]
    return f"{seeds} seed{'s' * (seeds > 1)}, {record['n']} conversations of each kind; {where}."


def _value(record: Record, name: str, *path: str) -> float | None:
    """Return the share of an entry, pooled over seeds; None if it is not measured."""
    found = []
    for seed in record["seeds"].values():
        entry: Any = seed.get(name)
        for key in path:
            entry = None if entry is None else entry.get(key)
        if entry is not None:
            found.append(entry)
    return rate(_pooled(found)).value if found else None


def _pooled(counts: Sequence[Sequence[int]]) -> tuple[int, int]:
    return sum(k for k, _ in counts), sum(n for _, n in counts)


def _share(record: Record, name: str, *path: str) -> str:
    value = _value(record, name, *path)
    return "-" if value is None else f"{100 * value:.0f}"
