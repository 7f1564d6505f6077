"""The command lines of tuning and of the run on a GPU, without one."""

from __future__ import annotations

import json
from pathlib import Path

import gpu
import pytest
import torch
from gpu_checks import all_jobs
from rolesafe_kernels import launch, tune
from rolesafe_kernels.launch import Launch


def test_no_gpu_is_said_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert tune.main([]) == 2
    assert "tune: expected a CUDA device" in capsys.readouterr().err
    assert gpu.main(["--out", str(tmp_path / "out")]) == 2
    assert "gpu: expected a CUDA device" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_dry_run_lists_candidates_and_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    table = tmp_path / "sm_90.json"
    tiles = {name: [128, 64, 4, 3] for name in Launch._fields}
    table.write_text(json.dumps({"arch": 90, "timed_on": None, "entries": {"16/128": tiles}}), encoding="utf-8")
    monkeypatch.setattr(launch, "TABLES", tmp_path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    launch.table.cache_clear()
    before = table.read_bytes()
    assert tune.main(["--dry-run", "--dim", "128", "--kernel", "forward", "dq"]) == 0
    out = capsys.readouterr().out
    assert out.count("candidates") == 2
    assert "sm_90 16/128 forward" in out
    assert tune.main(["--dry-run", "--dim", "300"]) == 2
    assert "it has no 16/512" in capsys.readouterr().err
    assert table.read_bytes() == before
    launch.table.cache_clear()


def test_later_parts_run_though_earlier_ones_fail(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    done = []

    def fails(*_: object) -> None:
        raise gpu.Failed("out of order")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(gpu, "INTERPRET", False)
    monkeypatch.setattr(gpu, "environment", lambda commit: {"gpu": "none"})
    monkeypatch.setattr(gpu, "check", fails)
    monkeypatch.setattr(gpu, "throughput", fails)
    monkeypatch.setattr(gpu, "lines_in_fresh_process", lambda out, when, limit: done.append(when))
    monkeypatch.setattr(gpu, "tune", lambda out, budget: done.append("tuning"))
    assert gpu.main(["--out", str(tmp_path)]) == 1
    assert done == ["before", "tuning", "after"]
    record = json.loads((tmp_path / "summary.json").read_text(encoding="utf-8"))
    assert set(record["failures"]) == {"checks", "throughput"}
    assert "FAILED checks: Failed: out of order" in capsys.readouterr().out


def test_a_subprocess_is_ended_in_time_and_its_failure_shown() -> None:
    with pytest.raises(gpu.Failed, match="not done after 0 s"):
        gpu.python(["-c", "import time; time.sleep(60)"], 0.1)
    with pytest.raises(gpu.Failed, match="exit status 3"):
        gpu.python(["-c", "raise SystemExit(3)"], 30.0)


def test_teraflops_of_a_line() -> None:
    # 4 B H T S D / 2 operations forward, 2.5 times as many backward
    assert gpu.teraflops("D128 B8 T4096 S4096 bias fwd", 2.199) == "500"
    assert gpu.teraflops("D128 B8 T4096 S4096 bias fwd+bwd", 7.697) == "500"
    assert gpu.teraflops("D128 B8 T1 S4096 bias fwd", 1.0) == ""


def test_checks_cover_what_they_should() -> None:
    names = " ".join(all_jobs())
    for part in (
        "fp32",
        "fp16",
        "decode",
        "window",
        "softcap",
        "documents",
        "padding",
        "same bits",
        "graph",
        "compile",
        "descriptors",
    ):
        assert part in names


def test_what_the_pages_say_of_the_checks_on_a_gpu_is_what_the_record_says() -> None:
    record = json.loads((gpu.ROOT / "benchmarks/results/kernel_checks.json").read_text(encoding="utf-8"))
    held = sum(check["ok"] for check in record["checks"])
    said = f"{held} of {len(record['checks'])} checks"
    for page in ("README.md", "kernels/README.md"):
        assert said in (gpu.ROOT / page).read_text(encoding="utf-8"), f"{page}: expected {said!r}"
    beyond = {check["name"]: check["detail"] for check in record["checks"] if not check["ok"]}
    assert set(beyond) == {"everything", "descriptors: everything", "T 1", "T 2"}
    assert all("dbias" in part for detail in beyond.values() for part in detail.split("; "))
