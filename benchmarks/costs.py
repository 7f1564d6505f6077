"""Tables of time and memory on a CPU, from the records of `attention_cpu.py` and `decode_cpu.py`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

RECORD = Path(__file__).parent / "results" / "attention_cpu.json"
DECODE = RECORD.with_name("decode_cpu.json")


def costs(quantity: str) -> str:
    """Return a Markdown table of the record, cases down, passes and lengths across.

    Args:
        quantity: ``"time"``: multiples of plain attention; ``"memory"``: rise of the peak over the inputs, in MiB;
            ``"decode"``: one token of a patched model, as a multiple of the unpatched one.
    """
    if quantity == "decode":
        return _decode()
    record = json.loads(RECORD.read_text(encoding="utf-8"))
    results, where = record["results"], record["environment"]
    heads = [f"{one['pass']}, L={one['length']}" for one in results]
    lines = [
        f"`attention_cpu.json`, commit {where['commit'][:7]}, torch {where['torch']}, {_threads(where)} of an "
        f"{where['cpu']}; B=1, H={record['settings']['heads']}, D={record['settings']['head_dim']}, fp32.",
        "",
        f"| {quantity} | {' | '.join(heads)} |",
        f"| :-- |{' --: |' * len(results)}",
    ]
    for case in results[0]["cases"]:
        cells = [_cell(quantity, case, one["cases"].get(case)) for one in results]
        lines.append(f"| {case} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _threads(where: dict[str, Any]) -> str:
    return "1 thread" if where["threads"] == 1 else f"{where['threads']} threads"


def _decode() -> str:
    record = json.loads(DECODE.read_text(encoding="utf-8"))
    where, settings, results = record["environment"], record["settings"], record["results"]
    lines = [
        f"`{DECODE.name}`, commit {where['commit'][:7]}, torch {where['torch']}, {_threads(where)} of an "
        f"{where['cpu']}; {settings['layers']} layers, d={settings['hidden']}, fp32; median and 95% interval.",
        "",
        f"| keys | {' | '.join(str(one['length']) for one in results)} |",
        f"| :-- |{' --: |' * len(results)}",
        "| unpatched | " + " | ".join(f"{one['models']['unpatched']['p50_ms']:.1f} ms" for one in results) + " |",
    ]
    for model in results[0]["models"]:
        if model != "unpatched":
            ratios = [one["models"][model]["ratio"] for one in results]
            cells = [f"{x['median']:.2f}x ({x['low']:.2f} to {x['high']:.2f})" for x in ratios]
            lines.append(f"| {model} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(quantity: str, case: str, measured: dict[str, Any] | None) -> str:
    if measured is None:
        return "-"
    if quantity == "memory":
        return f"{measured['increase_mib']:.0f} MiB"
    return f"{measured['p50_ms']:.0f} ms" if case == "plain" else f"{measured['ratio']:.2f}x"
