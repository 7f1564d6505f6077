"""Throughput of the fused kernel on an NVIDIA GPU, compared with its peers: ``python -m benchmarks.throughput``.

Cases, options and the format of the record: ``benchmarks/README.md``.
"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

# The checkout is measured, not an installed copy.
for folder in (ROOT / "kernels", ROOT):
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
