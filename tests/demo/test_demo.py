"""The demo at a small size: files, resuming, and errors."""

from __future__ import annotations

import dataclasses
import errno
import io
import os
import shutil
import sys
from pathlib import Path

import pytest
from rich.console import Console
from transformers.utils import logging

import rolesafe
from rolesafe.config import RoleConfig
from rolesafe.demo import DemoSettings, run_demo
from rolesafe.demo import run as demo_run
from rolesafe.evaluation import Results
from rolesafe.workers import Update

SMALL = DemoSettings(seeds=(0,), steps=2, batch_size=4, examples=6, hidden=32, layers=1, heads=4)
STORIES = Path(__file__).parents[3] / "shared" / "models" / "stories260k"


def quiet() -> Console:
    return Console(file=io.StringIO(), width=120)


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> tuple[Path, Results, str]:
    directory = tmp_path_factory.mktemp("demo") / "run"
    console = quiet()
    results = run_demo(SMALL, directory, console=console)
    return directory, results, console.file.getvalue()


def test_run_demo_writes_all_files(finished):
    directory, results, printed = finished
    assert results.complete
    assert results.models == ("plain", "role-aware")
    assert Results.load(directory / "results.json") == results
    assert (directory / "attack-success.png").read_bytes().startswith(b"\x89PNG")
    page = (directory / "report.html").read_text(encoding="utf-8")
    assert "role-aware" in page
    assert "dilution" in printed


def test_run_demo_twins_differ_by_the_role_layer(finished):
    directory, results, _ = finished
    counts = {run.model: run.n_parameters for run in results.runs}
    model = rolesafe.from_pretrained(directory / "models" / "role-aware-0")
    added = sum(p.numel() for _, p in rolesafe.named_role_parameters(model))
    assert counts["role-aware"] - counts["plain"] == added
    assert added <= 0.02 * counts["plain"] + 2000


def test_run_demo_measures_utility_and_attacks(finished):
    for run in finished[1].runs:
        assert run.utility.benign.n == SMALL.examples // 2
        assert {point.attack for point in run.attacks} >= {
            "ignore-previous", "mimicry", "fake-system", "dilution", "position",
        }  # fmt: skip
        assert all(point.success.n == SMALL.examples // 2 for point in run.attacks)


def test_run_demo_finished_jobs_are_kept(finished, monkeypatch):
    directory, results, _ = finished

    def forbidden(*args):
        assert args[1] == [], "jobs were started again"
        yield from ()

    monkeypatch.setattr(demo_run, "updates", forbidden)
    assert run_demo(SMALL, directory, console=quiet()).runs == results.runs


def test_run_demo_other_settings_raise(finished):
    with pytest.raises(ValueError, match=r"`directory`: expected results of these settings, got others"):
        run_demo(dataclasses.replace(SMALL, steps=3), finished[0], console=quiet())


def test_run_demo_interrupted_writes_partial_results(finished, tmp_path, monkeypatch):
    run = finished[1].runs[0]

    def interrupted(work, jobs, workers):
        yield Update(jobs[0], "training", 0.5)
        yield Update(jobs[0], "dilution", 0.9, run=dataclasses.replace(run, attacks=run.attacks[:3], complete=False))
        raise KeyboardInterrupt

    monkeypatch.setattr(demo_run, "updates", interrupted)
    console = quiet()
    results = run_demo(SMALL, tmp_path, console=console)
    assert not results.complete
    assert len(results.runs[0].attacks) == 3
    assert Results.load(tmp_path / "results.json") == results
    assert "artial" in (tmp_path / "report.html").read_text(encoding="utf-8")
    said = " ".join(console.file.getvalue().split())
    assert "Interrupted" in said
    assert f"--run-dir {tmp_path}" in said.replace(" /", "/").replace("--run-dir/", "--run-dir /")


def test_run_demo_unreadable_model_raises_first(tmp_path, monkeypatch):
    monkeypatch.setattr(demo_run, "updates", lambda *args: pytest.fail("a job was started"))
    broken = dataclasses.replace(SMALL, model=str(tmp_path / "nowhere"), position_gap=0)
    with pytest.raises(ValueError, match=r"`model`: expected a directory or hub id.*nowhere"):
        run_demo(broken, tmp_path / "run", workers=1, console=quiet())


def test_run_demo_failed_job_keeps_the_others(finished, tmp_path, monkeypatch):
    """A killed process ends with the stage "failed", too."""
    plain, aware = finished[1].runs

    def told(work, jobs, workers):
        yield Update(jobs[0], "failed", 0.0, error="ValueError: [/] no\x1b[31m", trace="Traceback: here")
        yield Update(jobs[1], "done", 1.0, run=aware)

    monkeypatch.setattr(demo_run, "updates", told)
    with pytest.raises(demo_run.DemoError, match="1 of 2 jobs failed: plain 0: ValueError") as raised:
        run_demo(SMALL, tmp_path, console=quiet())
    assert "\n" not in str(raised.value)
    assert (tmp_path / "failed" / "plain-0.txt").read_text(encoding="utf-8") == "Traceback: here"
    assert [run.model for run in Results.load(tmp_path / "results.json").runs] == ["role-aware"]
    assert (tmp_path / "report.html").exists()

    def resumed(work, jobs, workers):
        assert jobs == [("plain", 0)]
        yield Update(jobs[0], "done", 1.0, run=plain)

    monkeypatch.setattr(demo_run, "updates", resumed)
    monkeypatch.setattr(demo_run, "write_report", lambda *args: ())
    assert run_demo(SMALL, tmp_path, console=quiet()).complete


@pytest.mark.parametrize("module", ["matplotlib", "scipy", "statsmodels"])
def test_run_demo_without_extra_raises_first(tmp_path, monkeypatch, module):
    monkeypatch.setattr(demo_run, "updates", lambda *args: pytest.fail("a job was started"))
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=r'pip install "rolesafe\[demo\]"'):
        run_demo(SMALL, tmp_path / "run", console=quiet())
    assert not (tmp_path / "run").exists()


def test_run_demo_second_run_in_directory_raises(finished, tmp_path, monkeypatch):
    def told(work, jobs, workers):
        with pytest.raises(ValueError, match="`directory`: expected a directory that no other run is writing into"):
            run_demo(SMALL, tmp_path, console=quiet())
        yield from (Update(job, "done", 1.0, run=run) for job, run in zip(jobs, finished[1].runs, strict=False))

    monkeypatch.setattr(demo_run, "updates", told)
    monkeypatch.setattr(demo_run, "write_report", lambda *args: ())
    assert run_demo(SMALL, tmp_path, console=quiet()).complete
    assert run_demo(SMALL, tmp_path, console=quiet()).complete  # the lock ended with the run


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b"null", b'{"schema_version": 2}', b"[" * 100_000])
def test_run_demo_damaged_results_raise(tmp_path, content):
    (tmp_path / "results.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"`directory`: .*results\.json: .*delete that file") as raised:
        run_demo(SMALL, tmp_path, console=quiet())
    assert (tmp_path / "results.json").read_bytes() == content
    assert "\n" not in str(raised.value)


def test_run_demo_full_disk_keeps_the_old_file(finished, tmp_path, monkeypatch):
    shutil.copy(finished[0] / "results.json", tmp_path)

    def full(file):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"No space left on device: .*results\.json"):
        run_demo(SMALL, tmp_path, console=quiet())
    assert Results.load(tmp_path / "results.json") == finished[1]
    assert not list(tmp_path.glob("*.part"))


def test_run_demo_hostile_folder_name_is_inert(finished, tmp_path, monkeypatch):
    """Regression: markup and escape sequences in a folder name took effect in the last line."""
    directory = tmp_path / "[bold red]x[/y]\x1b]0;owned\x07"

    def told(work, jobs, workers):
        yield from (Update(job, "done", 1.0, run=run) for job, run in zip(jobs, finished[1].runs, strict=True))

    monkeypatch.setattr(demo_run, "updates", told)
    console = Console(file=io.StringIO(), width=300, force_terminal=True, color_system=None)
    assert run_demo(SMALL, directory, console=console).complete
    said = console.file.getvalue()
    assert "[bold red]x[/y]\\x1b]0;owned\\x07/results.json" in said
    assert "\x1b]" not in said


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"steps": 0}, "`steps`: expected a number >= 1, got 0"),
        ({"seeds": ()}, "`seeds`: expected distinct seeds"),
        ({"seeds": (1, 1)}, "`seeds`: expected distinct seeds"),
        ({"examples": 7}, "`examples`: expected an even number >= 6, got 7"),
        ({"position_gap": -1}, "`position_gap`: expected a length >= 0, got -1"),
        ({"learning_rate": 0.0}, "`learning_rate`: expected a positive number"),
    ],
)
def test_settings_out_of_range_raise(changes, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(SMALL, **changes)


@pytest.mark.skipif(not STORIES.exists(), reason="needs the stories260k checkpoint, which is not part of the project")
def test_run_demo_retrains_a_real_checkpoint(tmp_path, monkeypatch):
    """In this process and with one kind of attack: `finished` has the processes and every attack."""

    def here(work, jobs, workers):
        for job in jobs:
            told = []
            work(job, told.append)
            yield from told

    monkeypatch.setattr(demo_run, "updates", here)
    monkeypatch.setattr("rolesafe.demo.job.ATTACKS", ("none", "mimicry"))
    verbosity = logging.get_verbosity()
    settings = dataclasses.replace(
        SMALL, model=str(STORIES), config=RoleConfig.preset("bias"), max_length=256, position_gap=0
    )
    try:
        results = run_demo(settings, tmp_path, console=quiet())
    finally:
        logging.set_verbosity(verbosity)
        logging.enable_progress_bar()
    assert results.complete
    assert {point.attack for run in results.runs for point in run.attacks} == {"none", "mimicry"}
    assert {run.n_parameters for run in results.runs if run.model == "plain"} == {260032}
