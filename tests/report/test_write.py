"""The functions others call."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from rolesafe.evaluation import Results
from rolesafe.report import markdown_table, print_table, write_chart, write_page, write_report

pytest.importorskip("matplotlib")


def test_report_is_three_files(make_results: Callable[..., Results], tmp_path: Path) -> None:
    results = make_results()
    written = write_report(results, tmp_path / "new" / "folder")
    assert [path.name for path in written] == ["report.html", "attack-success.png", "results.md"]
    assert {path.name for path in (tmp_path / "new" / "folder").iterdir()} == {path.name for path in written}
    page, chart, table = written
    assert page.read_text(encoding="utf-8").startswith("<!doctype html>")
    assert chart.read_bytes().startswith(b"\x89PNG")
    assert table.read_text(encoding="utf-8") == markdown_table(results)


def test_interrupted_and_empty_runs_render(make_results: Callable[..., Results], tmp_path: Path) -> None:
    for runs in ((), make_results().runs[:1]):
        page, *_ = write_report(make_results(runs=runs, complete=False), tmp_path)
        assert "Partial results: the run was not finished" in page.read_text(encoding="utf-8")


def test_a_file_is_replaced_as_a_whole(
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


def test_paths_may_be_strings(make_results: Callable[..., Results], tmp_path: Path) -> None:
    assert write_page(make_results(), str(tmp_path / "a.html")) == tmp_path / "a.html"


def test_table_is_printed(make_results: Callable[..., Results]) -> None:
    stream = io.StringIO()
    print_table(make_results(), Console(file=stream, width=110))
    assert "dilution x64" in stream.getvalue()
    assert "95.0%" in stream.getvalue()
