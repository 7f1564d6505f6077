"""Phrasings and rows of the published sets are disjoint from the training data."""

from __future__ import annotations

import json

import pytest

from benchmarks.pretrained.data import FILES, Data
from benchmarks.pretrained.settings import DATA
from benchmarks.pretrained.texts import all_texts, normalised
from rolesafe.attacks import redirection
from rolesafe.tasks import phrasing

TRAINING = ("alpaca_5000.json", "benign_instructions.json")
KNOWN = {"what color is the sky"}
"""Rows shared by AlpacaFarm and Alpaca. They have no input and no injection; the arms leave them out of training."""


def training_files():
    """Return the normalised instructions, inputs, and both joined, of all training rows."""
    if not DATA.is_dir():
        pytest.skip(f"the published sets are not part of the project: none in {DATA}")
    found = {"instruction": set(), "input": set(), "both": set()}
    for name in TRAINING:
        for row in json.loads((DATA / name).read_text(encoding="utf-8")):
            data = row.get("input") or ""
            found["instruction"].add(normalised(row["instruction"]))
            found["input"].add(normalised(data))
            found["both"].add(normalised(f"{row['instruction']} {data}"))
    found["input"].discard("")
    return found


@pytest.fixture(scope="module")
def trained():
    return training_files()


def test_phrasings_are_distinct():
    texts = [text for text in map(normalised, all_texts()) if len(text.split()) > 2]
    assert sorted(texts) == sorted(set(texts))


def test_phrasings_are_not_those_of_training():
    training = pytest.importorskip("rolesafe.retrain.phrasing", reason="retraining is not part of this checkout")
    ours, theirs = (
        {text for text in map(normalised, some) if text} for some in (all_texts(), training.training_texts())
    )
    assert not ours & theirs
    long_ours, long_theirs = ({text for text in some if len(text.split()) > 2} for some in (ours, theirs))
    assert not [(a, b) for a in long_ours for b in long_theirs if f" {a} " in f" {b} " or f" {b} " in f" {a} "]


def test_orders_are_not_training_rows(trained):
    assert not [text for text in map(normalised, all_texts()) if text in trained["instruction"] | trained["both"]]


def test_alpacafarm_rows_are_not_training_rows(trained):
    tasks = [*Data(DATA).tasks(inputs=True), *Data(DATA).tasks(inputs=False)]
    shared = {text for t in tasks if (text := normalised(f"{t.instruction} {t.data}")) in trained["both"]}
    assert shared <= KNOWN
    assert not [t.instruction for t in tasks if t.data and normalised(t.instruction) in trained["instruction"]]


def test_sep_rows_are_not_training_rows(trained):
    rows = Data(DATA).sep()
    assert not [p.id for _, p, _ in rows if normalised(p.messages[0]["content"]) in trained["instruction"]]
    assert not [p.id for _, p, _ in rows if normalised(p.goal) in trained["instruction"] | trained["both"]]


@pytest.mark.parametrize("where", ["user", "system"])
def test_ifeval_rows_are_not_training_rows(where, trained):
    rows = Data(DATA).ifeval(where)
    assert not [r.source for r in rows if normalised(r.prompt) in trained["both"]]
    assert not [r.source for r in rows if normalised(r.messages[-1]["content"]) in trained["both"]]


def test_xstest_prompts_are_not_training_rows(trained):
    assert not [text for _, text in Data(DATA).xstest() if normalised(text) in trained["both"]]


def test_published_sets_have_their_sizes():
    if not DATA.is_dir():
        pytest.skip(f"the published sets are not part of the project: none in {DATA}")
    data = Data(DATA)
    assert set(FILES) <= {name for name in FILES if data.path(name)}
    assert len(data.tasks(inputs=True)) == 208
    assert len(data.sep()) == 1000
    assert len(data.ifeval("user")) == len(data.ifeval("system")) == 541
    assert len(data.xstest()) == 250


def test_texts_are_not_those_of_the_generator():
    generator = {normalised(text) for split in phrasing.IGNORE.values() for text in split}
    generator |= {normalised(text) for text in redirection.ORDERS}
    assert not {normalised(text) for text in all_texts()} & generator - {""}
