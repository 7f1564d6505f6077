"""Tables of compiled kernels, from `kernels/compiled.json`."""

from __future__ import annotations

import json
from pathlib import Path

RECORD = Path(__file__).parents[1] / "kernels" / "compiled.json"
KERNELS = ("forward", "dq", "dkdv", "decode")


def loops(arch: str, bits: str, dim: str) -> str:
    """Return a Markdown table of the main loops of an entry of a launch table, kernels down.

    Args:
        arch: Architecture, as ``"sm_90"``. `bits`: of a number. `dim`: Head dim.
    """
    record = json.loads(RECORD.read_text(encoding="utf-8"))
    versions = sorted(record)

    def cell(kernel: str, variant: str, field: str) -> str:
        return " / ".join(f"{x}" for x in values(kernel, variant, field))

    def values(kernel: str, variant: str, field: str) -> list[int]:
        name = f"{arch} {bits}/{dim} {kernel} {variant}"
        return [one["kernels"][name][one["fields"].index(field)] for one in map(record.__getitem__, versions)]

    lines = [
        f"| {arch}, {bits} bits, D = {dim}, main loop; triton {' / '.join(version[:-2] for version in versions)} "
        "| buffers | copies in flight | instructions, plain | bias | ratio |",
        f"|{' --- |' * 6}",
    ]
    for kernel in KERNELS:
        plain, bias = (values(kernel, variant, "instructions") for variant in ("plain", "bias"))
        ratio = " / ".join(f"{b / p:.2f}" for p, b in zip(plain, bias, strict=True))
        cells = [cell(kernel, "bias", field) for field in ("buffers", "waits")]
        cells += [cell(kernel, variant, "instructions") for variant in ("plain", "bias")]
        lines.append(f"| {kernel} | {' | '.join(cells)} | {ratio} |")
    return "\n".join(lines)
