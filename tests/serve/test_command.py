"""`rolesafe serve`: its arguments, and errors before a model is loaded."""

from __future__ import annotations

import pytest
from typer.testing import CliRunner

from rolesafe.cli import app
from rolesafe.serve import run
from tests.retrain.conftest import checkpoint  # noqa: F401  (a fixture)


@pytest.fixture(scope="module")
def aware(model, tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("aware") / "my-model"
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_command_serves_a_model(aware, monkeypatch, tmp_path):
    engines = []
    monkeypatch.setattr(run, "serve", lambda engine: engines.append(engine))
    log = tmp_path / "log.jsonl"
    arguments = ["--port", "8123", "--role", "system=user", "--variable-role", "tools=system", "--log", str(log)]
    result = CliRunner().invoke(app, ["serve", str(aware), *arguments])
    assert result.exit_code == 0, result.output
    (engine,) = engines
    engine.close()
    assert engine.aware
    assert engine.settings.name == "my-model"
    assert dict(engine.settings.roles) == {"system": "user"}
    assert dict(engine.settings.variable_roles) == {"tools": "system"}
    assert "http://127.0.0.1:8123/v1" in result.stderr
    assert log.exists()


@pytest.mark.parametrize(
    "arguments, named",
    [
        (["/no/such/model"], "`model`"),
        (["PLAIN"], "--allow-plain"),
        (["/no/such/model", "--host", "0.0.0.0"], "`api_key`"),
        (["/no/such/model", "--role", "system"], "`--role`"),
        (["/no/such/model", "--variable-role", "tools=a", "--variable-role", "tools=b"], "`--variable-role`"),
        (["/no/such/model", "--court", "/no/such/file"], "`--court`"),
        (["AWARE", "--role", "user=system"], "`roles['user']`"),
    ],
)
def test_command_bad_argument_prints_one_line(aware, checkpoint, arguments, named):  # noqa: F811
    given = [{"PLAIN": str(checkpoint), "AWARE": str(aware)}.get(argument, argument) for argument in arguments]
    result = CliRunner().invoke(app, ["serve", *given])
    assert result.exit_code == 2, result.output
    (line,) = result.stderr.splitlines()
    assert named in line


def test_extra_missing_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "fastapi", None)
    result = CliRunner().invoke(app, ["serve", "/no/such/model"])
    assert result.exit_code == 1
    assert 'pip install "rolesafe[serve]"' in result.stderr
