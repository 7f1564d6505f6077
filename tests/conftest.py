"""Where there is no GPU, Triton's interpreter runs the kernels on CPU tensors.

It has to be chosen before triton is imported.
"""

from __future__ import annotations

import gc
import os

import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")


def pytest_collection_finish() -> None:
    """Leave what is imported by now out of garbage collection: going through all of it takes up to a second."""
    gc.freeze()


def pytest_sessionfinish() -> None:
    """At the end of the process what is frozen would be reported as leaked."""
    gc.unfreeze()
