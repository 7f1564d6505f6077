"""Processes under limits, the command line of tuning without a GPU; the checks on small calls."""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from rolesafe_kernels import launch
from rolesafe_kernels.launch import INTERPRET, Launch

from rolesafe.workers import Lost
from tests.kernels.space import QUIET
from tools import ROOT, bench, checks, gpu, tune
from tools.calls import CHANNEL, DECODE, FEATURES, call

interpreted = pytest.mark.skipif(not INTERPRET, reason="the interpreter runs kernels on CPU tensors")


def test_tune_without_gpu_exits_with_2(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert tune.main([]) == 2
    assert "tune: expected a CUDA device" in capsys.readouterr().err


def test_tune_copies_the_table_it_rewrites(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    committed = launch.TABLES
    monkeypatch.setattr(launch, "TABLES", committed)
    before = (committed / "sm_90.json").read_bytes()
    tune.copy_tables(tmp_path / "new", 90)
    own = tmp_path / "new" / "sm_90.json"
    assert own.read_bytes() == before
    tune.rewrite(90, bench.Pair(16, 128, "forward"), launch.Tile(64, 64, 4, 2), {"gpu": "a"})
    assert launch.launch_table(90)["16/128"].forward == (64, 64, 4, 2, False)
    assert (committed / "sm_90.json").read_bytes() == before, "the committed table is rewritten"
    # a later call keeps what an earlier one found; a newer GPU starts from the nearest older table
    monkeypatch.setattr(launch, "TABLES", committed)
    tune.copy_tables(tmp_path / "new", 90)
    assert launch.launch_table(90)["16/128"].forward == (64, 64, 4, 2, False)
    monkeypatch.setattr(launch, "TABLES", committed)
    tune.copy_tables(tmp_path / "newer", 103)
    assert [path.name for path in (tmp_path / "newer").iterdir()] == ["sm_100.json"]
    launch.launch_table.cache_clear()


def test_tune_dry_run_lists_candidates(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    table = tmp_path / "sm_90.json"
    tiles = {name: [128, 64, 4, 3] for name in Launch._fields}
    table.write_text(json.dumps({"arch": 90, "timed_on": None, "entries": {"16/128": tiles}}), encoding="utf-8")
    monkeypatch.setattr(launch, "TABLES", tmp_path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    launch.launch_table.cache_clear()
    before = table.read_bytes()
    assert tune.main(["--dry-run", "--dim", "128", "--kernel", "forward", "dq"]) == 0
    out = capsys.readouterr().out
    assert out.count("candidates") == 2
    assert "sm_90 16/128 forward" in out
    assert tune.main(["--dry-run", "--dim", "300"]) == 2
    assert "got 16/512" in capsys.readouterr().err
    assert table.read_bytes() == before
    launch.launch_table.cache_clear()


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Iterator[gpu.Processes]:
    # not the fork server: it serves all tests of this process, with what the first of them preloads
    monkeypatch.setattr(gpu, "_context", lambda preload: multiprocessing.get_context("spawn"))
    found = gpu.Processes(workers=2)
    yield found
    found.close()


def test_processes_run_keeps_its_process(machine: gpu.Processes) -> None:
    first = machine.run(os.getpid, limit=60.0)
    assert first not in (os.getpid(), None)
    assert machine.run(os.getpid, limit=60.0) == first
    found = machine.run(math.sqrt, -1.0, limit=60.0)
    assert isinstance(found, Lost)
    assert found.reason.startswith("ValueError: ")
    assert machine.run(os.getpid, limit=60.0) != first, "used again after an error"


def test_processes_run_ends_hangs_and_crashes(machine: gpu.Processes) -> None:
    pid = machine.run(os.getpid, limit=60.0)
    begin = machine.now()
    assert machine.run(time.sleep, 60.0, limit=0.3) == Lost("took more than 0 s")
    assert machine.now() - begin < 30
    wait_for_end(pid)
    assert machine.run(os._exit, 7, limit=60.0) == Lost("its process died")
    assert machine.run(math.sqrt, 4.0, limit=60.0) == 2.0


def wait_for_end(pid: int) -> None:
    """Wait until a process is gone."""
    for _ in range(200):
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return
        time.sleep(0.05)
    raise AssertionError(f"process {pid} runs on")


def test_processes_run_all_ends_late_jobs(machine: gpu.Processes) -> None:
    late = dict(machine.run_all(time.sleep, [(0.0,), (1.0,)], limit=60.0, until=machine.now()))
    assert late == {(0.0,): Lost("no time left"), (1.0,): Lost("no time left")}


def test_processes_command_gives_reason(machine: gpu.Processes) -> None:
    assert machine.command(["-c", "import tools, benchmarks"], 60.0) == ""
    assert machine.command(["-c", "raise SystemExit(3)"], 60.0) == "exit status 3"
    assert machine.command(["-c", "import time; time.sleep(60)"], 0.1) == "took more than 0 s"


def test_all_checks_cover_every_kind() -> None:
    names = " ".join(checks.all_checks())
    for part in (
        "fp32", "fp16", "decode", "window", "softcap", "documents", "padding", "same bits", "graph", "compile",
        "descriptors",
    ):  # fmt: skip
        assert part in names


@interpreted
@QUIET
@pytest.mark.parametrize(
    "options",
    [FEATURES["everything"], FEATURES["documents, window"], {**DECODE, **CHANNEL, "keys": 70}],
)
def test_check_call_on_cpu_passes(options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "DEVICE", torch.device("cpu"))
    found = checks.check_call(call(**{"length": 35, "dim": 16, **options, "dtype": "float16", "batch": 1}))
    assert found["detail"] == ""
    assert ("dq max" in found["errors"]) == ("keys" not in options)


@interpreted
@QUIET
def test_check_bad_roles_on_cpu_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "DEVICE", torch.device("cpu"))
    assert checks.check_bad_roles(call(keys=70, dim=16, dtype="float16", **DECODE, **CHANNEL)) == {"detail": ""}


def test_pages_state_the_recorded_checks() -> None:
    record = json.loads((ROOT / "benchmarks/results/kernel_checks.json").read_text(encoding="utf-8"))
    held = sum(check["ok"] for check in record["checks"])
    said = f"{held} of {len(record['checks'])} checks"
    for page in ("README.md", "kernels/README.md"):
        assert said in (ROOT / page).read_text(encoding="utf-8"), f"{page}: expected {said!r}"
    beyond = {check["name"]: check["detail"] for check in record["checks"] if not check["ok"]}
    assert set(beyond) == {"everything", "descriptors: everything", "T 1", "T 2"}
    assert all("dbias" in part for detail in beyond.values() for part in detail.split("; "))
