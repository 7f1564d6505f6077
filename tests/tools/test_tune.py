"""Tuning without a GPU: candidates, selection, the table, the log. Timings come from a made-up machine."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from rolesafe_kernels import launch
from rolesafe_kernels.launch import Launch, Tile

from rolesafe.workers import Lost
from tools import tune
from tools.bench import Pair, Times
from tools.launches import Usage
from tools.offline import SHARED_LIMIT

CURRENT = Tile(128, 64, 4, 3)
FAST = Tile(128, 64, 8, 3)
PAIR = Pair(16, 128, "forward")
TIMED_ON = {"gpu": "a GPU", "driver": "1", "triton": "3.6.0", "torch": "2.11", "date": "2026-01-01"}
ENVIRONMENT = {"gpu": "a GPU", "source": "abc"}


class Machine:
    """A bench that makes times up: 1 ms for a tile that is not in `speeds`, with 0.2% of noise."""

    def __init__(self, speeds: dict[Tile, float] | None = None, noise: float = 0.002) -> None:
        self.speeds, self.noise = speeds or {}, noise
        self.uncompilable: set[Tile] = set()
        self.spilled: set[Tile] = set()
        self.false: set[Tile] = set()
        self.calls: list[tuple[str, Any]] = []
        self.random = random.Random(0)

    def build(self, pair: Pair, tiles: Sequence[Tile]) -> dict[Tile, Usage | Lost]:
        self.calls.append(("build", pair))
        return {
            tile: Lost("crash") if tile in self.uncompilable else Usage(200, 64 * (tile in self.spilled), 1000)
            for tile in tiles
        }

    def check(self, pair: Pair, tile: Tile) -> str | None:
        self.calls.append(("check", tile))
        return "wrong out" if tile in self.false else None

    def measure(self, pair: Pair, tiles: Sequence[Tile], rounds: int) -> Times:
        self.calls.append(("measure", (rounds, list(tiles))))
        return {
            tile: {
                shape: [scale * self.speeds.get(tile, 1.0) * self.random.gauss(1, self.noise) for _ in range(rounds)]
                for shape, scale in (("short", 0.5), ("long", 8.0))
            }
            for tile in tiles
        }


@pytest.fixture(autouse=True)
def tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder of tables with two entries for sm_90."""
    folder = tmp_path / "launch"
    folder.mkdir()
    tiles = {name: list(CURRENT) for name in Launch._fields}
    data = {"arch": 90, "timed_on": None, "triton": ["3.6.0"], "entries": {"16/64": tiles, "16/128": tiles}}
    (folder / "sm_90.json").write_text(json.dumps(data), encoding="utf-8")
    monkeypatch.setattr(launch, "TABLES", folder)
    launch.launch_table.cache_clear()
    yield folder
    launch.launch_table.cache_clear()


def read(folder: Path, arch: int = 90) -> dict[str, Any]:
    return json.loads((folder / f"sm_{arch}.json").read_text(encoding="utf-8"))


def log_of(path: Path | None = None, **changes: Any) -> tune.Log:
    return tune.Log(path, {**ENVIRONMENT, **changes})


def run(machine: Machine, pairs: Sequence[Pair] = (PAIR,), log: tune.Log | None = None, **options: Any) -> int:
    return tune.tune(machine, 90, pairs, log or log_of(), TIMED_ON, **options)


# candidates


@pytest.mark.parametrize("kernel", Launch._fields)
@pytest.mark.parametrize("entry", [(16, 16), (16, 64), (16, 128), (16, 256), (32, 64), (32, 256)])
def test_candidates_start_with_current_tile(kernel: str, entry: tuple[int, int]) -> None:
    current = Tile(64, 16, 8, 1)
    tiles = tune.candidates(90, Pair(*entry, kernel), current)
    assert tiles[0] == current
    assert len(set(tiles)) == len(tiles)
    assert 4 <= len(tiles) <= 80


def test_candidates_include_known_good_tiles() -> None:
    assert {Tile(128, 128, 8, 2), Tile(128, 64, 4, 3)} <= set(tune.candidates(90, Pair(16, 64, "forward"), CURRENT))
    assert Tile(128, 128, 8, 2) in tune.candidates(90, PAIR, CURRENT)
    assert Tile(64, 64, 4, 2) in tune.candidates(80, Pair(16, 64, "dkdv"), CURRENT)


@pytest.mark.parametrize(
    ("arch", "bits", "kernel", "some"),
    [
        (90, 16, "forward", True),
        (100, 16, "dq", True),
        (120, 16, "dkdv", True),
        (90, 16, "decode", False),
        (90, 32, "forward", False),
        (80, 16, "forward", False),
        (89, 16, "dkdv", False),
    ],
)
def test_candidates_with_copy_engine_use_descriptors(arch: int, bits: int, kernel: str, some: bool) -> None:
    tiles = tune.candidates(arch, Pair(bits, 64, kernel), CURRENT)
    by_descriptors = [tile for tile in tiles if tile.descriptors]
    assert bool(by_descriptors) == some
    assert all(tile._replace(descriptors=False) in tiles for tile in by_descriptors)


def test_may_fit_rejects_large_tiles() -> None:
    assert tune.may_fit(90, PAIR, Tile(128, 128, 8, 3))  # 229,376 bytes
    assert not tune.may_fit(90, PAIR, Tile(128, 128, 8, 4)), "shared memory"
    assert not tune.may_fit(90, PAIR, Tile(128, 128, 4, 2)), "256 registers for accumulators alone"
    assert not tune.may_fit(89, PAIR, Tile(128, 128, 8, 3)), "smaller shared memory"
    assert not tune.may_fit(90, PAIR, Tile(32, 64, 8, 2)), "too few rows for its warps"
    limit = SHARED_LIMIT[100]
    assert all(2 * 128 * (t.rows + 2 * t.stages * t.block) <= limit for t in tune.candidates(103, PAIR, FAST)[1:])


# selection


def test_choose_under_noise_keeps_current() -> None:
    make = random.Random(1)
    times = {tile: {"a": [make.gauss(1, 0.05) for _ in range(25)]} for tile in (CURRENT, FAST)}
    assert tune.choose(times, CURRENT)[0] == CURRENT


@pytest.mark.parametrize(("speed", "wins"), [(0.95, True), (0.995, False), (1.05, False)])
def test_choose_needs_more_than_one_percent(speed: float, wins: bool) -> None:
    times = Machine({FAST: speed}).measure(PAIR, [CURRENT, FAST], 25)
    tile, found = tune.choose(times, CURRENT)
    assert tile == (FAST if wins else CURRENT)
    assert found.low <= found.ratio <= found.high
    assert found.ratio == pytest.approx(speed if wins else 1.0, abs=0.005)


def test_compare_uncertain_gain_is_not_faster() -> None:
    own, current = [0.9, 1.02] * 6 + [0.9], [1.0] * 13
    speed = tune.compare(own, current)
    assert speed.ratio < 0.99
    assert speed.high > 1
    assert not speed.faster


def test_costs_are_geometric_means() -> None:
    assert tune.costs({"a": [1.0, 2.0], "b": [4.0, 8.0]}) == pytest.approx([2.0, 4.0])


def test_tune_finds_fastest_tile(tables: Path) -> None:
    machine = Machine({FAST: 0.9, Tile(128, 32, 4, 2): 0.93})
    assert run(machine) == 0
    assert read(tables)["entries"]["16/128"]["forward"] == list(FAST)
    stages = [value for name, value in machine.calls if name == "measure"]
    assert [rounds for rounds, _ in stages] == list(tune.ROUNDS)
    sizes = [len(tiles) for _, tiles in stages]
    assert sizes[0] > sizes[1] > sizes[2] <= 5
    assert all(CURRENT in tiles for _, tiles in stages), "the current tile is always among them"


def test_tune_does_not_time_broken_tiles(tables: Path) -> None:
    wrong, spills, crash = Tile(128, 128, 8, 2), Tile(64, 64, 4, 2), Tile(64, 64, 4, 3)
    machine = Machine({wrong: 0.1, spills: 0.1, crash: 0.1})
    machine.false, machine.spilled, machine.uncompilable = {wrong}, {spills}, {crash}
    assert run(machine) == 0
    assert read(tables)["entries"]["16/128"]["forward"] == list(CURRENT)
    timed = {tile for name, value in machine.calls if name == "measure" for tile in value[1]}
    assert not timed & {wrong, spills, crash}


def test_tune_replaces_wrong_current_tile(tables: Path) -> None:
    machine = Machine({FAST: 1.5})
    machine.false = {tile for tile in tune.candidates(90, PAIR, CURRENT) if tile != FAST}
    assert run(machine) == 0
    assert read(tables)["entries"]["16/128"]["forward"] == list(FAST)


def test_tune_takes_spilling_tile_as_last_resort(tables: Path) -> None:
    machine = Machine()
    machine.spilled = set(tune.candidates(90, PAIR, CURRENT))
    machine.false = {CURRENT}
    assert run(machine) == 0
    assert read(tables)["entries"]["16/128"]["forward"] != list(CURRENT)


def test_tune_without_working_tile_keeps_entry(tables: Path) -> None:
    machine = Machine()
    machine.uncompilable = set(tune.candidates(90, PAIR, CURRENT))
    before = read(tables)
    assert run(machine) == 1
    assert read(tables) == before


def test_tune_without_time_keeps_table(tables: Path) -> None:
    before = read(tables)
    assert run(Machine({FAST: 0.5}), until=0.0) == 1
    assert read(tables) == before


# table


def test_rewrite_keeps_other_entries(tables: Path) -> None:
    before = read(tables)
    tune.rewrite(90, PAIR, FAST, TIMED_ON)
    after = read(tables)
    assert after["entries"]["16/128"].pop("forward") == list(FAST)
    del before["entries"]["16/128"]["forward"]
    assert after["entries"] == before["entries"]
    assert after["triton"] == before["triton"]
    assert after["timed_on"] == {**TIMED_ON, "timed": ["16/128 forward"]}
    assert launch.launch_table(90)["16/128"].forward == FAST, "the table in memory is the new one"
    assert [path.name for path in tables.iterdir()] == ["sm_90.json"]


def test_rewrite_other_gpu_drops_timed_list(tables: Path) -> None:
    tune.rewrite(90, PAIR, FAST, TIMED_ON)
    tune.rewrite(90, Pair(16, 64, "dq"), FAST, {**TIMED_ON, "date": "2026-01-02"})
    assert read(tables)["timed_on"]["timed"] == ["16/128 forward", "16/64 dq"]
    tune.rewrite(90, PAIR, FAST, {**TIMED_ON, "gpu": "another"})
    assert read(tables)["timed_on"]["timed"] == ["16/128 forward"]


def test_tune_keeps_descriptors_in_table_and_log(tmp_path: Path, tables: Path) -> None:
    chosen, log = FAST._replace(descriptors=True), tmp_path / "log"
    assert run(Machine({chosen: 0.8}), log=log_of(log)) == 0
    assert read(tables)["entries"]["16/128"]["forward"] == [*FAST[:4], True]
    assert launch.launch_table(90)["16/128"].forward == chosen
    assert launch.launch_table(90)["16/64"].forward == CURRENT, "entries of four numbers read by pointers"
    lines = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    assert Tile(*lines[-1]["tile"]) == chosen


def test_rewrite_interrupted_keeps_table(tables: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = (tables / "sm_90.json").read_bytes()

    def broken(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(Path, "replace", broken)
    with pytest.raises(OSError, match="disk full"):
        tune.rewrite(90, PAIR, FAST, TIMED_ON)
    assert (tables / "sm_90.json").read_bytes() == before


def test_rewrite_new_architecture_makes_table(tables: Path) -> None:
    before = (tables / "sm_90.json").read_bytes()
    tune.rewrite(103, PAIR, FAST, TIMED_ON)
    assert (tables / "sm_90.json").read_bytes() == before
    assert read(tables, 103)["arch"] == 103
    assert launch.launch_table(103)["16/128"] == launch.launch_table(90)["16/128"]._replace(forward=FAST)
    assert launch.launch_table(103)["16/64"] == launch.launch_table(90)["16/64"]


# log


def test_tune_second_run_skips_results(tmp_path: Path, tables: Path) -> None:
    log, other = tmp_path / "log", Pair(16, 64, "dq")
    assert run(Machine({FAST: 0.9}), log=log_of(log)) == 0
    machine = Machine()
    assert run(machine, [PAIR, other], log=log_of(log)) == 0
    assert [value for name, value in machine.calls if name == "build"] == [other]
    assert read(tables)["entries"]["16/128"]["forward"] == list(FAST), "and leaves it"


def test_log_of_other_environment_is_ignored(tmp_path: Path) -> None:
    log = tmp_path / "log"
    run(Machine(), log=log_of(log))
    assert log_of(log).done == {PAIR}
    assert log_of(log, source="changed").done == set()
    assert tune.Log(log, ENVIRONMENT, resume=False).done == set()


def test_log_contains_times_and_usage(tmp_path: Path) -> None:
    log = tmp_path / "log"
    run(Machine({FAST: 0.9}), log=log_of(log))
    lines = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    times = [line for line in lines if line["kind"] == "times" and line["tile"] == list(FAST)]
    assert [len(line["ms"]["long"]) for line in times] == list(tune.ROUNDS)
    assert {line["usage"]["registers"] for line in lines if line["kind"] == "candidate"} == {200}
    result = lines[-1]
    assert (result["kind"], result["tile"], result["current"]) == ("result", list(FAST), list(CURRENT))
    assert result["ratio"] == pytest.approx(0.9, abs=0.01)


def test_log_crashed_candidate_is_not_retried(tmp_path: Path) -> None:
    class Crashes(Machine):
        def check(self, pair: Pair, tile: Tile) -> str | None:
            if tile == FAST:
                raise KeyboardInterrupt
            return super().check(pair, tile)

    log = tmp_path / "log"
    with pytest.raises(KeyboardInterrupt):
        run(Crashes(), log=log_of(log))
    with log.open("a", encoding="utf-8") as file:
        file.write('{"kind": "cut sho')
        file.write("\n")
    machine = Machine({FAST: 0.1})
    assert run(machine, log=log_of(log)) == 0
    assert ("check", FAST) not in machine.calls
