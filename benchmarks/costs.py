"""Tables of time and memory on a CPU, from the record of `benchmarks/attention_cpu.py`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

RECORD = Path(__file__).parent / "results" / "attention_cpu.json"


def costs(quantity: str) -> str:
    """Return a Markdown table of the record, cases down, passes and lengths across.

    Args:
        quantity: ``"time"``: multiples of plain attention; ``"memory"``: rise of the peak over the inputs, in MiB.
    """
    record = json.loads(RECORD.read_text(encoding="utf-8"))
    results, where = record["results"], record["environment"]
    heads = [f"{one['pass']}, L={one['length']}" for one in results]
    lines = [
        f"`attention_cpu.json`, commit {where['commit'][:7]}, torch {where['torch']}, {where['threads']} threads of an "
        f"{where['cpu']}; B=1, H={record['settings']['heads']}, D={record['settings']['head_dim']}, fp32.",
        "",
        f"| {quantity} | {' | '.join(heads)} |",
        f"| :-- |{' --: |' * len(results)}",
    ]
    for case in results[0]["cases"]:
        cells = [_cell(quantity, case, one["cases"].get(case)) for one in results]
        lines.append(f"| {case} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(quantity: str, case: str, measured: dict[str, Any] | None) -> str:
    if measured is None:
        return "-"
    if quantity == "memory":
        return f"{measured['increase_mib']:.0f} MiB"
    return f"{measured['p50_ms']:.0f} ms" if case == "plain" else f"{measured['ratio']:.2f}x"
