"""Command line."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

import rolesafe
from rolesafe.cli import app
from rolesafe.demo import DemoError
from rolesafe.tasks import vocabulary
from rolesafe.training.tiny import tiny_llama, tiny_tokenizer
from tests.models import tiny_model
from tests.test_project import ROOT


@pytest.fixture
def run(monkeypatch):
    monkeypatch.setenv("COLUMNS", "150")
    return lambda *arguments: CliRunner().invoke(app, list(arguments))


def test_inspect_shows_what_a_patch_adds(run, tmp_path):
    model = tiny_model("llama")
    model.save_pretrained(tmp_path)
    result = run("inspect", str(tmp_path))
    assert result.exit_code == 0, result.output
    rolesafe.patch(model, rolesafe.RoleConfig.preset("channel"))
    added = sum(p.numel() for _, p in rolesafe.named_role_parameters(model))
    for text in ("LlamaForCausalLM", "llama (tested)", "2 of 2 decoder layers", f"{added:,}", "sdpa"):
        assert text in result.output


def test_inspect_of_patched_checkpoint_uses_its_config(run, tmp_path):
    model = rolesafe.patch(tiny_model("llama"), rolesafe.RoleConfig(embedding="input", bias=False))
    model.save_pretrained(tmp_path)
    result = run("inspect", str(tmp_path))
    assert result.exit_code == 0, result.output
    assert "added: role embeddings" in result.output
    assert "added: bias" not in result.output


def test_inspect_without_fused_backend_names_reference(run, tmp_path):
    tiny_model("gemma2").save_pretrained(tmp_path)
    result = run("inspect", str(tmp_path), "--preset", "bias")
    assert result.exit_code == 0, result.output
    assert "reference" in result.output


def test_inspect_of_unsupported_model_shows_the_reason(run, tmp_path):
    tiny_model("bloom").save_pretrained(tmp_path)
    result = run("inspect", str(tmp_path))
    assert "does not go through transformers' attention interface" in " ".join(result.output.replace("│", " ").split())


# -------------------------------------------------------------------------------------------------------------- errors


def refused(result, status: int = 2) -> str:
    """Return the one line of standard error."""
    assert not result.exception or isinstance(result.exception, SystemExit), result.exception
    assert result.exit_code == status, result.output
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ")
    assert "\x1b" not in line
    return line


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("demo", "--examples", "7"), "`examples`"),
        (("demo", "--examples", "2"), "--examples"),
        (("demo", "--seeds", "none"), "--seeds"),
        (("demo", "--steps", "0"), "--steps"),
        (("demo", "--learning-rate", "0"), "`learning_rate`"),
        (("demo", "--learning-rate", "nan"), "`learning_rate`"),
        (("demo", "--position-gap", "-1"), "`position_gap`"),
        (("demo", "--preset", "best"), "best"),
        (("demo", "--workers", "0"), "--workers"),
        (("demo", "--model", "/no/such/model", "--run-dir", "RUN"), "`model`"),
        (("demo", "--run-dir", "FILE"), "`directory`"),
        (("demo", "extra"), "extra"),
        (("inspect",), "model"),
        (("inspect", "/no/such/model"), "`model`"),
        (("inspect", "no/such\x1b[31m"), "`model`"),
        (("inspect", "EMPTY"), "`model`"),
        (("inspect", "FILE"), "`model`"),
        (("inspect", ""), "`model`"),
        (("inspect", "x" * 5000), "`model`"),
        (("inspect", ".", "--preset", "best"), "best"),
        (("mechanisms", "/no/such/model"), "`model`"),
        (("mechanisms", "EMPTY"), "`model`"),
        (("mechanisms", "--layers", "0"), "--layers"),
        (("mechanisms", "--heads", "many"), "--heads"),
        (("audit",), "model"),
        (("audit", "/no/such/model"), "`model`"),
        (("audit", "EMPTY"), "`model`"),
        (("audit", "FILE"), "`model`"),
        (("audit", "m", "--examples", "7"), "`examples`"),
        (("audit", "m", "--tau", "2"), "`tau`"),
        (("audit", "m", "--set", "sep"), "--set"),
        (("audit", "m", "--set", "sep", "/no/such/file.json"), "`path_or_hub`"),
        (("audit", "m", "--set", "sep", "FILE"), "`path_or_hub`"),
        (("audit", "m", "--json", "EMPTY"), "`--json`"),
        (("audit", "m", "--court", "/no/such/file.json"), "`--court`"),
        (("depth",), "model"),
        (("depth", "/no/such/model"), "`model`"),
        (("depth", "EMPTY"), "`model`"),
        (("depth", "m", "--examples", "0"), "--examples"),
        (("depth", "m", "--discount", "2"), "`discount`"),
        (("depth", "m", "--target", "2"), "`target`"),
        (("depth", "m", "--json", "EMPTY"), "`--json`"),
        (("serve",), "model"),
        (("serve", "/no/such/model"), "`model`"),
        (("serve", "m", "--host", "0.0.0.0"), "`api_key`"),
        (("serve", "m", "--role", "user"), "`--role`"),
        (("serve", "m", "--port", "0"), "--port"),
        (("retrain", "m"), "`data`"),
        (("retrain", "m", "--data", "FILE", "--steps", "0"), "--steps"),
        (("retrain", "EMPTY", "--data", "FILE", "--dry-run"), "`model`"),
        (("chat",), "model"),
        (("chat", "EMPTY"), "`model`"),
        (("--bogus\x1b[31m",), "--bogus\\x1b[31m"),
        (("no-such-command\x1b[31m",), "no-such-command\\x1b[31m"),
    ],
    ids=lambda value: " ".join(value)[:40] if isinstance(value, tuple) else "",
)
def test_cli_bad_argument_is_one_line_and_status_2(run, tmp_path, arguments, named):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file.json").write_bytes(b"\xff\xfe{")
    places = {"EMPTY": tmp_path / "empty", "FILE": tmp_path / "file.json", "RUN": tmp_path / "run"}
    assert named in refused(run(*(str(places.get(argument, argument)) for argument in arguments)))


def test_cli_every_command_has_bad_arguments_above():
    """A new command needs lines in the list above."""
    assert {command.name or command.callback.__name__ for command in app.registered_commands} == {
        *("demo", "inspect", "mechanisms", "audit", "depth", "retrain", "chat", "serve"),
    }


SHORT = ("--examples", "6", "--attack", "mimicry", "--max-new-tokens", "3", "--device", "cpu")
READERS = (("inspect",), ("mechanisms",), ("audit", *SHORT))
"""Commands that read the model at a path; `demo` is tested in tests/demo."""


@pytest.mark.parametrize(
    "content",
    [b"", b"null", b"[]", b'"x"', b"\xff\xfe\x00", b'{"model_type": "llama"', b"{}", b"[" * 100_000],
    ids=["empty", "null", "list", "text", "binary", "cut", "nothing", "deep"],
)
def test_cli_broken_config_is_one_line(run, tmp_path, content):
    (tmp_path / "config.json").write_bytes(content)
    for command, *options in READERS:
        assert "`model`" in refused(run(command, str(tmp_path), *options))


@pytest.mark.parametrize(
    "changes",
    [
        {"num_attention_heads": 0},
        {"hidden_size": 0},
        {"hidden_size": "x\x1b[31m"},
        {"num_hidden_layers": -1.5},
        {"vocab_size": None},
        {"model_type": "\x1b]0;x\x07[bold]"},
        {"layer_types": 3},
        {"torch_dtype": "\x1b[31m"},
        {"head_dim": []},
    ],
    ids=str,
)
def test_cli_config_with_wrong_types_is_one_line(run, tmp_path, changes):
    tiny_model("llama").config.save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    for command, *options in READERS:
        result = run(command, str(tmp_path), *options)
        assert "\x1b" not in result.output
        if result.exit_code:
            assert "`model`" in refused(result)


def test_audit_truncated_weights_are_one_line(run, tmp_path):
    tiny_model("llama").save_pretrained(tmp_path)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    assert "`model`" in refused(run("audit", str(tmp_path), *SHORT))


def test_cli_full_disk_is_one_line_and_status_1(run, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device", "runs/x\x1b[31m/results.json")

    monkeypatch.setattr("rolesafe.demo.run_demo", full)
    said = refused(run("demo"), 1)
    assert said == "error: 'runs/x\\x1b[31m/results.json' cannot be used: No space left on device"


def test_demo_without_matplotlib_is_refused_first(run, tmp_path, monkeypatch):
    monkeypatch.setattr("rolesafe.demo.run.updates", lambda *args: pytest.fail("a job was started"))
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert 'pip install "rolesafe[demo]"' in refused(run("demo", "--run-dir", str(tmp_path)), 1)


def test_demo_failed_job_is_one_line_and_status_1(run, monkeypatch):
    def fail(*args, **kwargs):
        raise DemoError("1 of 2 jobs failed: plain 0: its process was ended by SIGKILL")

    monkeypatch.setattr("rolesafe.demo.run_demo", fail)
    assert "1 of 2 jobs failed" in refused(run("demo"), 1)


@pytest.mark.parametrize("inside", [True, False], ids=["reported", "anywhere"])
def test_demo_interrupted_ends_with_130(run, monkeypatch, inside):
    def interrupted(*args, **kwargs):
        if inside:
            return SimpleNamespace(complete=False)
        raise KeyboardInterrupt

    monkeypatch.setattr("rolesafe.demo.run_demo", interrupted)
    result = run("demo")
    assert (result.exit_code, result.stderr) == (130, "Interrupted.\n")


def test_cli_version_and_no_command(run):
    result = run("--version")
    assert (result.exit_code, result.stdout) == (0, f"rolesafe {rolesafe.__version__}\n")
    result = run()
    assert result.exit_code == 2
    for command in ("demo", "inspect", "mechanisms", "audit"):
        assert command in result.output


# ------------------------------------------------------------------------------------------------------- hostile names

HOSTILE = "[bold red]x[/y]\x1b]0;x\x07\u202e"
ROLES = ("system", "user", "assistant", "[/]\x1b[31m", "a\u202eb\n")


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    """Checkpoint with terminal and rich markup in the names of its folder, roles and files."""
    folder = tmp_path_factory.mktemp("models") / HOSTILE
    tokenizer = tiny_tokenizer(vocabulary())
    model = tiny_llama(len(tokenizer), seed=0)
    roles = {"roles": ROLES, "privileged": ("system",)}
    rolesafe.patch(model, rolesafe.RoleConfig.preset("channel", **roles, data_roles=ROLES[3:], rotation=0.1))
    model.save_pretrained(folder / "aware")
    tokenizer.save_pretrained(folder / "aware")
    tiny_model("llama").save_pretrained(folder / "plain")
    return folder


def test_cli_hostile_names_have_no_effect(hostile, tmp_path):
    """In a subprocess, because libraries log to the real terminal; `audit` is in tests/audit."""
    aware, plain = str(hostile / "aware"), str(hostile / "plain")
    calls = [
        ["inspect", aware],
        ["inspect", plain],
        ["mechanisms", plain],
        ["demo", "--model", aware, "--run-dir", str(tmp_path / HOSTILE)],  # a role-aware model is no base to retrain
    ]
    code = (
        "import json, sys\nfrom rolesafe.cli import main\n"
        "for arguments in json.loads(sys.argv[1]):\n    sys.argv[1:] = arguments\n    try:\n        main()\n"
        "    except SystemExit as ended:\n        print('STATUS', ended.code, flush=True)\n"
    )
    environment = {**os.environ, "COLUMNS": "300", "PYTHONIOENCODING": "ascii"}
    command = [sys.executable, "-c", code, json.dumps(calls)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, timeout=500)
    said = (done.stdout + done.stderr).decode("ascii")
    assert [line[7:] for line in said.splitlines() if line.startswith("STATUS")] == ["0", "0", "0", "2"], said
    assert "Traceback" not in said
    assert not set(said) & {chr(code) for code in (*range(32), 127) if chr(code) not in "\n\r"}
    together = "".join(said.split())  # a long path is printed on several lines
    assert together.count("[boldred]x[/y]\\x1b]0;x\\x07\\u202e") >= len(calls)
    assert "[/]\\x1b[31m" in said


# ---------------------------------------------------------------------------------------------------------- mechanisms


@pytest.mark.parametrize("width", [80, 120])
def test_mechanisms_lists_every_preset(run, monkeypatch, width):
    monkeypatch.setenv("COLUMNS", str(width))
    result = run("mechanisms", "--layers", "3", "--hidden", "64", "--heads", "4")
    assert result.exit_code == 0, result.output
    assert max(len(line) for line in result.output.splitlines()) <= width
    assert "\u2026" not in result.output  # nothing is cut off
    words = set(result.output.replace("\u2502", " ").split())
    for name in rolesafe.RoleConfig.presets():
        assert name in words
        count = rolesafe.RoleConfig.preset(name).count_parameters(layers=3, hidden=64, heads=4)
        assert f"{count:,}" in words
    for text in ("2503.10566", "L*R*d", "without"):
        assert text in words


def test_mechanisms_counts_for_a_model(run, tmp_path):
    tiny_model("jamba").save_pretrained(tmp_path)
    result = run("mechanisms", str(tmp_path))
    assert result.exit_code == 0, result.output
    text = " ".join(result.output.replace("\u2502", " ").split())
    assert "JambaForCausalLM" in text
    assert "does not fit:" in text
