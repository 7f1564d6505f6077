"""The command `rolesafe audit`."""

from __future__ import annotations

import dataclasses
import json
import os
import sys

import pytest
from typer.testing import CliRunner

import rolesafe
from rolesafe import RoleConfig
from rolesafe.audit import AuditReport, NotMeasured, command
from rolesafe.audit import run as audit_run
from rolesafe.audit.load import load
from rolesafe.cli import app
from rolesafe.roles.templates import DEFAULT_TEMPLATE
from rolesafe.tasks import vocabulary
from rolesafe.training.tiny import tiny_llama, tiny_tokenizer
from tests.test_project import ROOT

SEP = ROOT.parent / "shared" / "data" / "sep_1000.json"
SHORT = ("--examples", "6", "--attack", "mimicry", "--max-new-tokens", "3", "--device", "cpu")


@pytest.fixture
def run(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    forge = audit_run.forge
    monkeypatch.setattr(audit_run, "forge", lambda tokenizer, tries, **keywords: forge(tokenizer, 20, **keywords))
    return lambda *arguments: CliRunner().invoke(app, ["audit", *map(str, arguments)])


def save(path, config: RoleConfig | None = None, template: bool = True):
    tokenizer = tiny_tokenizer(vocabulary())
    model = tiny_llama(len(tokenizer), seed=0)
    if config is not None:
        rolesafe.patch(model, config)
    model.save_pretrained(path)
    if not template:
        tokenizer.chat_template = None
    tokenizer.save_pretrained(path)
    return path


def test_audit_prints_a_verdict_for_every_claim(run, tmp_path):
    out = tmp_path / "out" / "audit.json"
    result = run(save(tmp_path / "plain"), *SHORT, "--json", out)
    assert result.exit_code == 0, result.output
    report = AuditReport.load(out)
    assert report.model == str(tmp_path / "plain")
    assert report.settings.attacks == ("mimicry",)
    plain = " ".join(result.output.split())
    for verdict in report.verdicts:
        assert verdict.claim in plain
    for text in ("RISK token equality", "OPEN adversarial override", "solves only 0% of the benign tasks", "layer 2"):
        assert text in plain
    assert max(map(len, result.output.splitlines())) <= 80
    assert [v["claim"] for v in json.loads(out.read_text())["verdicts"]] == [v.claim for v in report.verdicts]


def test_audit_of_a_patched_checkpoint(run, tmp_path):
    path = save(tmp_path / "patched", RoleConfig.preset("channel"))
    result = run(path, *SHORT)
    assert result.exit_code == 0, result.output
    plain = " ".join(result.output.split())
    for text in ("OK token equality", "OK privileged attention", "0 violations", "dedicated_heads=0.5, share=0.5"):
        assert text in plain


def test_audit_fail_on_risk_sets_the_status(run, tmp_path):
    path = save(tmp_path / "plain")
    assert run(path, *SHORT, "--fail-on-risk").exit_code == 1
    patched = save(tmp_path / "patched", RoleConfig.preset("channel"))
    result = run(patched, *SHORT, "--fail-on-risk")
    assert result.exit_code == 0, result.output  # open verdicts are no risk


def test_audit_preset_patches_a_plain_model(run, tmp_path):
    path = save(tmp_path / "plain")
    result = run(path, *SHORT, "--preset", "channel")
    assert result.exit_code == 0, result.output
    assert "patched with preset 'channel' for this audit and not trained" in " ".join(result.output.split())
    patched = save(tmp_path / "patched", RoleConfig())
    result = run(patched, *SHORT, "--preset", "channel")
    assert result.exit_code == 2
    assert "has its own role layer" in result.output


def test_load_notes_the_default_template(run, tmp_path):
    loaded = load(str(save(tmp_path / "bare", template=False)), device="cpu")
    assert loaded.tokenizer.chat_template == DEFAULT_TEMPLATE
    assert any("no chat template" in note for note in loaded.notes)


def test_load_of_a_role_layer_finds_its_base(tmp_path):
    base = save(tmp_path / "base")
    model = rolesafe.patch(load(str(base), device="cpu").model, RoleConfig(share=0.25))
    rolesafe.save_role_layer(model, tmp_path / "alone", base_model=str(base))
    loaded = load(str(tmp_path / "alone"), device="cpu")
    assert loaded.model.rolesafe_config.share == 0.25
    assert loaded.tokenizer.chat_template is not None


def test_audit_interrupted_prints_and_writes(run, tmp_path, monkeypatch):
    def stop(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(audit_run, "run_points", stop)
    result = run(save(tmp_path / "plain"), *SHORT, "--json", tmp_path / "audit.json")
    assert result.exit_code == 130, result.output
    assert "INTERRUPTED" in result.output
    report = AuditReport.load(tmp_path / "audit.json")
    assert not report.complete
    assert not isinstance(report.mass, NotMeasured)
    assert isinstance(report.override, NotMeasured)


@pytest.fixture
def never(monkeypatch):
    """The model must not be read."""
    monkeypatch.setattr(command, "load", lambda *args, **kwargs: pytest.fail("the audit went on"))


def refused(result, status: int = 2) -> str:
    said = " ".join(result.output.split())
    assert (result.exit_code, "Traceback" in said) == (status, False), said
    assert isinstance(result.exception, SystemExit)
    return said


def test_audit_json_path_is_checked_first(run, tmp_path, never):
    (tmp_path / "text").write_text("kept")
    (tmp_path / "out").mkdir()
    assert "`--json`: expected a file to write, got the directory" in refused(run("m", *SHORT, "--json", tmp_path))
    below = refused(run("m", *SHORT, "--json", tmp_path / "text" / "audit.json"))
    assert "`--json`: expected a path that can be written" in below
    assert "Not a directory" in below
    assert "got the special file '/dev/null'" in refused(run("m", *SHORT, "--json", "/dev/null"))
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["out", "text"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_audit_json_without_permission_is_refused(run, tmp_path, never):
    (tmp_path / "shut").mkdir(mode=0o500)
    assert "Permission denied" in refused(run("m", *SHORT, "--json", tmp_path / "shut" / "new" / "audit.json"))


def test_audit_json_on_a_full_disk_is_refused(run, tmp_path, never, monkeypatch):
    def full(dir):
        raise OSError(28, "No space left on device", str(dir))

    monkeypatch.setattr("rolesafe.files.TemporaryFile", full)
    assert "got 'new/audit.json': No space left on device" in refused(run("m", *SHORT, "--json", "new/audit.json"))


def test_audit_json_check_leaves_no_file(run, tmp_path):
    (tmp_path / "audit.json").write_text("old")
    for path in (tmp_path / "audit.json", tmp_path / "new" / "audit.json"):
        assert "`model`: expected a directory or hub id" in refused(run("/no/such/model", *SHORT, "--json", path))
    assert [p.name for p in tmp_path.iterdir()] == ["audit.json"]
    assert (tmp_path / "audit.json").read_text() == "old"


def test_audit_prints_before_it_writes(run, tmp_path, monkeypatch):
    def fail(self, path):
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(AuditReport, "save", fail)
    said = refused(run(save(tmp_path / "plain"), *SHORT, "--json", tmp_path / "audit.json"), 1)
    assert "RISK token equality" in said
    assert "No space left on device" in said


def test_audit_writes_after_a_broken_pipe(run, tmp_path, monkeypatch):
    def fail(report, console):
        raise BrokenPipeError

    monkeypatch.setattr(command, "draw", fail)
    run(save(tmp_path / "plain"), *SHORT, "--json", tmp_path / "audit.json")
    assert AuditReport.load(tmp_path / "audit.json").complete


def test_audit_set_without_datasets_is_refused(run, monkeypatch, never):
    monkeypatch.setitem(sys.modules, "datasets", None)
    said = refused(run("m", *SHORT, "--set", "sep", "owner/name"), 1)
    assert "error: `path_or_hub`: 'owner/name'" in said
    assert "pip install 'datasets>=4'" in said


def test_audit_of_a_set_without_right_replies(run, tmp_path, monkeypatch):
    """Without right replies: a benign twin is solved by the word that is the violation in the other."""
    from rolesafe.tasks import generate, sets

    asked = []
    given = [dataclasses.replace(e, reply="") for e in generate("test", 20, 1)]
    monkeypatch.setattr(sets, "load_set", lambda name, path, seed: asked.append((name, path, seed)) or given)
    out = tmp_path / "audit.json"
    result = run(save(tmp_path / "plain"), *SHORT, "--set", "sep", "sep.json", "--seed", "4", "--json", out)
    assert result.exit_code == 0, result.output
    assert asked == [("sep", "sep.json", 4)]
    report = AuditReport.load(out)
    assert report.examples == "sep, sep.json"
    assert report.n_examples == 6
    assert report.utility.benign.n == 3


@pytest.mark.skipif(not SEP.exists(), reason="the set is not here")
def test_audit_of_the_sep_set(run, tmp_path):
    out = tmp_path / "audit.json"
    result = run(save(tmp_path / "plain"), *SHORT, "--set", "sep", SEP, "--json", out)
    assert result.exit_code == 0, result.output
    report = AuditReport.load(out)
    assert report.utility.benign.n == 3
    assert report.utility.violated.n == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("/no/such/model",), "`model`: expected a directory or hub id of a causal language model"),
        (("PLAIN", "--attack", "magic"), "unknown attack 'magic'"),
        (("PLAIN", "--examples", "7"), "`examples`: expected an even number >= 2, got 7"),
        (("PLAIN", "--tau", "2"), "`tau`: expected an accepted risk in (0, 1), such as 0.05, got 2.0"),
        (("PLAIN", "--preset", "best"), "got 'best'"),
        (("PLAIN", "--dtype", "int8"), "`dtype`: expected one of"),
        (("PLAIN", "--device", "abacus"), "`device`: 'abacus' cannot be used"),
        (("PLAIN", "--max-new-tokens", "5000"), "`model`: expected a context of at least"),
    ],
)
def test_audit_errors_have_no_traceback(run, tmp_path, arguments, message):
    path = save(tmp_path / "plain")
    result = run(*(path if argument == "PLAIN" else argument for argument in arguments))
    assert result.exit_code == 2
    assert message in " ".join(result.output.split())
    assert "Traceback" not in result.output


def test_audit_without_tokenizer_is_refused(run, tmp_path):
    tiny_llama(20, seed=0).save_pretrained(tmp_path)
    result = run(tmp_path, *SHORT)
    assert result.exit_code == 2
    assert "expected a tokenizer in the model's directory" in " ".join(result.output.split())


def test_draw_escapes_names_and_notes(tmp_path, capsys):
    from rich.console import Console

    from rolesafe.audit.terminal import draw
    from tests.audit.test_records import report

    draw(report(model="[red]x\x1b[31m", notes=("\u202e[bold]",)), Console(width=80))
    printed = capsys.readouterr().out
    assert "\x1b" not in printed
    assert "\u202e" not in printed
    assert "[red]x\\x1b[31m" in printed
    assert "\\u202e[bold]" in printed


def test_audit_hostile_names_have_no_effect(run, tmp_path):
    roles = ("system", "user", "assistant", "[/]\x1b[31m")
    config = RoleConfig(roles=roles, privileged=("system",), share=0.5, data_roles=roles[3:], rotation=0.1)
    result = run(save(tmp_path / "[bold red]x[_y]\x1b]0;x\x07", config), *SHORT)
    assert result.exit_code == 0, result.output
    assert "\x1b" not in result.output
    assert "[bold red]x[_y]\\x1b]0;x\\x07" in "".join(result.output.replace("│", "").split()).replace(
        "boldred", "bold red"
    )


def test_audit_options_reach_the_settings(run, monkeypatch, tmp_path):
    given = {}
    monkeypatch.setattr(
        command, "run_audit", lambda model, **keywords: given.update(keywords, model=model) or _Nothing()
    )
    options = ("--seed", "3", "--tau", "0.2", "--attack", "gcg", "--attack", "beam", "--strong", "--family", "form")
    assert run("here", *options).exit_code == 0
    assert given["settings"] == {
        "examples": 60,
        "families": ("form",),
        "seed": 3,
        "tau": 0.2,
        "attacks": ("gcg", "beam"),
        "strong": True,
        "max_new_tokens": 16,
        "batch_size": 32,
    }


class _Nothing:
    complete = True
    verdicts = ()


def test_audit_without_the_stats_extra_is_refused(run, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "statsmodels", None)
    assert 'pip install "rolesafe[stats]"' in refused(run(save(tmp_path / "plain"), *SHORT), 1)
