"""Development tools of the fused kernel; not installed. Run them in `kernels/`, in the checkout that is measured.

    python -m tools.offline           compile every launch-table entry without a GPU and compare with compiled.json
    python -m tools.counters          count the blocks of keys that a launch reads, by kind
    python -m tools.host              time all that the CPU does for a call and a patched layer, without a GPU
    python -m tools.tune              time tiles on the GPU at hand and rewrite its launch table

`inputs` makes the tensors of a call, `gate` compares results with the specification in fp64, `timing` times calls in
rounds, `gpu` runs work on a GPU in processes under limits. ``python -m benchmarks.throughput`` uses them all: checks,
benchmark and tuning in one run.
"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

for folder in (ROOT / "kernels", ROOT):
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))

PRELOAD = ("rolesafe_kernels.backward", "rolesafe.attention")
"""Modules that every worker process of the tools imports."""
