"""Ends of benchmark runs: Ctrl-C, a second run in one folder, damaged files."""

from __future__ import annotations

import json
import os
import signal

import pytest
import typer

from benchmarks.override_resistance import __main__ as study
from benchmarks.override_resistance import transfer
from benchmarks.override_resistance.kept import Kept
from benchmarks.override_resistance.settings import Study
from benchmarks.throughput.record import load
from rolesafe.files import locked

TINY = Study(sizes=("0.1M",), seeds=(0,), arms=("plain",), quick=True)


def interrupted(*args):
    raise KeyboardInterrupt
    yield


def test_study_interrupted_ends_with_130(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(study, "updates", interrupted)
    assert study.run(TINY, tmp_path, tmp_path / "models") == 130
    assert "Rerun the command to resume" in " ".join(capsys.readouterr().out.split())


def test_transfer_interrupted_ends_with_130(tmp_path, monkeypatch):
    monkeypatch.setattr(transfer, "updates", interrupted)
    assert transfer.run(TINY, ["plain"], ["plain"], tmp_path / "models", tmp_path, None) == 130
    assert not json.loads((tmp_path / "transfer.json").read_text())["complete"]


@pytest.mark.parametrize("module", [study, transfer], ids=["study", "transfer"])
def test_second_run_in_one_folder_raises(module, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "run", lambda *args: 0)
    with (
        locked(tmp_path, "out"),
        pytest.raises(ValueError, match="`out`: expected a directory that no other run is writing into"),
    ):
        module.main(out=tmp_path, models=tmp_path, **({"size": "0.1M"} if module is transfer else {}), seeds=1)
    with pytest.raises(typer.Exit):
        module.main(out=tmp_path, models=tmp_path, **({"size": "0.1M"} if module is transfer else {}), seeds=1)


@pytest.mark.parametrize("content", ["", "{", "[]", "[" * 100_000])
def test_study_damaged_settings_raise(content, tmp_path):
    (tmp_path / "study.json").write_text(content)
    with pytest.raises(ValueError, match=r"`path`: expected a study's settings.*study\.json"):
        study.run(TINY, tmp_path, tmp_path / "models")


@pytest.mark.parametrize(
    "content", [b"", b"\n", b"\xff\xfe", b'"model"\n[]\n', b'"model"\n{"config": 3}\n', b'"model"\n{']
)
def test_kept_damaged_results_are_dropped(content, tmp_path):
    path = tmp_path / "kept.jsonl"
    path.write_bytes(content)
    assert Kept(path, "model").results == []
    assert path.read_text() == '"model"\n'


def test_load_broken_record_names_file(tmp_path):
    path = tmp_path / "throughput.json"
    path.write_text("")
    with pytest.raises(ValueError, match=r"throughput\.json"):
        load(path)


def test_gcg_benchmark_interrupted_ends_with_130(tmp_path, monkeypatch):
    from benchmarks import gcg

    def compare(*args, stopping, **keywords):
        os.kill(os.getpid(), signal.SIGINT)
        assert stopping()
        return {}

    monkeypatch.setattr(gcg, "compare", compare)
    monkeypatch.setattr(gcg, "show", lambda record: "")
    monkeypatch.setattr("sys.argv", ["gcg.py", "--model", "x", "--output", str(tmp_path / "gcg.json")])
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        assert gcg.main() == 130
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
