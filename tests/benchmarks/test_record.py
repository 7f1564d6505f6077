"""The record of a throughput run: resuming, targets, tables, chart."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from benchmarks.throughput import markdown
from benchmarks.throughput.chart import draw
from benchmarks.throughput.profiler import summarise
from benchmarks.throughput.record import CannotResume, Record, load
from benchmarks.throughput.shapes import forward_flops
from benchmarks.throughput.targets import TARGETS, evaluate
from tests.benchmarks.records import ENVIRONMENT, synthetic
from tests.benchmarks.test_inputs import CPU
from tools.environment import digest, environment, find_commit, uncommitted_changes
from tools.inputs import Shape


def test_record_is_on_disk_after_every_step(tmp_path: Path) -> None:
    record = Record(tmp_path / "new" / "a.json", dict(ENVIRONMENT), {})
    record.add_cell("forward x", {"suite": "forward", "cases": {}})
    assert load(record.path)["cells"] == {"forward x": {"suite": "forward", "cases": {}}}
    record.add_verdict({"case": "bias", "dtype": "d", "shape": "s", "status": "failed"})
    record.add_verdict({"case": "bias", "dtype": "d", "shape": "s", "status": "passed"})
    assert [v["status"] for v in load(record.path)["gate"]] == ["passed"]
    assert [path.name for path in record.path.parent.iterdir()] == ["a.json"]


def test_resume_keeps_results(tmp_path: Path) -> None:
    old = synthetic(tmp_path / "a.json")
    old.add_verdict({"case": "bias", "dtype": "bfloat16", "shape": "s", "status": "passed"})
    new = Record(old.path, dict(ENVIRONMENT), {})
    new.resume()
    assert new.data["cells"] == old.data["cells"]
    assert "train" in new.data["cells"]
    assert new.data["gate"] == old.data["gate"]
    assert new.has("train")
    assert not new.has("profile x")


@pytest.mark.parametrize("name", ["commit", "sources", "gpu", "torch"])
def test_resume_other_environment_raises(tmp_path: Path, name: str) -> None:
    synthetic(tmp_path / "a.json")
    with pytest.raises(CannotResume, match=f"with {name} 'other'"):
        Record(tmp_path / "a.json", {**ENVIRONMENT, name: "other"}, {}).resume()


def test_resume_after_kill_counts_running_cell_as_lost(tmp_path: Path) -> None:
    old = synthetic(tmp_path / "a.json")
    train = old.data["cells"].pop("train")
    old.begin("train")
    new = Record(old.path, dict(ENVIRONMENT), {})
    new.resume()
    assert new.data["lost"] == ["train"]
    assert new.data["running"] is None
    new.plan(["train", "generate", "other"], "no time left")
    known = {"train": "an earlier call ended while it was measured", "other": "no time left"}
    assert new.data["not_measured"] == known
    new.add_cell("train", train)
    assert load(new.path)["lost"] == []


def test_record_lists_every_cell_until_measured(tmp_path: Path) -> None:
    record = Record(tmp_path / "a.json", dict(ENVIRONMENT), {})
    record.plan(["a", "b", "c"], "no time left")
    record.add_cell("a", {"suite": "forward", "cases": {}})
    record.leave_out("b", "took more than 45 s", lost=True)
    data = load(record.path)
    assert data["not_measured"] == {"b": "took more than 45 s", "c": "no time left"}
    assert data["lost"] == ["b"]


def test_resume_without_file_is_empty(tmp_path: Path) -> None:
    record = Record(tmp_path / "a.json", dict(ENVIRONMENT), {})
    record.resume()
    assert record.data["cells"] == {}


def test_load_other_version_raises(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps({"version": 0}), encoding="utf-8")
    with pytest.raises(ValueError, match="version 2, got 0"):
        load(tmp_path / "a.json")


def test_targets_of_known_times(tmp_path: Path) -> None:
    found = {line["name"]: line for line in evaluate(synthetic(tmp_path / "a.json").data)}
    assert len(found) == len(TARGETS)
    on_off = found["forward: time with roles (bias) by time without"]
    assert (on_off["reached"], on_off["goal"]) == (True, "<= 1.05x")
    assert on_off["worst"] == pytest.approx(1.04)
    assert found["forward: speed by FlexAttention, same bias"]["worst"] == pytest.approx(1.5 / 1.04)
    backward = found["backward: speed by FlexAttention, same bias and its gradient"]
    assert (backward["reached"], backward["worst"]) == (True, pytest.approx(15 / 1.04))
    assert found["forward: speed (bias) by cuDNN without roles"]["reached"] is True
    assert found["forward: speed (bias) by cuDNN without roles, further goal"]["reached"] is False
    assert found["forward: speed, half of the heads dedicated, by cuDNN without roles"]["reached"] is True
    decode = found["decode: k and v read, of copy bandwidth (bias)"]
    assert (decode["reached"], decode["worst"], decode["best"]) == (False, 0.5, 0.9)
    assert found["training step: time patched (bias) by unpatched"]["worst"] == pytest.approx(1.02)
    assert found["forward: peak memory (bias) by SDPA flash"]["worst"] == 1.0


def test_targets_worst_length_decides(tmp_path: Path) -> None:
    record = synthetic(tmp_path / "a.json")
    cell = next(c for c in record.data["cells"].values() if c["suite"] == "forward" and c["shape"]["keys"] == 8192)
    cell["ratios"]["bias / off"]["median"] = 1.2
    line = evaluate(record.data)[0]
    assert (line["reached"], line["worst"], line["where"]) == (False, 1.2, "T=8192")


def test_targets_without_cells_are_not_measured(tmp_path: Path) -> None:
    record = Record(tmp_path / "a.json", dict(ENVIRONMENT), {})
    assert all(line["reached"] is None for line in evaluate(record.data))
    assert all(line.endswith("| not measured |") for line in list(markdown.target_lines(record.data))[2:])


def test_markdown_shows_times_and_reasons(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record = synthetic(tmp_path / "a.json")
    shape = next(key for key in record.data["cells"] if key.startswith("forward B8 "))
    record.data["cells"][shape]["cases"]["sdpa cudnn"] = {"unavailable": "RuntimeError: No | kernel"}
    record.save()
    markdown.main([str(record.path)])
    text = capsys.readouterr().out
    assert "NVIDIA Test, driver 1, CUDA 13.0" in text
    assert "Forward, D=128: milliseconds (TFLOP/s), p50" in text
    assert "Backward, D=64" in text
    assert "| T=1 B=32 S=32768 |" in text
    assert "| train, bias | 102.5 |" in text
    assert "- sdpa cudnn: unavailable; forward B8" in text
    assert "No / kernel" in text
    rows = [line for line in text.splitlines() if line.startswith("|")]
    width = None
    for row in rows:  # every table has as many cells in each row as in its head
        if not set(row) <= set("|-: "):
            width = row.count("|") if width is None or row.startswith(("|  |", "| target", "| model")) else width
        assert row.count("|") == width


def test_draw_writes_png(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    path = tmp_path / "new" / "chart.png"
    draw(synthetic(tmp_path / "a.json").data, path)
    assert path.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    with pytest.raises(ValueError, match="`--chart`"):
        draw(Record(tmp_path / "b.json", dict(ENVIRONMENT), {}).data, path)


def test_summarise_counts_work_of_known_kernels() -> None:
    event = {"device_type": "DeviceType.CUDA", "count": 5}
    events = [
        SimpleNamespace(key="role_attn_bwd_dkdv_kernel", self_device_time_total=10_000.0, **event),
        SimpleNamespace(key="role_attn_fwd_kernel", self_device_time_total=5_000.0, **event),
        SimpleNamespace(key="elementwise", self_device_time_total=1.0, **event),
        SimpleNamespace(key="aten::add", self_device_time_total=9.0, **event | {"device_type": "DeviceType.CPU"}),
    ]
    shape = Shape(1, 32, 8, 4096, 4096, 128)
    rows = summarise(events, shape, repeats=5)
    assert [row["name"] for row in rows] == ["role_attn_bwd_dkdv_kernel", "role_attn_fwd_kernel", "elementwise"]
    assert rows[1]["ms"] == 1.0
    assert rows[1]["tflops"] == pytest.approx(forward_flops(shape) / 1e9)
    assert rows[0]["tflops"] == pytest.approx(rows[1]["tflops"])  # twice the products in twice the time
    assert "tflops" not in rows[2]


def test_find_commit_without_git_needs_it_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tools.environment.checkout_commit", lambda: None)
    with pytest.raises(ValueError, match="`--commit`: expected the hash of the commit that is measured, got None"):
        find_commit()
    with pytest.raises(ValueError, match="got 'main'"):
        find_commit("main")
    assert find_commit("0123abc") == "0123abc"
    monkeypatch.undo()
    monkeypatch.setenv("ROLESAFE_COMMIT", "89abcde")
    assert find_commit() == "89abcde"


def test_environment_without_git_leaves_changes_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert uncommitted_changes() in (True, False)
    monkeypatch.setattr("tools.environment.ROOT", tmp_path)
    assert uncommitted_changes() is None


def test_digest_changes_with_sources(tmp_path: Path) -> None:
    found = environment(CPU, commit="abc")
    assert found["commit"] == "abc"
    assert found["torch"]
    assert found["sources"] == digest()
    (tmp_path / "a.py").write_text("a = 1", encoding="utf-8")
    before = digest(tmp_path, (".",))
    (tmp_path / "a.py").write_text("a = 2", encoding="utf-8")
    assert digest(tmp_path, (".",)) != before
