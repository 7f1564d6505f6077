"""Launches that reach no GPU: what Triton would compile for them on an H200.

The calls are real ones, on CPU tensors that are never written: the largest exist as addresses alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from rolesafe_kernels import api, decode, launch
from triton.backends.compiler import GPUTarget
from triton.compiler import make_backend
from triton.runtime.interpreter import InterpretedFunction
from triton.runtime.jit import JITFunction, create_function_from_signature

from benchmarks.throughput.cases import Case
from benchmarks.throughput.passes import DTYPE
from tests.benchmarks.test_inputs import CPU
from tools.inputs import Shape, make_inputs

PROCESSORS = 132
Key = tuple[str, str, str]
"""Kernel, and what Triton finds a compiled kernel by: its specialised arguments, its options."""


@cache
def binder_of(kernel: Any) -> Callable[..., Any]:
    """Return the function by which Triton specialises the arguments of a launch, for sm_90."""
    # kernels of the interpreter keep the function and what is not specialised
    jit = kernel if isinstance(kernel, JITFunction) else JITFunction(kernel.fn, **kernel.kwargs)
    return create_function_from_signature(jit.signature, jit.params, make_backend(GPUTarget("cuda", 90, 32)))


def key_of(kernel: Any, arguments: tuple[Any, ...], options: dict[str, Any]) -> Key:
    _, specialization, rest = binder_of(kernel)(*arguments, **options)
    return kernel.fn.__name__, str(specialization), str(sorted(rest.items()))


@contextmanager
def stubbed(monkeypatch: pytest.MonkeyPatch) -> Iterator[set[Key]]:
    """Within it, launches are noted instead of done, and the CPU counts as an H200."""
    keys: set[Key] = set()
    choose_splits = decode.choose_splits

    def note(kernel: Any, *arguments: Any, grid: Any, warmup: bool, **options: Any) -> None:
        keys.add(key_of(kernel, arguments, options))

    def empty(*size: int, dtype: torch.dtype | None = None, **_: Any) -> torch.Tensor:
        return torch.empty(size, dtype=dtype)

    with monkeypatch.context() as patch:
        for kind in (JITFunction, InterpretedFunction):
            patch.setattr(kind, "run", note)
        patch.setattr(launch, "INTERPRET", False)
        patch.setattr(launch, "architecture", lambda device: 90)
        patch.setattr(api, "unsupported", lambda *_: None)
        patch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(multi_processor_count=PROCESSORS))
        patch.setattr(decode, "choose_splits", lambda _, *sizes: choose_splits(SimpleNamespace(type="cuda"), *sizes))
        patch.setattr(torch, "randn", empty)
        yield keys


def keys_of(case: Case, shape: Shape, monkeypatch: pytest.MonkeyPatch) -> set[Key]:
    """Return the keys of a case of the fused kernel at a shape, of its backward too where T is S."""
    with stubbed(monkeypatch) as keys:
        x = make_inputs(shape, DTYPE, CPU, gradients=shape.square)
        out = case.build(x).call()
        if shape.square:
            torch.autograd.grad(out, list(x.leaves(case.features).values()), x.grad)
    return keys
