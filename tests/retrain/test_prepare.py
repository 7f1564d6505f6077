"""Prepared rows: determinism, roles, replies, phrasings disjoint from those of tests."""

from __future__ import annotations

import importlib
import re
from collections import Counter
from contextlib import suppress
from dataclasses import replace
from random import Random

import pytest
from transformers import AutoTokenizer

from rolesafe import RoleConfig
from rolesafe.attacks.redirection import ORDERS, PERSONAS
from rolesafe.retrain import RetrainConfig, Source, prepare, read_sources, training_texts
from rolesafe.retrain.batching import encode_rows
from rolesafe.retrain.benign import process, sentences
from rolesafe.retrain.injecting import METHODS, PLACES, insert
from rolesafe.retrain.phrasing import DECOYS, normalised
from rolesafe.tasks.phrasing import IGNORE, TRIGGER
from tests.retrain.conftest import ROWS


@pytest.fixture(scope="module")
def tokenizer(checkpoint):
    return AutoTokenizer.from_pretrained(checkpoint)


@pytest.fixture(scope="module")
def sources(data):
    return read_sources(str(data)).rows


@pytest.fixture(scope="module")
def many(sources, tokenizer):
    return prepare(sources, RetrainConfig(model="m", data="d", rows=800), tokenizer)


def test_prepare_is_deterministic(sources, tokenizer, many):
    config = RetrainConfig(model="m", data="d", rows=800)
    assert prepare(sources, config, tokenizer) == many
    other = prepare(sources, RetrainConfig(model="m", data="d", rows=800, seed=1), tokenizer)
    assert other.digest != many.digest


def test_prepare_keeps_the_shares(many):
    assert many.counts == {"clean": 160, "injected": 320, "benign": 200, "plain": 120}
    assert len({row.id for row in many.rows}) == 800
    tool = [row for row in many.rows if row.messages[-1]["role"] == "tool"]
    assert 0.7 * 680 * 0.75 < len(tool) < 680 * 0.75  # some benign rows have no turn with data


def test_prepare_default_is_as_many_rows_as_the_data(sources, tokenizer):
    assert len(prepare(sources, RetrainConfig(model="m", data="d"), tokenizer).rows) == len(ROWS)


def test_injected_row_has_the_reply_of_its_clean_row(many):
    replies = {row["input"]: row["output"] for row in ROWS if row["input"]}
    goals = {row["instruction"] for row in ROWS}
    for row in (row for row in many.rows if row.kind == "injected"):
        number = int(re.search(r"row (\d+)", row.source).group(1)) - 1
        source = ROWS[number]
        assert row.reply == replies[source["input"]]
        system, *_, last = row.messages
        assert system["role"] == "system"
        assert source["instruction"] in system["content"]
        assert last["role"] in ("user", "tool")
        # all of the clean data is there, and the goal of another row
        assert all(part in last["content"] for part in sentences(source["input"]))
        assert any(goal in last["content"] for goal in goals - {source["instruction"]})
        assert source["instruction"] not in last["content"]


def test_prepare_never_puts_data_into_the_system_turn(many):
    inputs = [row["input"] for row in ROWS if row["input"]]
    for row in many.rows:
        trusted = " ".join(m["content"] for m in row.messages if m["role"] == "system")
        assert not any(data in trusted for data in inputs)


def test_injections_have_every_method_and_place(many):
    details = Counter(row.detail for row in many.rows if row.kind == "injected")
    text = " ".join(details)
    for name in (*METHODS[:-1], *PLACES, "2 injections", "4 injections", "tool", "user"):
        assert name in text


def test_fake_turn_has_the_delimiters_of_the_template(many):
    rows = [row for row in many.rows if row.detail.startswith(("fake turn", "live turn"))]
    assert {row.detail.startswith("live turn") for row in rows} == {True, False}
    for row in rows:
        assert "</s><|" in row.messages[-1]["content"]
        assert row.live == row.detail.startswith("live turn")
    assert not any(row.live for row in many.rows if row not in rows)


def test_live_turn_has_structural_tokens_in_the_role_of_the_data(many, tokenizer):
    config = RetrainConfig(model="m", data="d", max_length=4096)
    row = next(row for row in many.rows if row.live and "assistant" in row.messages[-1]["content"])
    typed, live = (encode_rows([replace(row, live=live)], config, tokenizer).rows[0] for live in (False, True))
    roles = RoleConfig().roles
    data = roles.index(row.messages[-1]["role"])
    ends = [
        [i for i, role in zip(one["input_ids"], one["role_ids"], strict=True) if role == data].count(
            tokenizer.eos_token_id
        )
        for one in (typed, live)
    ]
    assert ends[0] == 1
    assert ends[1] >= 2
    learned = [[label for label in one["labels"] if label != -100] for one in (typed, live)]
    assert learned[0] == learned[1]


def test_continued_row_follows_the_user(many):
    replies = {row["instruction"]: row["output"] for row in ROWS}
    rows = [row for row in many.rows if row.detail == "continue"]
    assert len(rows) > 50
    for row in rows:
        assert [m["role"] for m in row.messages[-2:]] == ["assistant", "user"]
        assert row.reply == replies[row.messages[-1]["content"].partition("\n\n")[0]]
        assert row.messages[-2]["content"] == replies[next(i for i in replies if i in row.messages[0]["content"])]


def test_follow_row_has_the_reply_of_its_instruction(many):
    replies = {row["instruction"]: row["output"] for row in ROWS}
    rows = [row for row in many.rows if row.detail == "follow"]
    assert len(rows) > 50
    for row in rows:
        assert row.reply == replies[row.messages[-1]["content"].partition("\n\n")[0]]


def test_own_replies_wait_for_the_model(sources, tokenizer):
    config = RetrainConfig(model="m", data="d", rows=200, replies="self")
    for row in prepare(sources, config, tokenizer).rows:
        exact = row.detail.startswith("process")
        assert (row.reply is None) == (row.prompt is not None) == (not exact)
        if row.kind == "injected":
            assert row.prompt[0] == row.messages[0]
            assert row.prompt != row.messages
            assert row.prompt[-1]["content"] in {r["input"] for r in ROWS}
        elif row.detail in ("follow", "continue"):
            assert [m["role"] for m in row.prompt] == ["user"]


def test_processing_replies_follow_from_the_rule():
    seen = Counter()
    for i in range(300):
        task = process("The cat sleeps. It dreams of fish", "Write a poem", Random(i))
        seen[task.name] += 1
        assert "Write a poem." in task.data
        if task.name == "repeat":
            assert task.reply == task.data
        elif task.name == "count":
            assert task.reply == str(task.data.count(" ") + 1)
        elif task.name == "last":
            assert task.data.endswith(task.reply)
            assert task.reply.count(".") == 1
        elif task.name == "first":
            assert task.data.startswith(task.reply)
            assert task.reply.count(".") == 1
        elif task.name == "upper":
            assert task.reply == task.data.upper()
        elif task.name == "number":
            assert task.reply.splitlines() == [f"{k}. {s}" for k, s in enumerate(sentences(task.data), 1)]
        else:
            old, new = re.findall(r"'(\w+)'", task.order)
            assert task.reply == re.sub(rf"\b{old}\b", new, task.data) != task.data
    assert len(seen) == 7


@pytest.mark.parametrize("place", PLACES)
def test_insert_keeps_the_data(place):
    for i in range(20):
        text = insert("One. Two!\nThree", "X", place, Random(i))
        assert sorted(re.findall(r"\w+", text)) == ["One", "Three", "Two", "X"]
        assert {"first": text.startswith("X"), "last": text.endswith("X")}.get(place, "One" < text < "Three~")
    assert insert("no boundary", "X", "middle", Random(0)).startswith("no boundary")
    words = "one two three four five six seven eight"
    text = insert(words, "X", "middle", Random(0))
    assert text.replace("X", " ").split() == words.split()
    assert not text.startswith("X")
    assert not text.endswith("X")


def test_prepare_tool_results_are_data(tokenizer):
    user, tool = {"role": "user", "content": "What is up?"}, {"role": "tool", "content": "Sun. All day."}
    rows = [Source(where=f"r{i}", messages=({**user, "content": f"Question {i}?"},), reply="A") for i in range(4)]
    with pytest.raises(ValueError, match=r"`data`: expected rows with an input or a tool's result for 'clean' rows"):
        prepare(rows, RetrainConfig(model="m", data="d"), tokenizer)
    rows.append(Source(where="t", messages=(user, tool), reply="Sunny"))
    found = prepare(rows, RetrainConfig(model="m", data="d", rows=40), tokenizer)
    for row in found.rows:
        if row.kind == "injected":
            assert row.messages[0] == user
            assert row.messages[1]["role"] == "tool"
            assert "Question" in row.messages[1]["content"]


def test_prepare_without_another_instruction_raises(tokenizer):
    row = Source(where="r", instruction="Do", data="x. y.", reply="z")
    with pytest.raises(ValueError, match="`data`: expected at least two different instructions"):
        prepare([row], RetrainConfig(model="m", data="d", rows=10), tokenizer)
    with pytest.raises(ValueError, match="`rows`: expected at least one row"):
        prepare([], RetrainConfig(model="m", data="d"), tokenizer)


def test_template_without_tool_turns_gets_none(sources, tokenizer, monkeypatch):
    from rolesafe.retrain import injecting

    real = injecting.delimiters

    def without_tools(tokenizer, roles, config):
        if "tool" in roles:
            raise ValueError("no tool")
        return real(tokenizer, roles, config)

    monkeypatch.setattr(injecting, "delimiters", without_tools)
    found = prepare(sources, RetrainConfig(model="m", data="d", rows=100), tokenizer)
    assert found.tool_share == 0
    assert all(m["role"] != "tool" for row in found.rows for m in row.messages)
    with pytest.raises(ValueError, match="`tool_share`: expected 0"):
        prepare(sources, RetrainConfig(model="m", data="d", tool_share=0.5), tokenizer)


def fixed_test_texts() -> set[str]:
    """Return the phrasings of the fixed attacks, and of the benchmark of pretrained models if available."""
    texts = [*ORDERS, *IGNORE["test"], *TRIGGER["test"], *(text for group in PERSONAS.values() for text in group)]
    with suppress(ModuleNotFoundError):  # the benchmark is no part of the package
        texts += importlib.import_module("benchmarks.pretrained.texts").all_texts()
    return {normalised(text) for text in texts}


def test_training_phrasings_are_not_those_of_tests():
    training = {normalised(text) for text in training_texts()} - {""}
    assert len(training) > 60
    assert training.isdisjoint(fixed_test_texts())


def test_normalised_sees_through_case_and_punctuation():
    assert normalised("Ignore  the Rules, above!") == normalised("ignore the rules above")
    assert len({normalised(text) for text in DECOYS}) == len(DECOYS)


def test_role_vectors_that_no_row_would_train_raise(many, tokenizer):
    roles = {"embedding": "layers", "embedding_roles": ["tool"]}
    config = RetrainConfig(model="m", data="d", max_length=4096, bad_rows="drop", preset="bias", role_config=roles)
    with_tool = [row for row in many.rows if any(message["role"] == "tool" for message in row.conversation)][:3]
    without = [row for row in many.rows if row not in with_tool and row.detail.endswith("user")][:3]
    assert len(encode_rows(with_tool, config, tokenizer).rows) == len(with_tool) == len(without) == 3
    with pytest.raises(ValueError, match=r"`data`: expected rows with text of the roles \['tool'\].*`tool_share`"):
        encode_rows(without, config, tokenizer)


def test_parts_that_no_row_would_train_raise(tokenizer):
    """Conversations without a system turn, with a preset that reads privileged tokens; before and after encoding."""
    turns = ({"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."})
    sources = [Source(where=f"row {i}", messages=turns[:1], reply=turns[1]["content"]) for i in range(3)]
    lack = r"`data`: expected rows with tokens of the privileged roles \['system', 'developer'\], got none in 3 rows"

    def config(preset):
        return RetrainConfig(model="m", data="d", preset=preset, shares={"plain": 1})

    prepared = prepare(sources, config("bias"), tokenizer)
    assert len(encode_rows(prepared.rows, config("ise"), tokenizer).rows) == 3
    for preset, part in (("added", "added_heads"), ("dedicated", "dedicated_heads"), ("channel", "share")):
        with pytest.raises(ValueError, match=f"{lack}.*`{part}`"):
            prepare(sources, config(preset), tokenizer)
        with pytest.raises(ValueError, match=lack):
            encode_rows(prepared.rows, config(preset), tokenizer)
