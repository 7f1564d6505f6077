"""Summary of the runs of `gcg.py`: means, ratios, their intervals, and a table."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Any

from rich.table import Table

from rolesafe.terminal import as_text

NANOGCG, ROLESAFE, UNCACHED = KINDS = ("nanogcg", "rolesafe", "rolesafe without prefix")
NLL, MELLOWMAX, LOGITS = MEASURES = ("nll", "mellowmax", "mellowmax of logits")


def interval(values: Sequence[float]) -> dict[str, float | None]:
    """Return the mean and its 95% interval (Student's t); the bounds are None for fewer than two values."""
    from scipy.stats import t  # nanoGCG needs scipy too

    n, mean = len(values), statistics.fmean(values)
    if n < 2:
        return {"mean": mean, "low": None, "high": None, "n": n}
    half = float(t.ppf(0.975, n - 1)) * statistics.stdev(values) / math.sqrt(n)
    return {"mean": mean, "low": mean - half, "high": mean + half, "n": n}


def ratio(logs: Sequence[float]) -> dict[str, float | None]:
    """Return the geometric mean of ratios, given as logarithms, with its 95% interval."""
    found = interval(logs)
    return {name: value if name == "n" or value is None else math.exp(value) for name, value in found.items()}


def summary(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return losses and times of one variant: differences and ratios within turns, over turns and examples' means."""
    of = {kind: [r for r in runs if r["kind"] == kind] for kind in KINDS}
    examples = [(r["request"], r["wanted"]) for r in of[NANOGCG]]

    def by_example(values: Sequence[float]) -> list[float]:
        pairs = list(zip(examples, values, strict=True))
        return [statistics.fmean(v for e, v in pairs if e == one) for one in dict.fromkeys(examples)]

    def differences(measure: str) -> list[float]:
        return [a["loss"][measure] - b["loss"][measure] for a, b in zip(of[ROLESAFE], of[NANOGCG], strict=True)]

    def logs(kind: str, key: str) -> list[float]:
        return [math.log(a[key] / b[key]) for a, b in zip(of[kind], of[NANOGCG], strict=True)]

    ours = (ROLESAFE, UNCACHED)
    return {
        "turns": len(examples),
        "start": interval([r["start"][NLL] for r in of[NANOGCG]]),
        "loss": {kind: interval([r["loss"][NLL] for r in of[kind]]) for kind in KINDS},
        "loss_difference": {measure: interval(differences(measure)) for measure in MEASURES},
        "loss_difference_of_examples": {measure: interval(by_example(differences(measure))) for measure in MEASURES},
        "seconds": {kind: interval([r["seconds"] for r in of[kind]]) for kind in KINDS},
        "seconds_without_collections": {kind: interval([r["working"] for r in of[kind]]) for kind in KINDS},
        "time_ratio": {kind: ratio(logs(kind, "seconds")) for kind in ours},
        "time_ratio_of_examples": {kind: ratio(by_example(logs(kind, "seconds"))) for kind in ours},
        "time_ratio_without_collections": {kind: ratio(logs(kind, "working")) for kind in ours},
        "largest_gap": {kind: max((r["gap"] for r in of[kind] if r["reads_back"]), default=None) for kind in KINDS},
        "reads_back": {kind: sum(r["reads_back"] for r in of[kind]) for kind in KINDS},
    }


def show(record: dict[str, Any]) -> Table:
    """Return a table of loss and time of each tool, with intervals."""
    table = Table(title=as_text(f"GCG on {record['model']}{'' if record['complete'] else ', not complete'}"))
    for column in ("variant", "tool", "loss", "less nanoGCG", "seconds", "x nanoGCG", "x without collections"):
        table.add_column(column)

    def text(found: dict[str, float | None] | None) -> str:
        if found is None:
            return ""
        return f"{found['mean']:.3f}" + ("" if found["low"] is None else f" [{found['low']:.3f}, {found['high']:.3f}]")

    for variant, found in record["variants"].items():
        for kind in KINDS:
            less = found["loss_difference"][NLL] if kind == ROLESAFE else None
            times = [found[name].get(kind) for name in ("time_ratio", "time_ratio_without_collections")]
            seconds = f"{found['seconds'][kind]['mean']:.1f}"
            table.add_row(variant, kind, text(found["loss"][kind]), text(less), seconds, *map(text, times))
    return table
