"""What tuning asks of a GPU: candidates compiled in parallel, checked against eager attention in fp64, timed in rounds.

B batch, H query heads, G key/value heads, T queries, S keys, D head dim, R roles
"""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from rolesafe_kernels import api, launch
from rolesafe_kernels.crew import Crew, Lost
from rolesafe_kernels.launch import Launch, Tile
from rolesafe_kernels.offline import KERNELS, resource_usage

COMPILE_LIMIT = 180.0
"""Seconds that one compilation may take, the start of its process included."""


class Pair(NamedTuple):
    """What is tuned at a time: a kernel and an entry of the table."""

    bits: int
    width: int
    kernel: str

    @property
    def entry(self) -> str:
        return f"{self.bits}/{self.width}"


class Shape(NamedTuple):
    """One problem."""

    batch: int
    length: int
    keys: int
    heads: int = 32
    groups: int = 8

    @property
    def name(self) -> str:
        return f"B{self.batch} T{self.length} S{self.keys}"


class Inputs(NamedTuple):
    """q, grad (B, H, T, D), k, v (B, G, S, D), roles (B, T) and (B, S), bias (H, R, R) fp32."""

    q: Tensor
    k: Tensor
    v: Tensor
    q_roles: Tensor
    k_roles: Tensor
    bias: Tensor
    grad: Tensor


class Usage(NamedTuple):
    """Registers per thread, bytes of stack (where spilled registers go) and of shared memory."""

    registers: int
    stack: int
    shared: int


Times = dict[Tile, dict[str, list[float]]]
"""Milliseconds of each tile, at each shape, in each round."""


def shapes_of(kernel: str, tokens: int = 32_768) -> list[Shape]:
    """What is timed: `tokens` in sequences of 1k, 4k and 16k; decode: one query and 4k or 32k keys, B 1 and 16."""
    if kernel == "decode":
        return [Shape(batch, 1, keys) for keys in (4096, 32_768) for batch in (1, 16)]
    return [Shape(max(tokens // length, 1), length, length) for length in (1024, 4096, 16_384)]


def chat_roles(batch: int, length: int, device: torch.device) -> Tensor:
    """(B, T) int64: 5% system text, then turns of user, assistant and tool; no two rows alike."""
    rows = []
    for row in range(batch):
        make = random.Random(row)
        roles = [0] * max(length // 20 + make.randrange(32), 1)
        while len(roles) < length:
            roles += [(2, 3, 4, 3)[make.randrange(4)]] * max(int(length * make.uniform(0.02, 0.15)), 8)
        rows.append(roles[:length])
    return torch.tensor(rows, device=device)


def make_inputs(shape: Shape, dtype: torch.dtype, dim: int, device: torch.device) -> Inputs:
    """Random tokens with the roles of a chat; queries are the last of the keys."""
    make = torch.Generator(device).manual_seed(0)

    def normal(*size: int) -> Tensor:
        return torch.randn(size, generator=make, device=device, dtype=torch.float32).to(dtype)

    q, grad = (normal(shape.batch, shape.heads, shape.length, dim) for _ in range(2))
    k, v = (normal(shape.batch, shape.groups, shape.keys, dim) for _ in range(2))
    roles = chat_roles(shape.batch, shape.keys, device)
    bias = torch.randn(shape.heads, 5, 5, generator=make, device=device)
    return Inputs(q, k, v, roles[:, shape.keys - shape.length :], roles, bias, grad)


def run_op(kernel: str, x: Inputs) -> dict[str, Tensor]:
    """One call of the operation, and what `kernel` computes in it."""
    if kernel in ("forward", "decode"):
        with torch.no_grad():
            return {"out": api.role_attention(x.q, x.k, x.v, x.q_roles, x.k_roles, bias=x.bias)}
    q, k, v, bias = (t.detach().requires_grad_() for t in (x.q, x.k, x.v, x.bias))
    out = api.role_attention(q, k, v, x.q_roles, x.k_roles, bias=bias)
    dq, dk, dv, dbias = torch.autograd.grad(out, (q, k, v, bias), x.grad)
    return {"dq": dq, "dbias": dbias} if kernel == "dq" else {"dk": dk, "dv": dv}


def eager(x: Inputs, dtype: torch.dtype) -> dict[str, Tensor]:
    """Output and gradients by plain PyTorch in `dtype`, with softmax in fp32 at least."""
    wide = torch.promote_types(dtype, torch.float32)
    q, k, v = (t.detach().to(dtype).requires_grad_() for t in (x.q, x.k, x.v))
    bias = x.bias.detach().to(wide).requires_grad_()
    group, length, keys = q.shape[1] // k.shape[1], q.shape[2], k.shape[2]
    scores = q @ k.repeat_interleave(group, 1).mT * q.shape[3] ** -0.5
    pairs = bias[:, x.q_roles[:, :, None], x.k_roles[:, None, :]].transpose(0, 1)
    hidden = torch.ones(length, keys, dtype=torch.bool, device=q.device).triu(keys - length + 1)
    mass = (scores + pairs.to(dtype)).masked_fill(hidden, float("-inf")).softmax(-1, dtype=wide).to(dtype)
    out = mass @ v.repeat_interleave(group, 1)
    gradients = torch.autograd.grad(out, (q, k, v, bias), x.grad.to(dtype))
    return dict(zip(("out", "dq", "dk", "dv", "dbias"), (out.detach(), *gradients), strict=True))


def wrong(found: Mapping[str, Tensor], exact: Mapping[str, Tensor], low: Mapping[str, Tensor]) -> str | None:
    """What is off by more than twice the error of eager attention in the same precision; None: nothing."""
    for name, x in found.items():
        size = exact[name].abs().max().item()
        error = (x.double() - exact[name]).abs().max().item()
        # fp32 products run as three of tf32
        slack = (2e-5 if low["out"].dtype == torch.float32 else 1e-3) * max(size, 1.0)
        allowed = 2 * (low[name].double() - exact[name]).abs().max().item() + slack
        if not error <= allowed:  # NaN is wrong too
            return f"wrong {name}: error {error:.2g}, allowed {allowed:.2g}"
    return None


@contextmanager
def replaced(value: Any, stand_in: Any) -> Iterator[None]:
    """Within it, modules of this package that imported `value` by name find `stand_in`; `launch` keeps its own."""
    package = __name__.partition(".")[0]
    modules = [
        module for name, module in sys.modules.items() if name.startswith(f"{package}.") and module is not launch
    ]
    found = [(module, name) for module in modules for name, own in vars(module).items() if own is value]
    for module, name in found:
        setattr(module, name, stand_in)
    try:
        yield
    finally:
        for module, name in found:
            setattr(module, name, value)


@contextmanager
def launched(change: Callable[[Launch], Launch]) -> Iterator[None]:
    """Within it, kernels are launched with what `change` makes of the table's entry."""

    def launch_of(device: torch.device, dtype: torch.dtype, dim: int) -> Launch:
        return change(launch.launch_of(device, dtype, dim))

    with replaced(launch.launch_of, launch_of):
        yield


def launched_with(kernel: str, tile: Tile) -> AbstractContextManager[None]:
    """Within it, `kernel` is launched with `tile`, whatever the table says."""
    return launched(lambda entry: entry._replace(**{kernel: tile}))


class Recorder:
    """Stands in for a kernel: launches it (or only compiles it), and keeps the launch to be repeated."""

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


def record(kernel: str, tile: Tile, x: Inputs, compile_only: bool = False) -> tuple[dict[str, Tensor], Recorder]:
    """Run the operation with `tile` for `kernel`: what that computed, and its launch."""
    recorder = Recorder(KERNELS[kernel], compile_only)
    with launched_with(kernel, tile), replaced(recorder.kernel, recorder):
        return run_op(kernel, x), recorder


def check_shape(kernel: str) -> Shape:
    """An odd length that no block divides."""
    return Shape(2, 1, 517) if kernel == "decode" else Shape(1, 517, 517)


def compile_one(job: tuple[torch.dtype, Pair, Tile]) -> Usage:
    """Compile a candidate into Triton's cache, without a launch of it. For the processes of a `Crew`."""
    dtype, pair, tile = job
    x = make_inputs(check_shape(pair.kernel), dtype, pair.width, torch.device("cuda"))
    compiled = record(pair.kernel, tile, x, compile_only=True)[1].compiled
    return Usage(*resource_usage(compiled.asm["cubin"]), compiled.metadata.shared)


def time_rounds(calls: Sequence[Callable[[], Any]], rounds: int) -> list[list[float]]:
    """Milliseconds of each call in each round, by events; calls take turns, each after a flush of L2."""
    cuda: Any = torch.cuda
    flush = torch.empty(2**26, dtype=torch.int32, device="cuda")
    found: list[list[float]] = [[] for _ in calls]
    for _ in range(rounds):
        events = [(cuda.Event(enable_timing=True), cuda.Event(enable_timing=True)) for _ in calls]
        for call, (start, end) in zip(calls, events, strict=True):
            flush.zero_()
            cuda._sleep(200_000)  # the launch is queued before the GPU gets to the event
            start.record()
            call()
            end.record()
        cuda.synchronize()
        for own, (start, end) in zip(found, events, strict=True):
            own.append(start.elapsed_time(end))
    return found


class Gpu:
    """The `Bench` of the CUDA device at hand."""

    def __init__(self, dtypes: Mapping[int, torch.dtype], until: float, workers: int) -> None:
        self.dtypes, self.until = dtypes, until
        self.crew = Crew(compile_one, workers)
        self.device = torch.device("cuda", torch.cuda.current_device())
        # a smaller card takes shorter batches
        self.tokens = 32_768 if torch.cuda.get_device_properties(self.device).total_memory > 60e9 else 16_384
        self.expected: dict[Pair, tuple[Inputs, dict[str, Tensor], dict[str, Tensor]]] = {}

    def build(self, pair: Pair, tiles: Sequence[Tile]) -> dict[Tile, Usage | str]:
        jobs = [(self.dtypes[pair.bits], pair, tile) for tile in tiles]
        done = self.crew.run(jobs, COMPILE_LIMIT, self.until)
        return {job[2]: result.reason if isinstance(result, Lost) else result for job, result in done}

    def check(self, pair: Pair, tile: Tile) -> str | None:
        if pair not in self.expected:
            x = make_inputs(check_shape(pair.kernel), self.dtypes[pair.bits], pair.width, self.device)
            self.expected = {pair: (x, eager(x, torch.float64), eager(x, x.q.dtype))}
        x, exact, low = self.expected[pair]
        try:
            return wrong(record(pair.kernel, tile, x)[0], exact, low)
        except triton.runtime.errors.OutOfResources as error:
            return str(error)

    def measure(self, pair: Pair, tiles: Sequence[Tile], rounds: int) -> Times:
        times: Times = {tile: {} for tile in tiles}
        for shape in shapes_of(pair.kernel, self.tokens):
            x = make_inputs(shape, self.dtypes[pair.bits], pair.width, self.device)
            calls = [record(pair.kernel, tile, x)[1].repeat for tile in tiles]
            for tile, own in zip(tiles, time_rounds(calls, rounds), strict=True):
                times[tile][shape.name] = own
        return times
