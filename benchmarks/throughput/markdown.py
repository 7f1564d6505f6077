"""Tables of a record as markdown: ``python -m benchmarks.throughput.markdown FILE``."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.throughput.record import load
from benchmarks.throughput.targets import evaluate
from rolesafe.terminal import run_main

COLUMNS = {
    "forward": ("off", "bias", "half dedicated", "sdpa flash", "sdpa cudnn", "flex causal", "flex bias", "folded bias"),
    "decode graph": ("off", "bias", "sdpa flash", "sdpa cudnn", "sdpa default", "flex bias"),
}
COLUMNS["backward"] = COLUMNS["forward"]
COMPARED = {"bias": "off", "half dedicated": "sdpa cudnn"}
"""Columns that also show a ratio of time to another case."""
VERDICTS = {True: "reached", False: "not reached", None: "not measured"}


def target_lines(record: dict[str, Any]) -> Iterator[str]:
    """Yield the table of targets: goal, worst value and its place, best value, verdict."""
    rows = []
    for line in record["targets"] or evaluate(record):
        worst = "-" if line["worst"] is None else f"{line['worst']:.2f}x ({line['where']})"
        best = "-" if line["best"] is None else f"{line['best']:.2f}x"
        rows.append([line["name"], line["goal"], worst, best, VERDICTS[line["reached"]]])
    yield from table(["target", "goal", "worst", "best", "verdict"], rows, numbers=False)


def table(columns: Sequence[str], rows: Sequence[Sequence[str]], numbers: bool = True) -> Iterator[str]:
    """Yield the lines of a markdown table; the first column is text."""
    side = "--:" if numbers else ":--"
    yield f"| {' | '.join(columns)} |"
    yield f"| {' | '.join([':--', *[side] * (len(columns) - 1)])} |"
    for row in rows:
        yield f"| {' | '.join(row)} |"


def grid_cell(cell: dict[str, Any], case: str) -> str:
    """Format milliseconds and TFLOP/s of a case; a dash where it was not timed."""
    found = cell["cases"].get(case, {})
    if "p50_ms" not in found:
        return "-"
    text = f"{found['p50_ms']:.2f} ({found['tflops']:.0f})"
    ratio = cell["ratios"].get(f"{case} / {COMPARED[case]}") if case in COMPARED else None
    return f"{text}, {ratio['median']:.2f}x" if ratio else text


def cells_of(record: dict[str, Any], suite: str, dim: int) -> list[dict[str, Any]]:
    """Return the cells of a suite at a head dim, by T, S and B."""
    found = [cell for cell in record["cells"].values() if cell["suite"] == suite and cell["shape"].get("dim") == dim]
    return sorted(found, key=lambda cell: [cell["shape"][name] for name in ("queries", "keys", "batch")])


def grid_lines(record: dict[str, Any], suite: str, dim: int) -> Iterator[str]:
    """Yield the table of forward or backward."""
    found = cells_of(record, suite, dim)
    if not found:
        return
    columns = COLUMNS[suite]
    heads = [f"{name} (x {COMPARED[name]})" if name in COMPARED else name for name in columns]
    yield f"{suite.capitalize()}, D={dim}: milliseconds (TFLOP/s), p50"
    yield ""
    rows = [
        [f"B={c['shape']['batch']} T={c['shape']['keys']}", *(grid_cell(c, case) for case in columns)] for c in found
    ]
    yield from table(["", *heads], rows)
    yield ""


def decode_lines(record: dict[str, Any]) -> Iterator[str]:
    """Yield the table of decoding in a CUDA graph."""
    found = cells_of(record, "decode graph", 128)
    if not found:
        return
    yield "Decoding, D=128, CUDA graph: microseconds (k and v read, of copy bandwidth), p50"
    yield ""
    columns = COLUMNS["decode graph"]
    rows = []
    for cell in found:
        shape = cell["shape"]
        row = [f"T={shape['queries']} B={shape['batch']} S={shape['keys']}"]
        for case in columns:
            known = cell["cases"].get(case, {})
            share = f" ({100 * known['of_copy']:.0f}%)" if known.get("of_copy") else ""
            row.append(f"{1e3 * known['p50_ms']:.1f}{share}" if "p50_ms" in known else "-")
        rows.append(row)
    yield from table(["", *columns], rows)
    yield ""


def model_lines(record: dict[str, Any]) -> Iterator[str]:
    """Yield the table of training and generation."""
    rows = []
    for suite in ("train", "generate"):
        cell = record["cells"].get(suite)
        for name, case in (cell["cases"] if cell else {}).items():
            if "p50_ms" not in case:
                continue
            ratio = cell["ratios"].get(f"{name} / unpatched")
            times = f"{ratio['median']:.3f}x ({ratio['low']:.3f} to {ratio['high']:.3f})" if ratio else "-"
            peak = "-" if case.get("peak_mib") is None else f"{case['peak_mib']:.0f}"
            rows.append([f"{suite}, {name}", f"{case['p50_ms']:.1f}", f"{case['tokens_per_s']:.0f}", times, peak])
    if rows:
        yield from table(["model", "ms", "tokens/s", "time by unpatched (95% interval)", "peak MiB over weights"], rows)
        yield ""


SHORT = {"off": "bias / off", "sdpa cudnn": "bias / sdpa cudnn", "flex bias": "bias / flex bias"}


def short_lines(record: dict[str, Any], keys: Sequence[str]) -> Iterator[str]:
    """Yield a row for each of `keys`: time of the bias and its ratios, or the reason why there is none."""
    rows = []
    for key in keys:
        cell = record["cells"].get(key)
        if cell is None:
            reason = record["not_measured"].get(key, "no time left")
            rows.append([key, "-", *("-" for _ in SHORT), "-", f"not measured: {reason}"])
            continue
        bias = cell["cases"].get("bias", {})
        ratios = [cell["ratios"].get(name, {}).get("median") for name in SHORT.values()]
        whole = cell["ratios"].get("bias / unpatched", {}).get("median")
        said = [f"{name}: {case['failed']}" for name, case in cell["cases"].items() if "failed" in case]
        rows.append(
            [
                key,
                f"{bias['p50_ms']:.3f}" if "p50_ms" in bias else "-",
                *("-" if ratio is None else f"{ratio:.2f}x" for ratio in ratios),
                "-" if whole is None else f"{whole:.3f}x",
                f"WRONG: {'; '.join(said)}" if said else "",
            ]
        )
    heads = ["cell", "bias, ms", *(f"by {name}" for name in SHORT), "by unpatched", "note"]
    yield from table(heads, [[text.replace("|", "/") for text in row] for row in rows])


def absent_lines(record: dict[str, Any]) -> Iterator[str]:
    """Yield the cases that were not timed, each with its first reason."""
    reasons: dict[tuple[str, str], str] = {}
    for key, cell in record["cells"].items():
        for name, case in cell["cases"].items():
            for status in ("failed", "unavailable", "skipped"):
                if status in case:
                    reasons.setdefault((name, status), f"{key}: {case[status]}")
    for (name, status), reason in reasons.items():
        yield f"- {name}: {status}; {reason.replace('|', '/')}"
    for key, reason in record["not_measured"].items():
        yield f"- {key}: not measured; {reason.replace('|', '/')}"
    if others := record["settings"].get("not_asked"):
        yield f"- not asked for (`--all`): {', '.join(others)}"


def lines(record: dict[str, Any]) -> Iterator[str]:
    """Yield the whole record as markdown."""
    where, top = record["environment"], record["ceilings"]
    names = {"driver": "driver", "cuda": "CUDA", "cudnn": "cuDNN"} | {x: x for x in ("torch", "triton", "transformers")}
    versions = ", ".join(f"{said} {where.get(name)}" for name, said in names.items())
    changed = {True: " with changes", False: "", None: f" (without git; sources {where['sources']})"}[
        where["uncommitted_changes"]
    ]
    yield f"{where['gpu']}, {versions}; commit {where['commit']}{changed}; {where['date'][:10]}."
    if top:
        side = top["matmul_side"]
        yield f"Measured ceilings: {top['matmul_tflops']:.0f} TFLOP/s (bf16 product of {side} x {side} matrices), "
        yield f"{top['copy_gb_per_s']:.0f} GB/s (copy, read and written)."
    yield ""
    yield from target_lines(record)
    yield ""
    for dim in (128, 64):
        for suite in ("forward", "backward"):
            yield from grid_lines(record, suite, dim)
    yield from decode_lines(record)
    yield from model_lines(record)
    yield from absent_lines(record)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Print the tables of a record as markdown.")
    parser.add_argument("file", type=Path)
    print("\n".join(lines(load(parser.parse_args(arguments).file))))


if __name__ == "__main__":
    run_main(main)
