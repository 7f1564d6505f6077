"""Launches with other tiles than the table's, recorded so that one kernel of a call can be repeated alone."""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
import triton
from rolesafe_kernels import backward, forward, launch, layout
from rolesafe_kernels.launch import Launch, Tile
from rolesafe_kernels.replay import bypassed

KERNELS = {
    "lists": layout.role_lists_kernel,
    "rows": backward.role_attn_bwd_rows_kernel,
    "merge": forward.role_attn_merge_kernel,
    "forward": forward.role_attn_fwd_kernel,
    "decode": forward.role_attn_fwd_kernel,
    "dq": backward.role_attn_bwd_dq_kernel,
    "dkdv": backward.role_attn_bwd_dkdv_kernel,
}


class Usage(NamedTuple):
    """Registers per thread, bytes of stack (where spilled registers go) and of shared memory."""

    registers: int
    stack: int
    shared: int


def dump(compiled: Any, *options: str) -> str:
    """Return what cuobjdump says of a compiled kernel."""
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        return subprocess.run([str(tool), *options, file.name], capture_output=True, text=True, check=True).stdout


def resource_usage(compiled: Any) -> Usage:
    """Return the resources of a compiled kernel, as the assembler reports them."""
    out = dump(compiled, "--dump-resource-usage")
    found = re.search(r"REG:(\d+) STACK:(\d+)", out)
    if found is None:
        raise RuntimeError(f"cuobjdump: expected a line with REG and STACK, got {out!r}")
    return Usage(int(found[1]), int(found[2]), compiled.metadata.shared)


@contextmanager
def replaced(value: Any, substitute: Any) -> Iterator[None]:
    """Within it, modules of the kernels that imported `value` by name find `substitute`; `launch` keeps its own."""
    modules = [m for name, m in sys.modules.items() if name.startswith("rolesafe_kernels.") and m is not launch]
    found = [(module, name) for module in modules for name, own in vars(module).items() if own is value]
    for module, name in found:
        setattr(module, name, substitute)
    try:
        with bypassed():  # nothing that was kept with the other one
            yield
    finally:
        for module, name in found:
            setattr(module, name, value)


@contextmanager
def launched(change: Callable[[Launch], Launch]) -> Iterator[None]:
    """Within it, kernels are launched with `change` of the table's entry."""

    def launch_of(device: torch.device, dtype: torch.dtype, dim: int) -> Launch:
        return change(launch.launch_of(device, dtype, dim))

    with replaced(launch.launch_of, launch_of):
        yield


def launched_with(kernel: str, tile: Tile) -> AbstractContextManager[None]:
    """Within it, `kernel` is launched with `tile`, whatever the table holds."""
    return launched(lambda entry: entry._replace(**{kernel: tile}))


class Recorder:
    """Substitute of a kernel that launches it (or only compiles it) and keeps the launch for repetition."""

    def __init__(self, kernel: Any, compile_only: bool = False) -> None:
        self.kernel, self.compile_only = kernel, compile_only
        self.repeat: Callable[[], Any] = lambda: None
        self.compiled: Any = None

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            self.repeat = partial(self.kernel[grid], *arguments, **options)
            if self.compile_only:
                self.compiled = self.kernel.warmup(*arguments, grid=grid, **options)
            else:
                self.compiled = self.repeat()
            return self.compiled

        return call


def record(kernel: str, tile: Tile, call: Callable[[], Any], compile_only: bool = False) -> tuple[Any, Recorder]:
    """Run `call` with `tile` for `kernel`; return its value and the recorded launch."""
    recorder = Recorder(KERNELS[kernel], compile_only)
    with launched_with(kernel, tile), replaced(recorder.kernel, recorder):
        return call(), recorder
