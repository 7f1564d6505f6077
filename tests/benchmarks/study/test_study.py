"""The study of override resistance, as a smoke test."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from functools import partial
from random import Random

import pytest

from benchmarks.override_resistance import __main__ as command
from benchmarks.override_resistance import settings
from benchmarks.override_resistance import transfer as transferring
from benchmarks.override_resistance.arms import ARMS, BASELINES, ON_TOP, SECOND_SIZE, trained
from benchmarks.override_resistance.compact import compact, load
from benchmarks.override_resistance.data import noise, training_rows
from benchmarks.override_resistance.job import run_job
from benchmarks.override_resistance.kept import Kept
from benchmarks.override_resistance.measure import attacks, examples_of, stratified
from benchmarks.override_resistance.settings import SEARCHES, SIZES, Study
from benchmarks.override_resistance.store import Store
from benchmarks.override_resistance.table import table
from benchmarks.override_resistance.train import obtain
from rolesafe.attacks import AttackResult, attackable
from rolesafe.evaluation import Results
from rolesafe.mechanisms import get_strength
from rolesafe.tasks import generate, training_conversations, vocabulary
from rolesafe.training.tiny import tiny_tokenizer
from rolesafe.workers import Update

TINY = Study(
    sizes=("0.1M",), seeds=(0,), arms=("plain", "instaboost", "channel"), examples=12, searched=2,
    searches=("gcg", "best-of-n"), gcg_steps=2, gcg_width=4, quick=True,
)  # fmt: skip


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Directory, updates and results of a finished study."""
    out = tmp_path_factory.mktemp("study")
    told: list[Update] = []
    for job in TINY.jobs:
        run_job(TINY, out / "records", out / "models", job, told.append)
    command.report(TINY, out, forging_tries=200)
    return out, told, Results.load(out / "results.json")


def test_run_job_attacks_all_arms_alike(finished):
    out, told, results = finished
    assert [run.key for run in results.runs] == list(TINY.jobs)
    assert results.complete
    assert sum(update.stage == "done" for update in told) == len(TINY.jobs)
    suites = {tuple((p.attack, str(p.parameters)) for p in run.attacks) for run in results.runs}
    assert len(suites) == 1
    for run in results.runs:
        assert run.worst_case is not None
        assert run.worst_case.n == TINY.searched, "only examples that every attack was run on count"
        assert next(p for p in run.attacks if p.attack == "dilution").success.n == TINY.examples // 2
        assert run.utility.benign.n == TINY.examples // 2
    assert results.forging is not None
    assert results.forging.n == 200
    for name in ("override-resistance.html", "override-resistance.md", "override-resistance.csv"):
        assert "instaboost" in (out / name).read_text(encoding="utf-8")


def test_study_place_last_moves_the_system_text():
    """Rules and requests stay the same; the settings differ, because the conversations do."""
    first, last = (examples_of(replace(TINY, place=place), 0) for place in ("first", "last"))
    assert first[0].messages[0]["role"] == "system"
    assert all(e.messages[-1]["role"] == "system" for e in last)
    assert [sorted(m["content"] for m in e.messages) for e in first] == [
        sorted(m["content"] for m in e.messages) for e in last
    ]
    assert replace(TINY, place="last").to_dict() != TINY.to_dict()
    assert "--place last" in replace(TINY, place="last").command
    assert replace(TINY, place="last").training_of("0.1M") == TINY.training_of("0.1M")
    with pytest.raises(ValueError, match=r"`place`: expected one of \('first', 'last'\), got 'middle'"):
        replace(TINY, place="middle")


def test_transfer_sends_found_texts_to_targets(finished, tmp_path, monkeypatch):
    """Counts by search and by example; a text that won wins again on its own model."""
    out, _, _ = finished
    told: list[Update] = []
    job = ("0.1M", "plain", 0)
    run = partial(transferring.send_job, TINY, ("plain", "channel"), out / "models", tmp_path, job, told.append)
    run()
    counts = told[-1].run
    assert [(c["target"], c["n"]) for c in counts] == [(t, 2) for t in ("plain", "channel") for _ in range(3)]
    assert [c["search"] is None for c in counts] == [False, False, True] * 2
    for c in counts:
        assert 0 <= c["of_these"] <= min(c["won"], c["of_all"]) <= c["n"]
        if c["target"] == "plain":
            assert c["won"] == c["of_these"] == c["of_all"], c
    ors, singles = counts[2], counts[:2]
    assert max(c["won"] for c in singles) <= ors["won"] <= sum(c["won"] for c in singles)
    assert "| plain |" in transferring.table(counts)
    assert f"| {ors['won']} of 2 " in transferring.table(counts)
    # what a search has found is counted by whether it won, and not where it could not be sent
    first = Kept(tmp_path / "0.1M--plain--0.jsonl", transferring.fingerprint(obtain(
        TINY, "0.1M", "plain", 0, out / "models", lambda _: None)[0])).results[0]  # fmt: skip
    a, b = first.outcomes
    searched = replace(first, outcomes=(replace(a, success=True), replace(b, success=False)))
    both = replace(first, outcomes=(replace(a, success=False), replace(b, success=True)))
    one = replace(first, outcomes=(replace(a, success=True),), left_out=(b.id,))
    for sent, expected in ((both, (2, 1, 0, 1)), (searched, (2, 1, 1, 1)), (one, (1, 1, 1, 1))):
        for c in transferring._counts([searched], [sent], job, "channel"):
            assert (c["n"], c["won"], c["of_these"], c["of_all"]) == expected
    # the searches are not run again
    monkeypatch.setattr("rolesafe.attacks.run._Job._search_one", None)
    run()
    assert told[-1].run == counts


def test_run_unreadable_record_raises_first(tmp_path):
    path = Store(tmp_path / "records").path(TINY.jobs[0])
    path.parent.mkdir()
    path.write_text("{", encoding="utf-8")
    with pytest.raises(ValueError, match=rf"`out`: .*{path.name}"):
        command.run(TINY, tmp_path, tmp_path / "models")


def test_run_job_interrupted_resumes_at_the_attack(finished, tmp_path, monkeypatch):
    out, _, results = finished

    def interrupt(update: Update) -> None:
        if update.stage == "filler":
            raise KeyboardInterrupt

    job = TINY.jobs[0]
    with pytest.raises(KeyboardInterrupt):
        run_job(TINY, tmp_path / "records", out / "models", job, interrupt)
    path = tmp_path / "attacks" / "0.1M--plain--0.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines()
    path.write_text("\n".join([*lines[:-1], lines[-1][:40]]), encoding="utf-8")  # the last one was cut short
    asked: list[str] = []
    other, found = Kept(tmp_path / "other.jsonl", "one"), AttackResult.from_dict(json.loads(lines[1]))
    other.add(found)
    assert Kept(other.path, "one").results == [found]
    assert Kept(other.path, "another").results == [], "what another model did is not kept"
    module = sys.modules["rolesafe.evaluation.resistance"]  # the package has a function of that name
    attack = module.attack
    monkeypatch.setattr(module, "attack", lambda *args, **named: asked.append(args[3].name) or attack(*args, **named))
    run_job(TINY, tmp_path / "records", out / "models", job, lambda update: None)
    assert not path.exists()
    assert asked[0] == "dilution", "the one that was cut short, not the first"
    assert "none" not in asked
    again, before = Store(tmp_path / "records").load(job).runs[0], results.runs[0]
    assert [(p.attack, p.success) for p in again.attacks] == [(p.attack, p.success) for p in before.attacks]


def test_steering_arm_reuses_the_plain_model(finished):
    out, _, results = finished
    rows, *models = sorted((path.name for path in (out / "models").iterdir()), key=lambda name: name[0] != "r")
    assert rows.startswith("rows--"), "encoded once for all arms"
    assert sorted(models) == ["0.1M--channel--0", "0.1M--plain--0"]
    plain, steered, channel = results.runs
    assert plain.n_parameters == steered.n_parameters < channel.n_parameters
    assert plain.mechanism is None
    assert steered.mechanism["boost"] == 9.0


def test_compact_record_gives_the_same_table(finished, tmp_path):
    _, _, results = finished
    (tmp_path / "small.json").write_text(compact(results))
    small = load(tmp_path / "small.json")
    for run, whole in zip(small.runs, results.runs, strict=True):
        assert (run.key, run.utility.right, run.worst()) == (whole.key, whole.utility.right, whole.worst())
    assert table(small, "0.1M") == table(results, "0.1M")


def test_run_finished_jobs_are_kept(finished, monkeypatch):
    out, _, results = finished
    (out / "study.json").unlink(missing_ok=True)

    def updates(work, jobs, workers):
        assert list(jobs) == []
        yield from ()

    monkeypatch.setattr(command, "updates", updates)
    monkeypatch.setattr(command, "report", lambda study, out: None)
    command.run(TINY, out, out / "models")
    assert Store(out / "records").read(TINY.jobs).runs == results.runs


def test_run_other_settings_in_out_raises(tmp_path, monkeypatch):
    monkeypatch.setattr(command, "updates", lambda *args: (_ for _ in ()))
    command.run(TINY, tmp_path, tmp_path / "models")
    command.run(replace(TINY, arms=("plain",)), tmp_path, tmp_path / "models")
    with pytest.raises(ValueError, match=r"`out`: .*is of a study with other gcg_steps"):
        command.run(replace(TINY, gcg_steps=3), tmp_path, tmp_path / "models")


def test_run_failed_job_keeps_the_others(tmp_path, monkeypatch, capsys):
    def updates(work, jobs, workers):
        yield Update(jobs[0], "failed", 0.0, error="out of luck", trace="Traceback")
        yield Update(jobs[1], "training", 0.5)

    monkeypatch.setattr(command, "updates", updates)
    assert command.run(TINY, tmp_path, tmp_path / "models") == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "jobs failed: 0.1M plain 0: out of luck (traceback in" in line
    assert (tmp_path / "failed" / "0.1M-plain-0.txt").read_text(encoding="utf-8") == "Traceback"


def test_noise_changes_the_last_message_only():
    words = vocabulary(TINY.families)
    for messages in training_conversations(40, 0, TINY.families, difficulty=TINY.training):
        changed = noise(messages, words, Random(0))
        assert changed == noise(messages, words, Random(0))
        different = [a["role"] for a, b in zip(messages, changed, strict=True) if a != b]
        assert len(different) == 1
        assert different[0] in ("user", "tool")
        assert [m["role"] for m in changed] == [m["role"] for m in messages]


def test_training_rows_are_the_same_for_all_arms(tmp_path):
    tokenizer = tiny_tokenizer(vocabulary(TINY.families))
    made = rows_of(TINY, "0.1M", 0, tokenizer, tmp_path)
    assert rows_of(TINY, "0.1M", 0, tokenizer, tmp_path) == made, "read from the file"
    assert rows_of(TINY, "0.1M", 0, tokenizer, tmp_path / "elsewhere") == made
    assert rows_of(TINY, "0.1M", 1, tokenizer, tmp_path) != made
    assert len(made) == 20 * 32
    for row in made:
        assert {len(values) for values in row.values()} == {len(row["labels"])}
        learned = [i for i, label in enumerate(row["labels"]) if label >= 0]
        assert learned
        assert all(row["labels"][i] == row["input_ids"][i] for i in learned)


def test_training_rows_shorter_is_a_prefix(tmp_path, monkeypatch):
    tokenizer = tiny_tokenizer(vocabulary(TINY.families))
    for size, steps in (("0.1M", 6), ("0.4M", 4)):
        chosen = settings.SIZES[size]
        monkeypatch.setitem(settings.SIZES, size, replace(chosen, fit=replace(chosen.fit, steps=steps)))
    study = replace(TINY, quick=False)
    long, short = (rows_of(study, size, 0, tokenizer, tmp_path) for size in ("0.1M", "0.4M"))
    assert (len(long), len(short)) == (6 * 32, 4 * 32)
    assert short == long[: len(short)]
    assert len(list(tmp_path.iterdir())) == 1
    other = tmp_path / "other"  # the shorter one comes first
    assert [rows_of(study, size, 0, tokenizer, other) for size in ("0.4M", "0.1M")] == [short, long]


def test_training_rows_depend_on_tokenizer_and_text(tmp_path):
    """Of the same size and template, in the same folder."""
    words = vocabulary(TINY.families)
    one, other = (tiny_tokenizer([*words, more]) for more in ("aaa", "zzz"))
    assert (len(one), one.chat_template) == (len(other), other.chat_template)
    assert rows_of(TINY, "0.1M", 0, one, tmp_path) != rows_of(TINY, "0.1M", 0, other, tmp_path)
    text = tmp_path / "text.txt"
    study = replace(TINY, sizes=("30M",), text=str(text))
    found = []
    for line in ("once upon a time ", "and then no more "):
        text.write_text(line * 200)
        found.append(rows_of(study, "30M", 0, one, tmp_path))
    assert found[0] != found[1]


def rows_of(*args):
    return [{name: values.tolist() for name, values in row.items()} for row in training_rows(*args)]


def test_obtain_model_of_another_study_raises(finished, tmp_path):
    out, _, _ = finished
    with pytest.raises(ValueError, match=r"0\.1M--plain--0 that was trained with other noise; give another directory"):
        obtain(replace(TINY, noise=0.0), "0.1M", "plain", 0, out / "models", lambda fraction: None)


def test_obtain_pretrained_anneals_the_role_layer(finished, tmp_path):
    """The plain model of the study serves as the pretrained checkpoint."""
    out, _, _ = finished
    study = replace(TINY, sizes=("pretrained",), base=str(out / "models" / "0.1M--plain--0"), arms=("channel",))
    model, _, _ = obtain(study, "pretrained", "channel", 0, tmp_path, lambda fraction: None)
    assert get_strength(model) == 1.0
    assert model.rolesafe_config == ARMS["channel"].config
    assert "0.1M--plain--0" in study.command
    assert str(tmp_path.parent) not in json.dumps(study.to_dict()), "no path of this machine in a record"


def test_obtain_size_with_ordinary_text_uses_bpe(tmp_path, monkeypatch):
    text = tmp_path / "text.txt"
    text.write_text("Once upon a time there was a little fox. " * 200)
    small = replace(SIZES["30M"], hidden=32, layers=1, heads=2, head_dim=16)
    monkeypatch.setitem(settings.SIZES, "30M", small)
    study = replace(TINY, sizes=("30M",), text=str(text), arms=("channel",))
    model, tokenizer, _ = obtain(study, "30M", "channel", 0, tmp_path / "models", lambda fraction: None)
    rows = training_rows(study, "30M", 0, tokenizer, tmp_path / "models")
    foxes = [row for row in rows if "little fox" in tokenizer.decode(row["input_ids"])]
    assert len(foxes) == len(rows) / 2
    assert model.config.vocab_size == len(tokenizer) > 256
    assert tokenizer.decode(tokenizer("Ünseen wörds, too.")["input_ids"]) == "Ünseen wörds, too."


def test_stratified_has_every_family():
    chosen = stratified(attackable(generate("test", 60, 0, TINY.families)), 6)
    assert sorted(e.family for e in chosen) == sorted(2 * TINY.families)


def test_attacks_every_search_has_a_config():
    _, found = attacks(replace(TINY, searches=tuple(SEARCHES)), 0)
    assert len(found) == len({config.label for config in found}) == len(SEARCHES)
    budgets = [c.parameters for c in found if c.name == "gcg"]
    assert all(p["num_steps"] == 2 and p["search_width"] == 4 for p in budgets)


def test_arms_baselines_are_the_published_ones():
    assert BASELINES == ("ise", "air", "aside", "pft", "drip")
    assert trained("pasta") == "plain"
    assert trained("channel") == "channel"
    assert set(SECOND_SIZE) <= set(ARMS)
    for arm in ARMS.values():
        assert (arm.config is None) == (arm.kind == "plain")


def test_study_to_dict_and_command():
    study = replace(TINY, quick=False)
    assert json.loads(json.dumps(study.to_dict())) == study.to_dict()
    assert study.command == (
        "python -m benchmarks.override_resistance --size 0.1M --arm plain --arm instaboost --arm channel "
        "--search gcg --search best-of-n --seeds 1 --searched 2 --examples 12 --gcg-steps 2 --gcg-width 4 --out DIR"
    )
    assert Study().command == "python -m benchmarks.override_resistance --out DIR"
    assert len(Study().jobs) == 3 * (len(ARMS) - len(ON_TOP) + len(SECOND_SIZE))
    assert len(replace(Study(), arms=("plain", "drip")).jobs) == 3 * 2 * 2


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"sizes": ("7B",)}, "`sizes`: unknown '7B'"),
        ({"arms": ()}, "`arms`: expected distinct names"),
        ({"arms": ("plain", "plain")}, "`arms`: expected distinct names"),
        ({"searches": ("gradient",)}, "`searches`: unknown 'gradient'"),
        ({"seeds": ()}, "`seeds`: expected distinct seeds"),
        ({"noise": 1.5}, "`noise`: expected a share"),
        ({"examples": 7}, "`examples`: expected an even number"),
        ({"searched": 7}, "`searched`: expected 0 to 6, got 7"),
        ({"gcg_steps": 0}, "`gcg_steps`: expected a number >= 1"),
        ({"base": "somewhere"}, "`base`: expected a checkpoint for the size 'pretrained' and for no other"),
        ({"sizes": ("pretrained",)}, "`base`: expected a checkpoint for the size 'pretrained'"),
        ({"sizes": ("30M",)}, "`text`: expected a file of ordinary text"),
        ({"text": "some.txt"}, "`text`: expected a file .* for no other"),
    ],
)
def test_study_bad_settings_raise(changes, message):
    with pytest.raises(ValueError, match=message):
        replace(TINY, **changes)


def test_study_command_has_the_first_seed():
    study = replace(Study(), seeds=(101, 102))
    assert study.command == "python -m benchmarks.override_resistance --seeds 2 --first-seed 101 --out DIR"
