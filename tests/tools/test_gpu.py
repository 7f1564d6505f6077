"""The command lines of tuning and of the run on a GPU, without one; the checks on small calls."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from rolesafe_kernels import launch
from rolesafe_kernels.launch import INTERPRET, Launch

from tests.kernels.space import QUIET
from tools import ROOT, checks, gpu, tune
from tools.calls import CHANNEL, DECODE, FEATURES, call

interpreted = pytest.mark.skipif(not INTERPRET, reason="the interpreter runs kernels on CPU tensors")


def test_commands_without_gpu_exit_with_2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert tune.main([]) == 2
    assert "tune: expected a CUDA device" in capsys.readouterr().err
    assert gpu.main(["--out", str(tmp_path / "out")]) == 2
    assert "gpu: expected a CUDA device" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


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


def test_gpu_failing_parts_do_not_stop_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    done = []

    def fails(*_: object) -> None:
        raise gpu.Failed("out of order")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(gpu, "INTERPRET", False)
    monkeypatch.setattr(gpu, "environment", lambda device, commit: {"gpu": "none"})
    monkeypatch.setattr(gpu, "check", fails)
    monkeypatch.setattr(gpu, "tune", lambda out, budget: done.append("tuning"))
    monkeypatch.setattr(gpu, "benchmark", fails)
    assert gpu.main(["--out", str(tmp_path)]) == 1
    assert done == ["tuning"]
    record = json.loads((tmp_path / "summary.json").read_text(encoding="utf-8"))
    assert set(record["failures"]) == {"checks", "throughput"}
    assert "FAILED checks: Failed: out of order" in capsys.readouterr().out


def test_python_process_failures_are_raised() -> None:
    with pytest.raises(gpu.Failed, match="not done after 0 s"):
        gpu.python(["-c", "import time; time.sleep(60)"], 0.1)
    with pytest.raises(gpu.Failed, match="exit status 3"):
        gpu.python(["-c", "raise SystemExit(3)"], 30.0)


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
