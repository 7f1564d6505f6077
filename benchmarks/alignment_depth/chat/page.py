"""Part of docs/alignment-depth.md that comes from the record of the chat model."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from benchmarks.alignment_depth.chat.arms import ARMS
from benchmarks.alignment_depth.chat.measure import FORCED
from benchmarks.alignment_depth.page import entries
from rolesafe.attacks import Rate

RESULTS: Final = Path(__file__).parents[2] / "results" / "alignment_depth_chat.json"
NOTHING: Final = "Not measured yet."

Record = Mapping[str, Any]


def block(kind: str) -> str:
    """Return the Markdown of one table: ``recovery``, ``costs`` or ``criteria``; a sentence without a record.

    Raises:
        ValueError: The table is unknown.
    """
    makers: dict[str, Callable[[Record], str]] = {"recovery": _recovery, "costs": _costs, "criteria": _criteria}
    if kind not in makers:
        raise ValueError(f"`kind`: expected one of {sorted(makers)}, got {kind!r}")
    if not RESULTS.exists():
        return NOTHING
    return makers[kind](json.loads(RESULTS.read_text(encoding="utf-8")))


def _recovery(record: Record) -> str:
    settings, seeds = record["settings"], len(record["seeds"])
    about = (
        f"{settings['model']}; {seeds} seed{'s' * (seeds > 1)}, {settings['n']} harmful prompts, {settings['steps']} "
        f"steps for each arm; {record['environment']['hardware']}."
    )
    lines = [about, "", f"| arm | {' | '.join(f'k = {k}' for k in FORCED)} | inserted | description |"]
    lines.append(f"| --- |{' --: |' * (len(FORCED) + 1)} --- |")
    for name in _measured(record):
        cells = [_both(record, name, str(k)) for k in FORCED]
        cells.append(_share(record, name, "recovery", "insertion"))
        lines.append(f"| `{name}` | {' | '.join(cells)} | {ARMS[name].about} |")
    if missing := [f"`{name}`" for name in ARMS if name not in _measured(record)]:
        lines += ["", f"Not measured yet: {', '.join(missing)}."]
    return "\n".join(lines)


def _costs(record: Record) -> str:
    lines = ["| arm | XSTest refused | benign refused | benign, 10 tokens forced | banned decoding | KL to `base` |"]
    lines.append("| --- | --: | --: | --: | --: | --: |")
    for name in _measured(record):
        kinds = ("xstest refused", "benign refused", "benign forced refused", "banned")
        kl = _mean(record, name, "kl")
        cells = [_share(record, name, kind, places=1) for kind in kinds] + ["-" if kl is None else f"{kl:.3f}"]
        lines.append(f"| `{name}` | {' | '.join(cells)} |")
    return "\n".join(lines)


def _criteria(record: Record) -> str:
    known = _measured(record)
    if missing := [name for name in ("plain", "ada") if name not in known]:
        return f"Needs {' and '.join(f'`{name}`' for name in missing)}."
    deep = [k for k in FORCED if k]
    lines = ["| arm | k with at least the recovery of `ada` | XSTest, points above `plain` | KL / KL of `plain` |"]
    lines.append("| --- | --- | --: | --: |")
    plain, kl = _value(record, "plain", "xstest refused"), _mean(record, "plain", "kl")
    for name in known:
        if name in ("base", "plain", "ada"):
            continue
        won = [k for k in deep if _at_least(_value(record, name, "within", str(k)),
                                            _value(record, "ada", "within", str(k)))]  # fmt: skip
        share, own = _value(record, name, "xstest refused"), _mean(record, name, "kl")
        points = "-" if share is None or plain is None else f"{100 * (share - plain):+.1f}"
        ratio = f"{own / kl:.2f}" if own is not None and kl else "-"
        shown = "all" if won == deep else ", ".join(map(str, won)) or "none"
        lines.append(f"| `{name}` | {shown} | {points} | {ratio} |")
    return "\n".join(lines)


def _measured(record: Record) -> list[str]:
    return [name for name in ARMS if any(name in seed for seed in record["seeds"].values())]


def _at_least(ours: float | None, theirs: float | None) -> bool:
    return ours is not None and theirs is not None and ours >= theirs


def _both(record: Record, name: str, k: str) -> str:
    """Return the share of recoveries within the judged tokens, and the mean likelihood."""
    likelihood = _mean(record, name, "likelihood", k)
    shown = "-" if likelihood is None else f"{100 * likelihood:.0f}"
    return f"{_share(record, name, 'within', k)} / {shown}"


def _value(record: Record, name: str, *path: str) -> float | None:
    """Return a share, pooled over seeds."""
    found = entries(record, name, *path)
    return Rate(sum(k for k, _ in found), sum(n for _, n in found)).value if found else None


def _mean(record: Record, name: str, *path: str) -> float | None:
    found = entries(record, name, *path)
    return sum(found) / len(found) if found else None


def _share(record: Record, name: str, *path: str, places: int = 0) -> str:
    value = _value(record, name, *path)
    return "-" if value is None else f"{100 * value:.{places}f}"
