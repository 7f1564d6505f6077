"""Every launch-table entry compiles for GPUs that are not at hand; the record holds the assembler's reports."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("triton", reason="Triton is for Linux")

import rolesafe_kernels
from rolesafe_kernels import launch
from rolesafe_kernels.launch import Launch, Tile

from rolesafe.workers import Lost
from tools import offline

ROOT = Path(__file__).resolve().parents[2]
RECORD = ROOT / "kernels" / "compiled.json"
VERSIONS = ("3.6.0", "3.9.0")
ARCHITECTURES = (80, 90, 100)
TABLES = sorted(launch.TABLES.glob("sm_*.json"))


@pytest.mark.parametrize("version", VERSIONS)
def test_record_fits_sources_and_has_no_fault(version: str) -> None:
    record = offline.read_record(RECORD)[version]
    jobs = offline.committed_jobs(ARCHITECTURES)
    again = "run `make kernel-check WRITE=--write`"
    assert record["source"] == offline.source_hash(), f"kernels changed: {again}"
    assert record["tiles"] == offline.tiles_of(jobs), f"tables changed: {again}"
    reports = offline.read_reports(RECORD, version)
    assert {job.name for job in jobs} == set(reports)
    for job in jobs:
        assert offline.find_fault(job, reports[job.name], reports[job.name]) is None, job.name
    assert offline.render(offline.read_record(RECORD)) == RECORD.read_text(encoding="utf-8")


@pytest.mark.parametrize("version", VERSIONS)
def test_record_of_16_bits_uses_matrix_units(version: str) -> None:
    record = offline.read_reports(RECORD, version)
    for job in offline.committed_jobs(ARCHITECTURES, ["16/64", "16/128"]):
        if job.kernel in ("forward", "dq", "dkdv"):
            report = record[job.name]
            assert report.wgmma or job.arch != 90, job.name
            assert report.cp_async or report.bulk or job.tile.stages == 1, f"{job.name}: its loop is no pipeline"


@pytest.mark.parametrize("version", VERSIONS)
def test_record_of_descriptors_has_bulk_copies(version: str) -> None:
    """Where a GPU has a copy engine, every kernel that can use it was built with it."""
    record = offline.read_reports(RECORD, version)
    found = {name: report for name, report in record.items() if name.endswith(" descriptors")}
    assert all(report.bulk > 0 for report in found.values())
    names = {f"sm_{arch} 16/{dim}" for arch in (90, 100) for dim in (64, 128)}
    assert set(found) == {f"{name} {kernel} descriptors" for name in names for kernel in ("forward", "dq", "dkdv")}


def test_source_hash_covers_every_kernel() -> None:
    """Files with a jitted function, and packages of them."""
    here = Path(rolesafe_kernels.__file__).parent
    jitted = {path for path in here.rglob("*.py") if "@triton.jit" in path.read_text(encoding="utf-8")}
    assert jitted <= {here / name for name in offline.SOURCES}
    assert all((here / name).exists() for name in offline.SOURCES)


SAMPLE = ("16/128 forward channel", "16/128 lists")


def test_offline_sample_compiles() -> None:
    """The longest kernel and a short one, with the Triton of this environment, compared with its record."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = str(ROOT)
    command = [sys.executable, "-W", "ignore", "-m", "tools.offline"]
    done = subprocess.run(
        [*command, "--arch", "90", "--only", *SAMPLE, "--record", str(RECORD), "--workers", "1"],
        cwd=ROOT / "kernels", env=environment, capture_output=True, text=True, timeout=500,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 of 2 without fault" in done.stdout


def test_offline_under_interpreter_exits_with_2(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(offline, "INTERPRET", True)
    monkeypatch.setattr(offline, "check", lambda *_: pytest.fail("something was compiled"))
    monkeypatch.setattr("sys.argv", ["offline"])
    with pytest.raises(SystemExit, match="2"):
        offline.main()
    assert "unset it" in capsys.readouterr().err


def report(**changes: int) -> offline.Report:
    made = offline.Report(
        stack=0, shared=1024, wgmma=8, mma=0, tcgen05=0, cp_async=8, bulk=0,
        buffers=4, waits=2, instructions=300, serial=0, spills=0,
    )  # fmt: skip
    return made._replace(**changes)


def job(
    bits: int = 16,
    width: int = 128,
    arch: int = 90,
    kernel: str = "forward",
    variant: str = "bias",
    descriptors: bool = False,
) -> offline.Job:
    return offline.Job(arch, bits, width, kernel, variant, Tile(128, 64, 8, 3, descriptors))


@pytest.mark.parametrize(
    "which, found, known, fault",
    [
        (job(), report(), None, None),
        (job(), report(stack=8), None, "8 bytes of spilled registers, expected 0"),
        (job(), report(stack=8), report(stack=8), "8 bytes of spilled registers, expected 0"),
        (job(32), report(stack=8), report(stack=8), None),
        (job(32), report(stack=16), report(stack=8), "16 bytes of spilled registers, expected 8"),
        (job(width=64), report(stack=8), None, None),
        (job(width=64), report(stack=16), report(stack=8), "16 bytes of spilled registers, expected 8"),
        (job(width=64), report(stack=8, spills=2), report(stack=8), "2 moves of spilled registers in its main loop"),
        (job(width=256), report(stack=8, spills=2), report(stack=8, spills=2), None),
        (job(arch=86), report(shared=110_000), None, "limit 101376"),
        (job(), report(wgmma=0), None, "no matrix instruction"),
        (job(), report(wgmma=0, mma=8), report(), "no wgmma instruction, expected 8"),
        (job(variant="mask"), report(stack=8), report(stack=8), None),
        (job(variant="descriptors"), report(), None, "no bulk copy"),
        (job(variant="descriptors"), report(bulk=4), None, None),
        (job(descriptors=True), report(), None, "no bulk copy"),
        (job(kernel="decode", descriptors=True), report(), None, None),
        (job(), report(waits=0), None, "waits for all of its copies"),
        (job(variant="mask"), report(waits=0), None, None),
        (job(), report(waits=-1), None, None),
        (job(), report(buffers=2), None, "2 buffers in its main loop, expected 3"),
        (job(kernel="decode"), report(buffers=3), None, "3 buffers in its main loop, expected 4"),
        (job(width=64), report(buffers=2), None, None),
        (job(width=64), report(buffers=0, waits=-1), None, "no pipeline"),
        (job(width=256), report(buffers=0, waits=-1), None, None),
        (job(), report(serial=1), report(serial=1), "wait for each other"),
        (job(width=64), report(serial=1), report(), "wait for each other"),
        (job(width=64), report(serial=1), report(serial=1), None),
        (job(), Lost("PTXASError: died"), None, "PTXASError"),
    ],
)
def test_find_fault(
    which: offline.Job, found: offline.Report | Lost, known: offline.Report | None, fault: str | None
) -> None:
    said = offline.find_fault(which, found, known)
    assert said is None if fault is None else fault in str(said)


@pytest.mark.parametrize("version", VERSIONS)
def test_record_of_targets_prefetches(version: str) -> None:
    """D = 128 in bf16 on sm_90: copies in flight, three buffers (decode four), no spills, a short loop with a table."""
    record = offline.read_reports(RECORD, version)
    for start, kernel, variant in product(offline.TARGETS, Launch._fields, offline.MAIN):
        name = f"{start}{kernel} {variant}"
        found = record[name]
        assert found.waits > 0, name
        assert found.buffers >= (4 if " decode " in name else 3), name
        assert found.stack == found.serial == 0, name
        assert found.instructions > 100, name
    assert offline.compare_lengths(record) == []


def test_compare_lengths_names_the_longer_loop() -> None:
    start = offline.TARGETS[0]
    reports = {f"{start}forward plain": report(), f"{start}forward bias": report(instructions=315)}
    assert offline.compare_lengths(reports) == []
    reports[f"{start}forward bias"] = report(instructions=316)
    assert ["316 instructions" in fault for fault in offline.compare_lengths(reports)] == [True]
    assert offline.compare_lengths({f"{start}forward bias": report()}) == []


def test_write_goes_on_where_it_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels of the same source and tile are not built again; a record of another source is made anew."""
    built: list[str] = []

    def outcomes(_: object, jobs: list[tuple[offline.Job]], *__: object, **___: object) -> Iterator[Any]:
        for (one,) in jobs:
            built.append(one.name)
            yield (one,), report()

    monkeypatch.setattr(offline, "results", outcomes)
    record, jobs = tmp_path / "record.json", [job(), job(variant="plain"), job(kernel="dq")]
    assert offline.check(jobs[:2], record, True, 1) == 0
    assert offline.check(jobs, record, True, 1) == 0
    assert built == [one.name for one in jobs]
    moved = jobs[2]._replace(tile=Tile(64, 64, 8, 3))
    assert offline.check([*jobs[:2], moved], record, True, 1) == 0
    assert built == [one.name for one in (*jobs, moved)]
    monkeypatch.setattr(offline, "source_hash", lambda: "another")
    assert offline.check(jobs[:1], record, True, 1) == 0
    assert list(offline.read_reports(record, offline.triton.__version__)) == [jobs[0].name]


@pytest.mark.parametrize("path", TABLES, ids=lambda path: path.stem)
def test_launch_tables_are_complete(path: Path) -> None:
    data = json.loads(path.read_text(encoding="utf-8"))
    assert data["arch"] == int(path.stem.removeprefix("sm_"))
    assert "timed_on" in data
    assert set(data["entries"]) == {f"{bits}/{dim}" for bits in (16, 32) for dim in (16, 32, 64, 128, 256)}
    for entry in data["entries"].values():
        parsed = launch.parse(entry)
        assert isinstance(parsed, Launch)
        for tile in parsed:
            assert all(n > 0 and n & (n - 1) == 0 for n in tile[:3])
            assert min(tile.rows, tile.block) >= 16
            assert 1 <= tile.stages <= 8


@pytest.mark.parametrize(
    "arch, table", [(80, 80), (86, 86), (87, 86), (89, 86), (90, 90), (100, 100), (103, 100), (121, 120)]
)
def test_launch_table_takes_next_older_architecture(arch: int, table: int) -> None:
    assert launch.launch_table(arch) == launch.launch_table(table)
    own = json.loads((launch.TABLES / f"sm_{table}.json").read_text(encoding="utf-8"))["entries"]
    assert launch.launch_table(arch)["16/128"] == launch.parse(own["16/128"])
