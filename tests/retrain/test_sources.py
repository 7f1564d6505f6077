"""Training data: formats and errors."""

from __future__ import annotations

import json

import pytest

from rolesafe.retrain import read_sources


@pytest.fixture
def write(tmp_path):
    def make(rows, name="rows.json"):
        path = tmp_path / name
        text = "\n".join(map(json.dumps, rows)) if name.endswith("l") else json.dumps(rows)
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        return str(path)

    return make


USER, REPLY = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}
PARTS = {"role": "User", "content": [{"type": "text", "text": "Hi"}]}
SHAREGPT = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]


@pytest.mark.parametrize(
    ("row", "instruction", "data", "messages", "reply"),
    [
        ({"instruction": "Do", "input": " x ", "output": "y"}, "Do", "x", (), "y"),
        ({"instruction": "Do", "context": "", "response": "y", "category": "z"}, "Do", "", (), "y"),
        ({"messages": [USER, REPLY]}, "", "", (USER,), "Hello"),
        ({"messages": [PARTS, REPLY]}, "", "", (USER,), "Hello"),
        ({"conversations": SHAREGPT}, "", "", (USER,), "Hello"),
        ({"prompt": "Hi", "completion": " Hello"}, "", "", (USER,), "Hello"),
        ({"prompt": [USER], "completion": [REPLY]}, "", "", (USER,), "Hello"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("name", ["rows.json", "rows.jsonl"])
def test_sources_read_known_formats(write, row, instruction, data, messages, reply, name):
    (one,) = read_sources(write([row], name)).rows
    assert (one.instruction, one.data, one.messages, one.reply) == (instruction, data, messages, reply)
    assert one.where == f"{name}, row 1"


def test_sources_of_a_directory_come_in_order(write, tmp_path):
    write([{"prompt": "b", "completion": "1"}], "b.jsonl")
    write([{"prompt": "a", "completion": "1"}], "a.json")
    found = read_sources(str(tmp_path))
    assert [row.messages[0]["content"] for row in found.rows] == ["a", "b"]
    before = found.digest
    write([{"prompt": "b", "completion": "2"}], "b.jsonl")
    assert read_sources(str(tmp_path)).digest != before


GOOD = {"prompt": "a", "completion": "b"}


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"instruction": "Do", "input": "", "output": " "}, "row 2: expected a reply in `output`"),
        ({"messages": [USER]}, r"row 2: expected a conversation that ends with a reply .* got the roles \['user'\]"),
        ({"messages": [REPLY]}, "row 2: expected a message of the role 'user'"),
        ({"messages": []}, "row 2: `messages`: expected a list of messages"),
        ({"messages": [{"role": "robot", "content": "x"}, REPLY]}, r"row 2: `messages\[0\]`: expected a role"),
        ({"messages": [USER, {"role": "assistant", "content": None}]}, r"row 2: `messages\[1\]`: expected a text"),
        ({"prompt": "a"}, "row 2: expected a reply in `completion`"),
        ({"question": "a", "solution": "b"}, r"row 2: expected `instruction` .* got .* \['question', 'solution'\]"),
        ("text", "row 2: expected an object with fields"),
    ],
)  # fmt: skip
def test_sources_name_the_bad_row(write, row, said):
    path = write([GOOD, row])
    with pytest.raises(ValueError, match=f"`data`: rows.json, {said}"):
        read_sources(path)
    found = read_sources(path, drop_bad=True)
    assert (len(found.rows), len(found.dropped)) == (1, 1)
    assert "row 2" in found.dropped[0]


def test_sources_without_replies_are_for_own_replies(write):
    path = write([{"instruction": "Do", "input": "x"}, {"messages": [USER]}, {"prompt": "a"}])
    assert [row.reply for row in read_sources(path, need_replies=False).rows] == [None] * 3


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.json", "[]", "empty set"),
        ("a.json", "{", "expected JSON"),
        ("a.jsonl", '{"prompt": "a", "completion": "b"}\n{', "line 2: expected JSON"),
        ("a.parquet", "PAR1", "expected a file that ends in"),
        ("none/a.json", None, "no such file"),
    ],
)
def test_sources_that_cannot_be_read_raise(tmp_path, name, content, said):
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=rf"`data`: .*{said}"):
        read_sources(str(tmp_path / name))


def test_sources_with_no_good_row_raise(write):
    with pytest.raises(ValueError, match="expected rows to train on, got none of 1"):
        read_sources(write([{"x": 1}]), drop_bad=True)
