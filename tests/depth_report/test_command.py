"""The command `rolesafe depth`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from rolesafe.cli import app
from rolesafe.depth_report import DepthReport, measure
from rolesafe.tasks import vocabulary
from rolesafe.training.tiny import tiny_llama, tiny_tokenizer

SHORT = (
    "--examples", "2", "--family", "access", "--samples", "2", "--max-new-tokens", "3", "--forced", "1",
    "--length", "1", "--device", "cpu", "--recovery", "I", "--strength", "2",
)  # fmt: skip


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    found = []
    for seed in (0, 1):
        path = tmp_path_factory.mktemp("models") / str(seed)
        tokenizer = tiny_tokenizer(vocabulary())
        tiny_llama(len(tokenizer), seed=seed, hidden=16, layers=1, heads=2).save_pretrained(path)
        tokenizer.save_pretrained(path)
        found.append(str(path))
    return found


def run(*arguments: Any) -> Any:
    return CliRunner().invoke(app, ["depth", *map(str, arguments)])


def test_depth_writes_report_and_page_and_resumes(
    models: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, page = tmp_path / "depth.json", tmp_path / "depth.html"
    given = (models[0], *SHORT, "--against", models[1], "--json", out)
    with monkeypatch.context() as patched:

        def stop(*_: Any) -> Any:
            raise KeyboardInterrupt

        patched.setattr(measure, "insertion", stop)
        result = run(*given)
    assert result.exit_code == 130, result.output
    assert "INTERRUPTED" in result.output
    part = DepthReport.load(out)
    assert not part.complete
    assert part.prefilling
    assert part.insertion == ()
    assert (tmp_path / "depth.branches.json").exists()
    monkeypatch.setattr(measure, "prefilling", None)  # it is not measured again
    result = run(*given, "--page", page)
    assert result.exit_code == 0, result.output
    report = DepthReport.load(out)
    assert report.complete
    assert report.insertion
    assert report.rollouts == part.rollouts
    for text in ("Harm information", "Recovery after forced tokens", "KL divergence", "Prefilling", "Insertion"):
        assert text in result.output
        assert text in page.read_text(encoding="utf-8")
    other = run(*given, "--seed", "3")
    assert other.exit_code == 2
    assert "`done`: expected a report with settings" in " ".join(other.output.split())


def test_page_without_matplotlib_names_the_extra(models: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    result = run(models[0], *SHORT, "--page", "page.html")
    assert result.exit_code != 0
    assert 'pip install "rolesafe[demo]"' in " ".join(result.output.split())


def test_argument_out_of_range_exits_with_two(models: list[str]) -> None:
    result = run(models[0], *SHORT, "--discount", "2")
    assert result.exit_code == 2
    assert "`discount`: expected a number in (0, 1], got 2" in " ".join(result.output.split())
