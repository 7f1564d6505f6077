"""`rolesafe retrain` on the command line."""

from __future__ import annotations

import json
import re

import pytest
from typer.testing import CliRunner

from rolesafe.cli import app
from rolesafe.retrain import RetrainConfig


@pytest.fixture
def run(monkeypatch):
    monkeypatch.setenv("COLUMNS", "150")
    return lambda *arguments: CliRunner().invoke(app, ["retrain", *map(str, arguments)])


@pytest.fixture
def captured(monkeypatch):
    """Replace the training and return the list of its calls."""
    calls = []

    def fake(config, out, **options):
        from rolesafe.retrain.run import RetrainResult

        calls.append((config, out, options))
        return RetrainResult(path=out, complete=len(calls) == 1, steps=1, loss=1.0, tokens=2, seconds=3.0)

    monkeypatch.setattr("rolesafe.retrain.run.retrain", fake)
    return calls


def test_dry_run_prints_five_rows_and_counts(run, checkpoint, data):
    result = run(checkpoint, "--data", data, "--dry-run")
    assert result.exit_code == 0, result.output
    assert len(re.findall(r"^\w+/\d+: ", result.output, re.MULTILINE)) == 5
    for text in ("   system ", "assistant ", "14 prepared rows from 14 rows", "injected", "benign"):
        assert text in result.output
    assert not list(checkpoint.parent.glob("out*"))


def test_dry_run_spells_control_characters(run, checkpoint, tmp_path):
    rows = [{"instruction": f"Do {i}", "input": "x\x1b[31my. z z", "output": "\u202eend"} for i in range(4)]
    path = tmp_path / "rows.json"
    path.write_text(json.dumps(rows))
    result = run(checkpoint, "--data", path, "--dry-run")
    assert result.exit_code == 0, result.output
    assert "\x1b" not in result.output
    assert "\u202e" not in result.output
    assert "\\x1b[31my" in result.output


def test_options_change_the_recipe(run, captured, tmp_path):
    recipe = tmp_path / "r.yaml"
    RetrainConfig(model="m", data="d", preset="share", role_config={"share": 0.1}, epochs=2).save(recipe)
    result = run("other", "--recipe", recipe, "--out", tmp_path / "out", "--steps", 7, "--seed", 3)
    assert result.exit_code == 0, result.output
    (config, out, _), = captured  # fmt: skip
    assert config == RetrainConfig(
        model="other", data="d", preset="share", role_config={"share": 0.1}, steps=7, seed=3
    )  # fmt: skip
    assert out == tmp_path / "out"


def test_out_alone_takes_the_recipe_from_there(run, captured, tmp_path):
    config = RetrainConfig(model="m", data="d", seed=4)
    config.save(tmp_path / "recipe.yaml")
    assert run("--out", tmp_path).exit_code == 0
    assert captured[0][0] == config
    stopped = run("--out", tmp_path)
    assert (stopped.exit_code, stopped.stderr) == (130, "Interrupted.\n")


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("m",), "`data`"),
        (("m", "--data", "d"), "`--out`"),
        (("m", "--data", "d", "--preset", "best", "--dry-run"), "`preset`"),
        (("m", "--recipe", "/no/such.yaml", "--dry-run"), "`--recipe`"),
        (("m", "--data", "d", "--steps", "1", "--epochs", "1", "--dry-run"), "`epochs`"),
        (("m", "--data", "d", "--out", "o", "--results", "/no/such.json"), "`--results`"),
        (("/no/such/model", "--data", "d", "--dry-run"), "`model`"),
    ],
)
def test_command_bad_argument_prints_one_line(run, captured, arguments, named):
    result = run(*arguments)
    assert result.exit_code == 2, result.output
    (line,) = result.stderr.splitlines()
    assert named in line
    assert captured == []
