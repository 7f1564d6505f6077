"""Tile sizes, warps and stages of every kernel, by architecture: committed tables, no tuning at run time."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
import triton

TABLES = Path(__file__).parent / "launch"

INTERPRET = bool(triton.knobs.runtime.interpret)
"""True where Triton's interpreter runs the kernels, on CPU tensors: TRITON_INTERPRET at the import of this module."""


class Tile(NamedTuple):
    """`rows` that a program keeps, tokens of a `block` in its loop, `warps`, `stages` of the loop's pipeline.

    `descriptors`: the loop reads by tensor descriptors (the copy engine of compute capability 9.0 and newer) where the
    tensors permit it; not for decode.
    """

    rows: int
    block: int
    warps: int
    stages: int
    descriptors: bool = False


class Launch(NamedTuple):
    """Tiles of the kernels of one architecture, precision and head dim.

    Rows are queries and blocks are keys, except in dkdv, where it is the other way round.
    """

    forward: Tile
    decode: Tile
    dq: Tile
    dkdv: Tile


def by_descriptors(launch: Launch) -> Launch:
    """Return `launch` with tensor descriptors in every kernel that can read by them."""
    kernels = ("forward", "dq", "dkdv")
    return launch._replace(**{name: getattr(launch, name)._replace(descriptors=True) for name in kernels})


def width(dim: int, least: int = 16) -> int:
    """Return the head dim of the kernels' tiles: the next power of two, at least `least`."""
    return max(least, 1 << (dim - 1).bit_length())


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def architecture(device: torch.device) -> int:
    """Return the compute capability as one number: 90 for an H100, 0 under the interpreter."""
    return 0 if device.type != "cuda" else _capability(device.index)


@cache
def _capability(index: int | None) -> int:
    major, minor = torch.cuda.get_device_capability(index)
    return 10 * major + minor


@cache
def launch_table(arch: int) -> dict[str, Launch]:
    """Return the launch table for `arch`, else the nearest older one."""
    known = sorted(int(path.stem.split("_")[1]) for path in TABLES.glob("sm_*.json"))
    if not known:
        raise RuntimeError(f"`launch/`: expected launch tables sm_*.json in {TABLES}, got none. Reinstall the package.")
    below = [a for a in known if a <= arch] or known[:1]
    data = json.loads((TABLES / f"sm_{below[-1]}.json").read_text(encoding="utf-8"))
    return {key: parse(entry) for key, entry in data["entries"].items()}


def parse(entry: dict[str, Any]) -> Launch:
    """Return an entry of a table: four numbers a kernel, then true where it reads by tensor descriptors."""
    return Launch(**{name: Tile(*entry[name]) for name in Launch._fields})


def launch_of(device: torch.device, dtype: torch.dtype, dim: int) -> Launch:
    """Return the launch of tensors of `dtype`, for the wider head dim `dim`."""
    if INTERPRET and device.type == "cpu":
        return INTERPRETED
    return launch_table(architecture(device))[f"{dtype.itemsize * 8}/{width(dim)}"]


INTERPRETED = Launch(Tile(32, 16, 1, 1), Tile(16, 32, 1, 1), Tile(32, 32, 1, 1), Tile(32, 32, 1, 1))
"""Small tiles: the interpreter is slow, and many small blocks test more than a few large ones. Edges of blocks of 32
are read in two parts."""
