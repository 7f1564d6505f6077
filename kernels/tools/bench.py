"""The bench that tuning asks: tiles compiled in parallel, compared with the specification, timed in rounds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import NamedTuple

import torch
import triton
from rolesafe_kernels.launch import Tile
from torch import Tensor

from rolesafe.workers import Lost, results
from tools import PRELOAD, gate
from tools.inputs import Features, Inputs, Shape, make_inputs
from tools.launches import Recorder, Usage, record, resource_usage
from tools.timing import CudaTimer, time_rounds

COMPILE_LIMIT = 180.0
"""Seconds that one compilation may take, the start of its process included."""
BIAS = Features(bias=True)
RESULTS = {"forward": ("out",), "decode": ("out",), "dq": ("dq", "dbias"), "dkdv": ("dk", "dv")}
"""Results of a call that each kernel computes."""


class Pair(NamedTuple):
    """Unit of tuning: a kernel and an entry of the launch table."""

    bits: int
    width: int
    kernel: str

    @property
    def entry(self) -> str:
        return f"{self.bits}/{self.width}"


Times = dict[Tile, dict[str, list[float]]]
"""Milliseconds of each tile, at each shape, in each round."""


def shapes_of(pair: Pair, tokens: int) -> list[Shape]:
    """Return the timed shapes: `tokens` in rows of 1k, 4k and 16k; decode: one query, 4k and 32k keys, B 1 and 16."""
    if pair.kernel == "decode":
        return [Shape(batch, 32, 8, 1, keys, pair.width) for keys in (4096, 32_768) for batch in (1, 16)]
    return [Shape(max(tokens // length, 1), 32, 8, length, length, pair.width) for length in (1024, 4096, 16_384)]


def check_shape(pair: Pair) -> Shape:
    """Return an odd length that no block divides."""
    return Shape(2, 32, 8, 1, 517, pair.width) if pair.kernel == "decode" else Shape(1, 32, 8, 517, 517, pair.width)


def run(kernel: str, tile: Tile, x: Inputs, compile_only: bool = False) -> tuple[dict[str, Tensor], Recorder]:
    """Call the operation with `tile` for `kernel`; return what that kernel computed, and its launch."""
    call = partial(gate.run_kernel, x, BIAS, gradients=kernel in ("dq", "dkdv"))
    found, recorder = record(kernel, tile, call, compile_only)
    return {name: found[name] for name in RESULTS[kernel]}, recorder


def compile_one(dtype: torch.dtype, pair: Pair, tile: Tile) -> Usage:
    """Compile a tile into Triton's cache, without a launch of it. For worker processes."""
    x = make_inputs(check_shape(pair), dtype, torch.device("cuda"))
    return resource_usage(run(pair.kernel, tile, x, compile_only=True)[1].compiled)


class Gpu:
    """The bench of the CUDA device at hand.

    Args:
        dtypes: By number of bits.
        until: Time of `time.monotonic` at which compilations end.
        workers: Processes that compile.
    """

    def __init__(self, dtypes: Mapping[int, torch.dtype], until: float, workers: int) -> None:
        self.dtypes, self.until, self.workers = dtypes, until, workers
        self.device = torch.device("cuda", torch.cuda.current_device())
        self.timer = CudaTimer(self.device)
        # a smaller card takes shorter batches
        self.tokens = 32_768 if torch.cuda.get_device_properties(self.device).total_memory > 60e9 else 16_384
        self.expected: dict[Pair, tuple[Inputs, tuple[dict[str, Tensor], dict[str, Tensor]]]] = {}

    def build(self, pair: Pair, tiles: Sequence[Tile]) -> dict[Tile, Usage | Lost]:
        """Compile all tiles."""
        jobs = [(self.dtypes[pair.bits], pair, tile) for tile in tiles]
        done = results(compile_one, jobs, self.workers, limit=COMPILE_LIMIT, until=self.until, preload=PRELOAD)
        return {tile: found for (_, _, tile), found in done}

    def check(self, pair: Pair, tile: Tile) -> str | None:
        """Return the reason why a tile computes the wrong thing; None if it does not."""
        if pair not in self.expected:
            x = make_inputs(check_shape(pair), self.dtypes[pair.bits], self.device)
            self.expected = {pair: (x, gate.expected(x, BIAS, gradients=pair.kernel in ("dq", "dkdv")))}
        x, right = self.expected[pair]
        try:
            return gate.compare(run(pair.kernel, tile, x)[0], *right).detail or None
        except triton.runtime.errors.OutOfResources as error:
            return str(error)

    def measure(self, pair: Pair, tiles: Sequence[Tile], rounds: int) -> Times:
        """Time all tiles."""
        times: Times = {tile: {} for tile in tiles}
        for shape in shapes_of(pair, self.tokens):
            x = make_inputs(shape, self.dtypes[pair.bits], self.device)
            calls = [run(pair.kernel, tile, x)[1].repeat for tile in tiles]
            for tile, own in zip(tiles, time_rounds(calls, rounds, self.timer), strict=True):
                times[tile][f"B{shape.batch} T{shape.queries} S{shape.keys}"] = own
        return times
