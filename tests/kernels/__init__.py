"""Tests of the fused kernels by Triton's interpreter, on CPU tensors. On a machine with a GPU: TRITON_INTERPRET=1."""

import pytest

pytest.importorskip("triton", reason="the fused kernels need the package triton, not there for every platform")

from rolesafe_kernels.launch import INTERPRET

if not INTERPRET:
    pytest.skip("these tests need Triton's interpreter: set TRITON_INTERPRET=1", allow_module_level=True)
