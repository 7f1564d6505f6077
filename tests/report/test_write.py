"""Public functions of the report."""

from __future__ import annotations

import io
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import pytest
from rich.console import Console

import rolesafe.evaluation
import rolesafe.report
from rolesafe.evaluation import Results
from rolesafe.report import markdown_table, print_table, write_chart, write_page, write_report

pytest.importorskip("matplotlib")


def test_write_report_writes_three_files(make_results: Callable[..., Results], tmp_path: Path) -> None:
    results = make_results()
    written = write_report(results, tmp_path / "new" / "folder")
    assert [path.name for path in written] == ["report.html", "attack-success.png", "results.md"]
    assert {path.name for path in (tmp_path / "new" / "folder").iterdir()} == {path.name for path in written}
    page, chart, table = written
    assert page.read_text(encoding="utf-8").startswith("<!doctype html>")
    assert chart.read_bytes().startswith(b"\x89PNG")
    assert table.read_text(encoding="utf-8") == markdown_table(results)


def test_write_report_partial_results_render(make_results: Callable[..., Results], tmp_path: Path) -> None:
    for runs in ((), make_results().runs[:1]):
        page, *_ = write_report(make_results(runs=runs, complete=False), tmp_path)
        assert "Partial results: the run was not finished" in page.read_text(encoding="utf-8")


def test_write_chart_interrupted_keeps_the_old_file(
    make_results: Callable[..., Results], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "chart.png"
    path.write_bytes(b"old")

    def interrupted(self: Path, target: Path) -> Path:
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_chart(make_results(), path)
    assert path.read_bytes() == b"old"


def test_write_page_takes_a_string_path(make_results: Callable[..., Results], tmp_path: Path) -> None:
    assert write_page(make_results(), str(tmp_path / "a.html")) == tmp_path / "a.html"


def test_print_table_prints_rows(make_results: Callable[..., Results]) -> None:
    stream = io.StringIO()
    print_table(make_results(), Console(file=stream, width=110))
    assert "dilution x64" in stream.getvalue()
    assert "95.0%" in stream.getvalue()


@pytest.mark.parametrize("name", ["write_comparison", "comparison"])
def test_moved_report_names_the_new_place(name: str) -> None:
    with pytest.raises(ImportError, match=f"{name} has moved to benchmarks.override_resistance.run_report"):
        getattr(rolesafe.report, name)


@pytest.mark.parametrize(
    ("name", "new"),
    [
        ("Plan", "benchmarks.override_resistance.targets"),
        ("Store", "benchmarks.override_resistance.store"),
        ("Verdict", "rolesafe.evaluation.verdict"),
        ("verdicts", "benchmarks.override_resistance.targets"),
    ],
)
def test_moved_evaluation_names_the_new_place(name: str, new: str) -> None:
    with pytest.raises(ImportError, match=f"{name} has moved to {new}"):
        getattr(rolesafe.evaluation, name)
    assert hasattr(import_module(new), name)
