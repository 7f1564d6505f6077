"""Where there is no GPU, Triton's interpreter runs the kernels on CPU tensors.

It has to be chosen before triton is imported.
"""

from __future__ import annotations

import os

import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")
