"""Kernels are interpreted as in `quick`."""

from tests.kernels.quick import quicken

quicken()
