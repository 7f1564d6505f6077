"""Time tiles on the GPU at hand and rewrite the launch table of its architecture.

    python -m tools.tune [--dtype bf16] [--dim 128 64] [--kernel forward ...] [--budget SECONDS] [--dry-run]

For every kernel and entry, all tiles that may fit are compiled in parallel, compared with the specification in fp64 and
timed in interleaved rounds, the best ones longest. One replaces the entry only if it is faster by more than the noise.
Each result is written at once; `--log` keeps the raw measurements, and a run with the same log goes on where the last
one stopped. Build new entries for other versions of Triton too: python -m tools.offline.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import time
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import torch
from rolesafe_kernels import launch
from rolesafe_kernels.launch import INTERPRET, Launch, Tile, architecture, launch_table, width

from rolesafe.files import write_whole
from rolesafe.terminal import run_main
from rolesafe.workers import Lost
from tools.bench import Gpu, Pair, Times
from tools.environment import gpu
from tools.offline import SHARED_LIMIT, source_hash
from tools.timing import bootstrap_median

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
ROUNDS = (3, 7, 25)
"""Rounds of all candidates, of the best third, of the best four."""
GAIN = 0.01
"""Least gain of a new tile; the whole 95% interval of its time must be below the current one's."""


class Speed(NamedTuple):
    """Time over that of the current tile: median, and the ends of its 95% interval."""

    ratio: float
    low: float
    high: float

    @property
    def faster(self) -> bool:
        return self.ratio < 1 - GAIN and self.high < 1


def candidates(arch: int, pair: Pair, current: Tile) -> list[Tile]:
    """Return tiles worth compiling, the current one first; on GPUs with a copy engine some by descriptors too."""
    rows = (16, 32) if pair.kernel == "decode" else (32, 64, 128, 256)
    # a wide fp32 head leaves room for little
    blocks = (16, 32, 64) if pair.bits * pair.width > 4096 else (32, 64, 128)
    warps = (2, 4, 8) if pair.kernel == "decode" else (4, 8)
    found = [Tile(*numbers) for numbers in product(rows, blocks, warps, (2, 3, 4, 5, 6))]
    # deep pipelines where they are likely to win: all of them would take twice as long
    found = [tile for tile in found if tile.stages < 5 or (tile.warps == 4 if pair.kernel == "decode" else deep(tile))]
    if arch >= 90 and pair.bits == 16 and pair.kernel != "decode":
        # the middle of the range by descriptors too: all of it would take twice as long
        found += [tile._replace(descriptors=True) for tile in found if tile.rows in (64, 128) and tile.stages < 4]
    return [current, *(tile for tile in found if tile != current and may_fit(arch, pair, tile))]


def deep(tile: Tile) -> bool:
    """Return True for a tile of the middle, which leaves room for five or six buffers of short blocks."""
    return tile.rows == 128 and tile.block <= 64 and tile.warps == 8


def may_fit(arch: int, pair: Pair, tile: Tile) -> bool:
    """Return True where the least need of a tile fits: operands in shared memory, accumulators in registers."""
    backward, decode = pair.kernel in ("dq", "dkdv"), pair.kernel == "decode"
    buffers = tile.stages if arch >= 90 else max(tile.stages - 1, 1)
    kept = 2 if backward else 1
    shared = pair.bits // 8 * pair.width * (kept * tile.rows + 2 * buffers * tile.block)
    limit = SHARED_LIMIT[max(known for known in SHARED_LIMIT if known <= max(arch, 80))]
    outputs = 2 if pair.kernel == "dkdv" else 1
    registers = tile.rows * (outputs * pair.width + kept * tile.block) / (32 * tile.warps)
    small = pair.width >= 256 or pair.bits == 32
    enough_rows = decode or (tile.rows >= 8 * tile.warps and (tile.rows > 32 or small))
    return shared <= limit and registers <= 200 and enough_rows


def costs(times: Mapping[str, Sequence[float]]) -> list[float]:
    """Return the geometric mean over the shapes, of each round."""
    rounds = zip(*times.values(), strict=True)
    return [math.exp(sum(map(math.log, one)) / len(one)) for one in rounds]


def compare(own: Sequence[float], current: Sequence[float]) -> Speed:
    """Compare costs that were taken in the same rounds."""
    found = bootstrap_median([a / b for a, b in zip(own, current, strict=True)])
    return Speed(found["median"], found["low"], found["high"])


def choose(times: Times, current: Tile) -> tuple[Tile, Speed]:
    """Return the fastest tile that beats `current` beyond the noise, else `current`; the fastest if it is absent."""
    paid = {tile: costs(own) for tile, own in times.items()}
    fastest = min(paid, key=lambda tile: median(paid[tile]))
    speeds = {tile: compare(own, paid.get(current, paid[fastest])) for tile, own in paid.items()}
    if current not in paid:
        return fastest, speeds[fastest]
    better = [tile for tile in paid if tile != current and speeds[tile].faster]
    best = min(better, key=lambda tile: speeds[tile].ratio, default=current)
    return best, speeds[best]


class Log:
    """Raw measurements as JSON lines, with the results of earlier runs on the same GPU, versions and kernels.

    Attributes:
        done: Pairs that have a result.
        lost: Candidates with a check that ended the process.
    """

    def __init__(self, path: Path | None, environment: Mapping[str, Any], resume: bool = True) -> None:
        self.path = path
        self.done: set[Pair] = set()
        self.lost: set[tuple[Pair, Tile]] = set()
        same = False
        lines = path.read_text(encoding="utf-8").splitlines() if resume and path is not None and path.exists() else []
        for line in map(parse_line, lines):
            if line.get("kind") == "session":
                same = line["environment"] == dict(environment)
            elif same and "tile" in line:
                pair, tile = Pair(line["bits"], line["width"], line["kernel"]), Tile(*line["tile"])
                if line["kind"] == "check":
                    self.lost.add((pair, tile))
                elif line["kind"] == "candidate":
                    self.lost.discard((pair, tile))
                elif line["kind"] == "result":
                    self.done.add(pair)
        self._append({"kind": "session", "environment": dict(environment)})

    def write(self, kind: str, pair: Pair, tile: Tile, **fields: Any) -> None:
        self._append({"kind": kind, **pair._asdict(), "tile": list(tile), **fields})

    def _append(self, line: dict[str, Any]) -> None:
        if self.path is not None:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")


def parse_line(line: str) -> dict[str, Any]:
    """Return a line of the log; nothing for one that was cut short."""
    try:
        found: dict[str, Any] = json.loads(line)
    except json.JSONDecodeError:
        return {}
    return found


def sound(bench: Gpu, arch: int, pair: Pair, current: Tile, log: Log) -> list[Tile]:
    """Return candidates that compile and pass the gate; spilling ones only if no other does, or if current."""
    tiles = [tile for tile in candidates(arch, pair, current) if (pair, tile) not in log.lost]
    built = bench.build(pair, tiles)
    usages = {tile: usage for tile, usage in built.items() if not isinstance(usage, Lost)}
    clean = [tile for tile in tiles if tile in usages and (tile == current or not usages[tile].stack)]
    spilled = [tile for tile in usages if tile not in clean]
    for tile, usage in built.items():
        if isinstance(usage, Lost):
            log.write("candidate", pair, tile, usage=None, note=usage.reason)
    passed: list[Tile] = []
    for tile in (*clean, *spilled):
        if tile in spilled and any(other in clean for other in passed):
            note: str | None = "spills"
        else:
            log.write("check", pair, tile)
            note = bench.check(pair, tile)
        log.write("candidate", pair, tile, usage=usages[tile]._asdict(), note=note)
        if note is None:
            passed.append(tile)
    print(
        f"  {len(tiles)} candidates, {len(usages)} compiled, {len(spilled)} spilled, {len(passed)} to time", flush=True
    )
    return passed


def tune_pair(bench: Gpu, arch: int, pair: Pair, current: Tile, log: Log, until: float) -> tuple[Tile, Speed] | None:
    """Return the best tile of `pair`; None where time ran out or no candidate works."""
    tiles = sound(bench, arch, pair, current, log)
    times: Times = {}
    for stage, rounds in enumerate(ROUNDS):
        if not tiles or time.monotonic() >= until:
            return None
        times = bench.measure(pair, tiles, rounds)
        for tile, own in times.items():
            log.write("times", pair, tile, stage=stage, ms=own)
        ranked = sorted(tiles, key=lambda tile: median(costs(times[tile])))
        keep = max(4, math.ceil(len(tiles) / 3)) if stage == 0 else 4
        tiles = [tile for place, tile in enumerate(ranked) if place < keep or tile == current]
    return choose(times, current)


def tune(
    bench: Gpu, arch: int, pairs: Sequence[Pair], log: Log, timed_on: Mapping[str, Any], until: float = math.inf
) -> int:
    """Tune `pairs` one after the other, write each result at once, and return the number of pairs without one."""
    left = [pair for pair in pairs if pair not in log.done]
    if len(left) < len(pairs):
        print(f"{len(pairs) - len(left)} of {len(pairs)} have a result in the log")
    begin, without = time.monotonic(), 0
    for number, pair in enumerate(left):
        took = time.monotonic() - begin
        rest = f", {took / number * (len(left) - number):.0f} s to go" if number else ""
        print(f"[{number + 1}/{len(left)}] {pair.entry} {pair.kernel}: {took:.0f} s{rest}", flush=True)
        current: Tile = getattr(launch_table(arch)[pair.entry], pair.kernel)
        found = tune_pair(bench, arch, pair, current, log, until) if time.monotonic() < until else None
        if found is None:
            print("  no result", flush=True)
            without += 1
            continue
        tile, speed = found
        rewrite(arch, pair, tile, timed_on)
        log.write("result", pair, tile, current=list(current), **speed._asdict())
        change = f"{tuple(current)} -> {tuple(tile)}" if tile != current else f"{tuple(current)} stays"
        print(f"  {change}, x{speed.ratio:.3f} [{speed.low:.3f}, {speed.high:.3f}]", flush=True)
    return without


def rewrite(arch: int, pair: Pair, tile: Tile, timed_on: Mapping[str, Any]) -> None:
    """Put `tile` into the table of `arch` in one step; an architecture without a table gets one."""
    path = launch.TABLES / f"sm_{arch}.json"
    if path.exists():
        data = json.loads(path.read_text(encoding="utf-8"))
    else:
        entries = {
            key: {name: list(own) for name, own in one._asdict().items()} for key, one in launch_table(arch).items()
        }
        data = {"arch": arch, "timed_on": None, "triton": [], "entries": entries}
    before = data["timed_on"] if isinstance(data["timed_on"], dict) else {}
    kept = before.get("timed", []) if {**before, "timed": 0, "date": 0} == {**timed_on, "timed": 0, "date": 0} else []
    data["timed_on"] = {**timed_on, "timed": sorted({*kept, f"{pair.entry} {pair.kernel}"})}
    data["entries"][pair.entry][pair.kernel] = list(tile)
    write_whole(path, render(data))
    launch_table.cache_clear()


def copy_tables(folder: Path, arch: int) -> None:
    """Use the launch table in `folder`, which gets a copy of the one that `arch` uses where it has none."""
    if not any(folder.glob("sm_*.json")):
        known = {int(path.stem.split("_")[1]): path for path in launch.TABLES.glob("sm_*.json")}
        used = known[max(one for one in known if one <= max(arch, min(known)))]
        write_whole(folder / used.name, used.read_bytes())
    launch.TABLES = folder
    launch.launch_table.cache_clear()


def render(data: Mapping[str, Any]) -> str:
    """Return a table as JSON, an entry a line."""
    entries = ",\n".join(f"  {json.dumps(key)}: {json.dumps(entry)}" for key, entry in data["entries"].items())
    others = "".join(f" {json.dumps(key)}: {json.dumps(value)},\n" for key, value in data.items() if key != "entries")
    return f'{{\n{others} "entries": {{\n{entries}\n }}\n}}\n'


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dtype", nargs="+", default=["bf16"], choices=DTYPES)
    parser.add_argument("--dim", type=int, nargs="+", default=[128, 64], help="head dims")
    parser.add_argument("--kernel", nargs="+", default=list(Launch._fields), choices=Launch._fields)
    parser.add_argument("--budget", type=float, default=math.inf, metavar="SECONDS")
    parser.add_argument(
        "--log", type=Path, help="raw measurements, JSON lines; read to go on where the last run stopped"
    )
    parser.add_argument("--tables", type=Path, help="folder of the table to rewrite (default: the committed one)")
    parser.add_argument("--resume", action=argparse.BooleanOptionalAction, default=True, help="skip what the log holds")
    parser.add_argument(
        "--workers", type=int, default=max(1, min(14, (os.cpu_count() or 2) - 1)), help="compiling processes"
    )
    parser.add_argument("--dry-run", action="store_true", help="list the candidates; needs no GPU")
    chosen = parser.parse_args(arguments)
    available = torch.cuda.is_available() and not INTERPRET
    if not available and not chosen.dry_run:
        print(
            "tune: expected a CUDA device and no TRITON_INTERPRET; `--dry-run` lists the candidates without one",
            file=sys.stderr,
        )
        return 2
    arch = architecture(torch.device("cuda")) if available else 90
    if chosen.tables is not None:
        copy_tables(chosen.tables, arch)
    # fp16 and bf16 share an entry: the first one named is timed
    dtypes = {dtype.itemsize * 8: dtype for dtype in (DTYPES[name] for name in reversed(chosen.dtype))}
    pairs = [Pair(bits, width(dim), kernel) for bits in dtypes for dim in chosen.dim for kernel in chosen.kernel]
    pairs = list(dict.fromkeys(pairs))
    if missing := sorted({pair.entry for pair in pairs} - set(launch_table(arch))):
        print(
            f"tune: `--dim`: expected head dims of the table of sm_{arch}, got {', '.join(missing)}",
            file=sys.stderr,
        )
        return 2
    if chosen.dry_run:
        for pair in pairs:
            tiles = candidates(arch, pair, getattr(launch_table(arch)[pair.entry], pair.kernel))
            print(f"sm_{arch} {pair.entry} {pair.kernel}: {len(tiles)} candidates {[tuple(tile) for tile in tiles]}")
        return 0
    timed_on = {**gpu(), "date": datetime.now(timezone.utc).date().isoformat()}
    environment = {**gpu(), "source": source_hash(), "arch": arch}
    until = time.monotonic() + chosen.budget
    bench, log = Gpu(dtypes, until, chosen.workers), Log(chosen.log, environment, chosen.resume)
    without = tune(bench, arch, pairs, log, timed_on, until)
    print(f"{without} of {len(pairs)} without a result")
    return int(without > 0)


if __name__ == "__main__":
    run_main(main)
