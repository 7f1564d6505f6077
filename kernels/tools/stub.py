"""A GPU that is not there: launches are looked up and counted as on a device, and nothing runs.

Triton's own code runs up to the call of its launcher, but for the compilation of kernels. Results are unwritten memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import rolesafe_kernels
from rolesafe_kernels import api
from rolesafe_kernels.launch import INTERPRET
from rolesafe_kernels.replay import HANDLES, PLANS
from triton.backends.compiler import GPUTarget
from triton.compiler import CompiledKernel
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from rolesafe.patching import masks
from tools.launches import KERNELS

Seen = Callable[[CompiledKernel, tuple[int, ...], tuple[Any, ...]], None]
"""Called with the compiled kernel, the grid and the arguments of a launch."""


class _Utilities:
    def unload_module(self, module: object) -> None:
        """Do nothing: no module was loaded."""


class StubDriver:
    """Driver of Triton for one device without memory or processors.

    Attributes:
        launches: Number of launches so far.
        lookups: Number of those that went through `JITFunction.run`.
        see: Called at each launch; None: nothing is.
    """

    def __init__(self, capability: int) -> None:
        self.target = GPUTarget("cuda", capability, 32)
        self.utils = _Utilities()
        self.launches = 0
        self.lookups = 0
        self.see: Seen | None = None

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int | None = None) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return self.target

    def compiled(self, name: str) -> CompiledKernel:
        """Return a kernel that was never compiled, whose launches are counted."""
        kernel = object.__new__(CompiledKernel)

        def launch(x: int, y: int, z: int, stream: int, function: object, packed: object, *others: Any) -> None:
            self.launches += 1
            if self.see is not None:
                self.see(kernel, (x, y, z), others[3:])

        fields = {"module": 1, "_module_pid": -1, "function": 1, "_run": launch, "packed_metadata": (), "name": name}
        kernel.__dict__.update(fields, src=None, hash="", metadata_group={})
        return kernel


@contextmanager
def stub_device(capability: int = 90) -> Iterator[StubDriver]:
    """Within it, the fused kernel takes CPU tensors as on a GPU, and its launches do nothing.

    Raises:
        RuntimeError: TRITON_INTERPRET is set, so kernels are interpreted instead of launched.
    """
    if INTERPRET:
        raise RuntimeError(
            "`TRITON_INTERPRET`: expected unset, got set; interpreted kernels are not launched. Unset it."
        )
    stub, usual = StubDriver(capability), JITFunction.run

    def compile_kernel(self: Any, key: str, signature: Any, device: int, *others: Any) -> CompiledKernel:
        self.device_caches[device][0][key] = found = stub.compiled(self.__name__)
        return found

    def run(self: Any, *arguments: Any, **options: Any) -> Any:
        stub.lookups += 1
        return usual(self, *arguments, **options)

    def forget() -> None:
        for kernel in {id(kernel): kernel for kernel in KERNELS.values()}.values():
            kernel.device_caches.clear()
        HANDLES.clear()
        PLANS.clear()

    def supported(*_: Any) -> None:
        return None

    forget()
    with ExitStack() as stack:
        stack.callback(forget)
        stack.enter_context(mock.patch.object(driver, "_active", stub))
        for owner, name, value in (
            (JITFunction, "_do_compile", compile_kernel),
            (JITFunction, "run", run),
            (api, "unsupported", supported),
            (rolesafe_kernels, "unsupported", supported),
            (masks, "COMPACT_DEVICES", ("cpu", "cuda")),
        ):
            stack.enter_context(mock.patch.object(owner, name, value))
        yield stub
