"""Committed records: the compact form, templates of examples, and judging replies again."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.override_resistance.clusters import clusters, distance, nearest, template
from benchmarks.override_resistance.compact import compact, load, marks_of, runs_of
from benchmarks.override_resistance.compact import main as compact_main
from benchmarks.override_resistance.rejudge import rejudged
from benchmarks.override_resistance.settings import Study
from rolesafe.attacks import Outcome, Rate
from rolesafe.evaluation import AttackPoint, Results
from rolesafe.tasks import generate
from rolesafe.tasks.words import PLACES, SECRETS, tokens
from tests.benchmarks.study.drawn import study
from tests.test_project import ROOT

RECORDS = ROOT / "benchmarks" / "results"
LIMIT = 1_000_000
"""Bytes of all committed records."""


# ----------------------------------------------------------------------------------------------------- the compact form


@pytest.mark.parametrize("marks", ["", "0", "1", "-", "0" * 60, "0010--1", "1" * 123 + "-"])
def test_runs_of_round_trip(marks: str) -> None:
    assert marks_of(runs_of(marks)) == marks


@pytest.mark.parametrize("runs", ["3", "x3", "2y", "o o"])
def test_marks_of_bad_text_raises(runs: str) -> None:
    with pytest.raises(ValueError, match="`runs`: expected counts"):
        marks_of(runs)


def slim(results: Results, *, replies: bool = False) -> Results:
    """Return `results` with only the fields of the compact form."""

    def point(one: AttackPoint) -> AttackPoint:
        kept = tuple(
            Outcome(id=o.id, family=o.family, messages=(), reply=o.reply, success=o.success, right=o.right)
            for o in (one.samples if replies else ())
        )
        return replace(one, n_queries=0, n_steps=(), samples=kept)

    runs = (replace(run, attacks=tuple(map(point, run.attacks))) for run in results.runs)
    return replace(results, runs=tuple(runs))


def rich() -> Results:
    """Return a record that uses every field of a point."""
    results = study(("plain", "channel"), (0, 1))
    first, *rest = results.runs[0].attacks
    marks = f"-{first.marks[1:]}"
    odd = replace(
        first,
        seed=7,
        marks=marks,
        right="".join("1" if mark == "0" else "0" for mark in marks),
        success=Rate(marks.count("1"), len(marks) - 1),
        complete=False,
        n_left_out=2,
        failed=(("a", "out of memory"),),
        samples=(replace(first.samples[0], right=True),),
    )
    bare = replace(rest[0], marks="", n_steps=(), success=Rate(3, 48))
    run = replace(results.runs[0], attacks=(odd, bare, *rest[1:]), false_refusals=None, attention_mass=None)
    return replace(results, runs=(run, *results.runs[1:]), complete=False)


@pytest.mark.parametrize("replies", [False, True])
def test_compact_load_round_trip(tmp_path: Path, replies: bool) -> None:
    path = tmp_path / "record.json"
    path.write_text(compact(rich(), replies=replies), encoding="utf-8")
    expected = slim(rich(), replies=replies)
    assert load(path) == expected
    assert compact(load(path), replies=replies) == path.read_text(encoding="utf-8")
    samples = [sample for run in expected.runs for point in run.attacks for sample in point.samples]
    assert bool(samples) is replies
    assert all(sample.messages == () and sample.reply for sample in samples)


def test_compact_load_reads_whole_records(tmp_path: Path) -> None:
    results = study(("plain",), (0,), ("",))
    results.save(tmp_path / "record.json")
    assert load(tmp_path / "record.json") == results


def test_compact_command_writes_a_small_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    results = study(("plain", "channel"), (0,))
    results.save(tmp_path / "whole.json")
    monkeypatch.setattr("sys.argv", ["compact", str(tmp_path / "whole.json"), str(tmp_path / "small.json")])
    compact_main()
    assert load(tmp_path / "small.json") == slim(results)
    assert (tmp_path / "small.json").stat().st_size < (tmp_path / "whole.json").stat().st_size / 5


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "record.json: "),
        ("[]", "record.json: `text`: expected a JSON object"),
        ('{"schema_version": 99}', "record.json: `schema_version`: expected 1 to"),
        ('{"compact_version": 1}', "record.json: expected a compact record"),
        (
            '{"compact_version": 2, "environment": {"versions": [["rolesafe", "9.1"]]}}',
            "`compact_version`: expected 1, got 2, of rolesafe 9.1",
        ),
    ],
)
def test_compact_load_bad_file_raises(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "record.json").write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        load(tmp_path / "record.json")


# ---------------------------------------------------------------------------------------------------------- the records


def test_committed_records_are_small() -> None:
    assert sum(path.stat().st_size for path in RECORDS.iterdir()) < LIMIT


def test_record_last_has_corrected_places():
    """The attack `position` had moved message 0, the user's; the record has the places that were sent."""
    results = load(RECORDS / "override_resistance_last.json")
    assert "relabelled" in results.settings
    for run in results.runs:
        places = [p.parameters["system"] for p in run.attacks if p.attack == "position"]
        assert sorted(set(places)) == ["first", "last", "middle"]
        assert places.count("last") == 5
        assert run.worst_case == Rate(sum(run.worst().values()), len(run.worst()))


def test_record_main_has_the_default_command():
    results = load(RECORDS / "override_resistance.json")
    assert results.settings["command"] == Study().command
    assert {run.key for run in results.runs} == set(Study().jobs)


def test_template_leaves_places_and_secrets_open():
    asked = generate("test", 24, 3, ("access", "form", "data"))
    labels = clusters({"examples": 24, "families": ["access", "form", "data"]}, [3 - 1000])
    assert {e.id for e in asked} <= set(labels)
    for example in asked:
        assert labels[example.id] == template(example)
        words = {word for m in example.messages for word in tokens(m["content"])}
        assert not set(tokens(template(example))) & (words & {*PLACES, *SECRETS})
    assert distance(("the", "code", "is", "_"), ("the", "code", "was", "a", "_")) == 2
    assert nearest(("a", "b", "c"), [("a", "x", "c"), ("c", "b", "a")]) == 1
    assert nearest(("a", "b"), [("x", "y", "z")]) == 2


def test_rejudged_counts_by_judge(tmp_path):
    example = next(e for e in generate("test", 12, 7, ("access",)) if e.kind == "protected")
    replies = [f"_{example.violation}_", example.reply, "", example.violation]
    kept = tuple(
        Outcome(id=example.id, family="access", messages=(), reply=reply, success=reply == example.violation)
        for reply in replies
    )
    results = study(("plain",), (0,), ("",))
    run = replace(results.runs[0], attacks=(replace(results.runs[0].attacks[0], samples=kept),))
    results = replace(results, runs=(run,))
    path = tmp_path / "record.json"
    for text in (results.to_json(), compact(results, replies=True)):
        path.write_text(text)
        assert rejudged([path]).splitlines()[-1] == "| `record.json` | 4 | 1 | 2 | 1 | 1 |"
    path.write_text(results.to_json().replace(example.id, "riddle/test/7/1/0/protected"))
    with pytest.raises(ValueError, match="`ids`: expected examples of the generator"):
        rejudged([path])
