"""Launches of a call, kept to be repeated with other tensors of the same form.

Triton looks a kernel up by all arguments of a launch, and a call computes grids, strides and constants before it. In a
model this is the same in every layer and, with a static cache, at every step. A `Tape` does a call and keeps its
allocations and launches as a `Program`, which knows each tensor by its place among the inputs and new tensors of the
call. The same program repeats them for calls of the same form (shapes, strides, dtypes, device, settings).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from operator import itemgetter
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad
from triton import knobs
from triton.compiler import CompiledKernel
from triton.runtime import driver
from triton.runtime.interpreter import InterpretedFunction
from triton.runtime.jit import JITFunction

ALIGNMENT = 16
"""Bytes. Kernels are compiled for pointers that are multiples of it and for others."""
MOST = 1024
"""Entries of a `Kept`."""


class Kept:
    """Values by what they were computed from. Starts again when it is full: a cache grows by a key a token."""

    bypassed = False

    def __init__(self) -> None:
        self._values: dict[Any, Any] = {}

    def find(self, key: Any) -> Any:
        """Return the value under `key`; None where there is none, and within :func:`bypassed`."""
        return None if Kept.bypassed else self._values.get(key)

    def keep(self, key: Any, value: Any) -> None:
        """Keep `value` under `key`."""
        if Kept.bypassed:
            return
        if len(self._values) >= MOST:
            self._values.clear()
        self._values[key] = value

    def clear(self) -> None:
        """Forget all values."""
        self._values.clear()


HANDLES, PLANS = Kept(), Kept()
"""Kernels by the arguments that Triton compiles for; what a call of one form does."""


@contextmanager
def bypassed() -> Iterator[None]:
    """Within it, calls find nothing of earlier ones and leave nothing: for other launch tables or kernels."""
    before, Kept.bypassed = Kept.bypassed, True
    try:
        yield
    finally:
        Kept.bypassed = before


def aligned(*tensors: Tensor | None) -> bool:
    """Return True where all `tensors` start at a multiple of `ALIGNMENT`."""
    bits = 0
    for x in tensors:
        if x is not None:
            bits |= x.data_ptr()
    return bits % ALIGNMENT == 0


class Step(NamedTuple):
    """One launch: a kernel that is looked up, its grid, and a getter of its arguments from the pool of a program."""

    handle: Any
    grid: tuple[int, int, int]
    arguments: Any


class Program(NamedTuple):
    """Allocations and launches of a call.

    Attributes:
        fresh: Size, strides and dtype of each new tensor.
        constants: Arguments that are no tensors. The pool is the inputs, the new tensors, and these.
        steps: Launches in order.
        result: Place of the returned tensor in the pool.
        compiled: True where all kernels are compiled ones, False under TRITON_INTERPRET.
    """

    fresh: tuple[tuple[tuple[int, ...], tuple[int, ...], torch.dtype], ...]
    constants: list[Any]
    steps: tuple[Step, ...]
    result: int
    compiled: bool

    def pool(self, inputs: Sequence[Tensor | None], device: torch.device) -> list[Any]:
        """Return the pool of a call with `inputs`, in the order of the recording: they, new tensors and constants."""
        fresh = [torch.empty_strided(size, stride, dtype=dtype, device=device) for size, stride, dtype in self.fresh]
        return [*inputs, *fresh, *self.constants]

    def stream(self, device: torch.device) -> int | None:
        """Return the stream of `device` on which the launches are ordered; None for interpreted kernels."""
        return driver.active.get_current_stream(device.index) if self.compiled else None

    def __call__(self, pool: list[Any], stream: int | None) -> Tensor:
        """Repeat the launches with the tensors of `pool`. The caller checks the form and alignment of its inputs."""
        if stream is None or is_watched():
            for handle, grid, arguments in self.steps:
                handle[grid](*arguments(pool))
        else:
            for handle, (x, y, z), arguments in self.steps:  # as `handle[grid]` does where nobody watches
                handle.run(
                    x, y, z, stream, handle.function, handle.packed_metadata, None, None, None, *arguments(pool)
                )  # fmt: skip
        return pool[self.result]


class Tape:
    """Does the allocations and launches of one call, and keeps them.

    Args:
        inputs: Tensors of the call, each object at most once; None where one is absent.
    """

    def __init__(self, inputs: Sequence[Tensor | None] = ()) -> None:
        self._inputs = len(inputs)
        # the list keeps every tensor alive, so no id is used twice
        self._tensors: list[Tensor | None] = [*inputs]
        self._places = {id(x): place for place, x in enumerate(inputs) if x is not None}
        self._steps: list[tuple[Any, tuple[int, int, int], tuple[Any, ...]]] = []
        self._complete = len(self._places) == sum(x is not None for x in inputs)

    def empty(
        self, size: tuple[int, ...], dtype: torch.dtype, device: torch.device, stride: tuple[int, ...] | None = None
    ) -> Tensor:
        """Return an unwritten tensor, dense unless `stride` is given."""
        x = torch.empty_strided(size, dense_strides(size) if stride is None else stride, dtype=dtype, device=device)
        self._places[id(x)] = len(self._tensors)
        self._tensors.append(x)
        return x

    def launch(self, kernel: Any, grid: tuple[int, int, int], *arguments: Any, **constants: Any) -> None:
        """Launch `kernel`; arguments as in ``kernel[grid](...)``."""
        handle = launch(kernel, grid, *arguments, **constants)
        if handle is None:
            self._complete = False
            return
        names = kernel.arg_names[len(arguments) :]
        self._steps.append((handle, grid, (*arguments, *map(constants.__getitem__, names))))

    def program(self, result: Tensor) -> tuple[Program, list[Any]] | None:
        """Return the program of the call that gave `result` and its pool; None for tensors of another origin."""
        constants: list[Any] = []
        start, steps = len(self._tensors), []
        for handle, grid, arguments in self._steps:
            places = [*map(self._places.get, map(id, arguments))]
            for i, place in enumerate(places):
                if place is None:
                    if not isinstance(arguments[i], (int, float, str)):
                        return None
                    places[i] = start + len(constants)
                    constants.append(arguments[i])
            steps.append(Step(handle, grid, itemgetter(*places)))
        if not self._complete or id(result) not in self._places:
            return None
        made = (x for x in self._tensors[self._inputs :] if x is not None)
        fresh = tuple((tuple(x.shape), x.stride(), x.dtype) for x in made)
        compiled = all(isinstance(step.handle, CompiledKernel) for step in steps)
        program = Program(fresh, constants, tuple(steps), self._places[id(result)], compiled)
        return program, [*self._tensors, *constants]


def dense_strides(size: tuple[int, ...]) -> tuple[int, ...]:
    """Return the strides of a dense tensor."""
    strides = [1]
    for length in reversed(size[1:]):
        strides.append(strides[-1] * max(length, 1))
    return tuple(reversed(strides))


def distinct(inputs: Iterable[Tensor | None]) -> list[Tensor | None]:
    """Return `inputs` with an object of its own for each: a tensor that is there twice gets an alias."""
    seen: set[int] = set()
    found: list[Tensor | None] = []
    for x in inputs:
        found.append(x.detach() if x is not None and id(x) in seen else x)
        seen.add(id(x))
    return found


def launch(kernel: Any, grid: tuple[int, int, int], *arguments: Any, **constants: Any) -> Any:
    """Launch `kernel` as ``kernel[grid](*arguments, **constants)`` does, with a look-up of our own.

    Return the kernel that was found, to launch it again with arguments in the order of its parameters: compiled, or
    interpreted under TRITON_INTERPRET. None where another launch may find another kernel.
    """
    if type(kernel) is not JITFunction:
        kernel[grid](*arguments, **constants)
        return kernel if isinstance(kernel, InterpretedFunction) else None
    device = torch.cuda.current_device() if arguments[0].is_cuda else -1
    key = (id(kernel), device, tuple(map(specialization, arguments)), *constants.items())
    handle = HANDLES.find(key)
    if handle is None:
        handle = kernel[grid](*arguments, **constants)
        if type(handle) is not CompiledKernel or kernel.pre_run_hooks:
            return None  # compiled in the background, or somebody watches
        HANDLES.keep(key, handle)
    else:
        names = kernel.arg_names[len(arguments) :]
        handle[grid](*arguments, *map(constants.__getitem__, names))
    return handle


def specialization(x: Any) -> Any:
    """Return all that Triton compiles a kernel for in the argument `x`, or more.

    For a number its width, 1, and divisibility; for a tensor its dtype and alignment; for a descriptor its block.
    """
    if type(x) is int:
        return x == 1, x % ALIGNMENT == 0, x.bit_length() // 32
    if isinstance(x, Tensor):
        return x.dtype, x.data_ptr() % ALIGNMENT == 0
    if isinstance(x, (float, bool)):
        return type(x)
    return type(x), x.base.dtype, tuple(x.block_shape)


def is_watched() -> bool:
    """Return True where hooks of Triton (a profiler's) see each launch."""
    runtime = knobs.runtime
    return bool(
        getattr(runtime.launch_enter_hook, "calls", runtime.launch_enter_hook)
        or getattr(runtime.launch_exit_hook, "calls", runtime.launch_exit_hook)
    )


PLAIN = (Tensor, torch.nn.Parameter, type(None))


# looked up once: a repeated call asks all of them, and little else
_is_compiling, _tracing = torch.compiler.is_compiling, torch._C._get_tracing_state
_dispatch_modes, _function_modes = torch._C._len_torch_dispatch_stack, torch._C._len_torch_function_stack
_transforms = torch._C._functorch.peek_interpreter_stack


def is_eager(*tensors: Tensor | None) -> bool:
    """Return True where a call may go to the kernels directly: nothing traces, transforms or watches it.

    False under torch.compile, torch.export, torch.jit.trace, functorch transforms, forward-mode AD and modes of
    PyTorch's dispatch (fake tensors, make_fx, selective checkpointing, counters), and for subclasses of a tensor: these
    take the registered operations.
    """
    return not is_intercepted() and all(map(PLAIN.__contains__, map(type, tensors)))


def is_intercepted() -> bool:
    """Return True where something traces, transforms or watches the operations on plain tensors, see `is_eager`."""
    return bool(
        _is_compiling()
        or _dispatch_modes()
        or _function_modes()
        or _transforms() is not None
        or _tracing() is not None
        or forward_ad._current_level >= 0
    )


def form(x: Tensor | None) -> Any:
    """Return all of a tensor that a plan depends on, except for the alignment of its start."""
    return None if x is None else (x.shape, x.stride(), x.dtype, x.device)
