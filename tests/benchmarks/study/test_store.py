"""Records of a study on disk."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.override_resistance.store import Store
from tests.benchmarks.study.drawn import study


def test_store_read_resumes_an_interrupted_study(tmp_path: Path) -> None:
    whole = study(("plain", "channel"), (0, 1))
    store = Store(tmp_path / "runs")
    planned = [run.key for run in whole.runs]
    with pytest.raises(ValueError, match=r"`directory`: expected files of runs in .*, found none"):
        store.read(planned)
    for run in whole.runs[:3]:
        store.save(replace(whole, runs=(run,)))
    assert store.load(planned[0]) == replace(whole, runs=whole.runs[:1])
    assert store.load(planned[3]) is None
    part = store.read(planned)
    assert (part.runs, part.complete) == (whole.runs[:3], False)
    for run in whole.runs[3:]:
        store.save(replace(whole, runs=(run,)))
    assert store.read(planned) == whole
    assert store.read().complete
    assert store.read(planned[:2]).runs == whole.runs[:2], "files of other runs are left out"
    assert {path.name for path in (tmp_path / "runs").iterdir()} >= {"0.2M--plain--0.json", "1.5M--channel--1.json"}


def test_store_read_unfinished_run_is_not_complete(tmp_path: Path) -> None:
    whole = study(("plain",), (0,), ("",))
    store = Store(tmp_path)
    store.save(replace(whole, runs=(replace(whole.runs[0], complete=False),)))
    assert not store.read().complete
    assert store.path(("", "plain", 0)).name == "plain--0.json"


def test_store_bad_input_raises(tmp_path: Path) -> None:
    store = Store(tmp_path)
    with pytest.raises(ValueError, match="`results`: expected one run, got 2"):
        store.save(study(("plain",), (0, 1), ("",)))
    for name in ("../x", "a/b", "", "a--b", ".hidden", "-x", "a b", "a\n"):
        with pytest.raises(ValueError, match="`model`: expected a letter or digit"):
            store.path(("0.2M", name, 0))
    with pytest.raises(ValueError, match="`size`: expected a letter or digit"):
        store.path(("../..", "plain", 0))
    (tmp_path / "plain--0.json").write_text("{", encoding="utf-8")
    with pytest.raises(ValueError, match=r"plain--0.json: `text`: expected the JSON of results"):
        store.load(("", "plain", 0))
