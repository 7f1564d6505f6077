"""The command line."""

from __future__ import annotations

import pytest
from typer.testing import CliRunner

import rolesafe
from rolesafe.cli import app
from tests.models import tiny_model


@pytest.fixture
def run(monkeypatch):
    monkeypatch.setenv("COLUMNS", "150")
    return lambda *arguments: CliRunner().invoke(app, list(arguments))


def test_inspect_says_what_a_patch_adds(run, tmp_path):
    model = tiny_model("llama")
    model.save_pretrained(tmp_path)
    result = run("inspect", str(tmp_path))
    assert result.exit_code == 0, result.output
    rolesafe.patch(model, rolesafe.RoleConfig.preset("channel"))
    added = sum(p.numel() for _, p in rolesafe.role_parameters(model))
    for text in ("LlamaForCausalLM", "llama (tested)", "2 of 2 decoder layers", f"{added:,}", "sdpa"):
        assert text in result.output


def test_inspect_reads_the_configuration_of_a_patched_checkpoint(run, tmp_path):
    model = rolesafe.patch(tiny_model("llama"), rolesafe.RoleConfig(embedding="input", bias=False))
    model.save_pretrained(tmp_path)
    result = run("inspect", str(tmp_path))
    assert result.exit_code == 0, result.output
    assert "added: role embeddings" in result.output
    assert "added: bias" not in result.output


def test_inspect_names_the_backend_of_models_without_a_fused_one(run, tmp_path):
    tiny_model("gemma2").save_pretrained(tmp_path)
    result = run("inspect", str(tmp_path), "--preset", "bias")
    assert result.exit_code == 0, result.output
    assert "reference" in result.output


def test_inspect_says_why_a_model_cannot_be_patched(run, tmp_path):
    tiny_model("bloom").save_pretrained(tmp_path)
    result = run("inspect", str(tmp_path))
    assert "does not go through transformers' attention interface" in " ".join(result.output.replace("│", " ").split())


@pytest.mark.parametrize("arguments", [("inspect", "/no/such/model"), ("inspect", ".", "--preset", "best")])
def test_errors_are_one_line_without_a_traceback(run, arguments):
    result = run(*arguments)
    assert result.exit_code == 1
    assert "error:" in result.output
    assert "Traceback" not in result.output


def test_demo_refuses_bad_settings(run):
    result = run("demo", "--examples", "7")
    assert result.exit_code == 1
    assert "`examples`: expected an even number >= 6, got 7" in result.output
