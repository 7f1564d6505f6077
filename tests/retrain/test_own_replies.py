"""Generated replies of the untouched model: batches, files, interruptions."""

from __future__ import annotations

import json

import pytest

from rolesafe.retrain import load_retrained, prepare, read_sources, retrain
from rolesafe.retrain import own_replies as module
from rolesafe.retrain.own_replies import write_replies


@pytest.fixture(scope="module")
def loaded(checkpoint):
    return load_retrained(str(checkpoint))


@pytest.fixture
def generated(monkeypatch):
    """Replace generation: the reply is the number of tokens of the prompt, None at multiples of five."""
    batches = []

    def generate(model, tokenizer, encoded, ends, max_new_tokens):
        batches.append(len(encoded))
        return [None if len(one) % 5 == 0 else f"{len(one)} tokens" for one in encoded]

    monkeypatch.setattr(module, "_generate", generate)
    return batches


def options(path, **changes):
    return {
        "path": path, "identity": {"base": "x"}, "max_new_tokens": 8, "batch_size": 4, "max_length": 400, **changes
    }  # fmt: skip


@pytest.fixture
def prepared(recipe, data, loaded):
    config = recipe(replies="self", rows=60)
    return prepare(read_sources(str(data), need_replies=False).rows, config, loaded[1])


def test_own_replies_are_written_once(prepared, loaded, tmp_path, generated):
    path = tmp_path / "replies.jsonl"
    calls = []
    filled, dropped = write_replies(prepared, *loaded, **options(path, progress=lambda *done: calls.append(done)))
    prompts = {json.dumps(row.prompt) for row in prepared.rows if row.prompt is not None}
    assert sum(generated) == len(prompts) == calls[-1][0] == calls[-1][1]
    assert len(filled.rows) + dropped == len(prepared.rows)
    assert 0 < dropped < 30
    assert all(row.reply for row in filled.rows)
    exact = {row.id: row.reply for row in prepared.rows if row.prompt is None}
    assert {row.id: row.reply for row in filled.rows if row.id in exact} == exact
    generated.clear()
    assert write_replies(prepared, *loaded, **options(path)) == (filled, dropped)
    assert generated == []


def test_own_replies_resume_after_a_line_that_was_cut(prepared, loaded, tmp_path, generated):
    path = tmp_path / "replies.jsonl"
    whole = write_replies(prepared, *loaded, **options(path))
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:5]) + lines[5][:20])
    generated.clear()
    assert write_replies(prepared, *loaded, **options(path)) == whole
    assert sum(generated) == len(lines) - 5
    generated.clear()
    write_replies(prepared, *loaded, **options(path))
    assert generated == []


@pytest.mark.parametrize("change", [{"identity": {"base": "y"}}, {"max_new_tokens": 9}])
def test_own_replies_of_another_model_do_not_count(prepared, loaded, tmp_path, generated, change):
    path = tmp_path / "replies.jsonl"
    write_replies(prepared, *loaded, **options(path))
    generated.clear()
    write_replies(prepared, *loaded, **options(path, **change))
    assert generated


def test_own_replies_out_of_memory_halves_the_batch(prepared, loaded, tmp_path, monkeypatch):
    sizes = []

    def generate(model, tokenizer, encoded, ends, max_new_tokens):
        sizes.append(len(encoded))
        if len(encoded) > 2:
            raise RuntimeError("out of memory")
        return ["x"] * len(encoded)

    monkeypatch.setattr(module, "_generate", generate)
    _, dropped = write_replies(prepared, *loaded, **options(tmp_path / "r.jsonl"))
    assert dropped == 0
    assert sizes[:2] == [4, 2]
    assert max(sizes[1:]) == 2


def test_no_reply_that_ends_raises(recipe, data, loaded, tmp_path, monkeypatch):
    config = recipe(replies="self", shares={"plain": 1})
    rows = prepare(read_sources(str(data)).rows, config, loaded[1])
    monkeypatch.setattr(module, "_generate", lambda model, tokenizer, encoded, *rest: [None] * len(encoded))
    with pytest.raises(ValueError, match="`max_new_tokens`: expected replies that end"):
        write_replies(rows, *loaded, **options(tmp_path / "r.jsonl"))


def test_generate_gives_the_greedy_reply(loaded, monkeypatch):
    from rolesafe.attacks.replies import end_ids, replies

    model, tokenizer = loaded
    chats = [[{"role": "user", "content": text}] for text in ("Hi", "The house is red. Say it again.")]
    encoded = [module._encode(tokenizer, chat) for chat in chats]
    assert module._generate(model, tokenizer, encoded, end_ids(model, tokenizer), 4) == [None, None]  # do not end
    expected = replies(model, tokenizer, chats, max_new_tokens=4)
    stop = tokenizer(expected[0]).input_ids[-1]
    found = module._generate(model, tokenizer, encoded[:1], [stop], 4)[0]
    assert found is None or expected[0].startswith(found)


def test_other_replies_do_not_resume(recipe, tmp_path, generated, monkeypatch):
    config = recipe(replies="self", steps=2, save_steps=1)
    monkeypatch.setattr("rolesafe.retrain.run.move_in", lambda *args, **options: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        retrain(config, tmp_path / "out")
    monkeypatch.undo()
    (tmp_path / "out" / "own_replies.jsonl").unlink()
    monkeypatch.setattr(module, "_generate", lambda model, tokenizer, encoded, *rest: ["other"] * len(encoded))
    with pytest.raises(ValueError, match="`out`: expected the replies of the start of the run"):
        retrain(config, tmp_path / "out")


def test_retrain_with_own_replies_uses_a_shared_file(recipe, tmp_path, generated):
    config = recipe(replies="self", steps=1)
    retrain(config, tmp_path / "one", replies_path=tmp_path / "replies.jsonl")
    assert sum(generated) > 0
    generated.clear()
    retrain(recipe(replies="self", steps=1, preset="plain"), tmp_path / "two", replies_path=tmp_path / "replies.jsonl")
    assert generated == []
    assert "the base model's own, greedy" in (tmp_path / "two" / "README.md").read_text()


def test_rows_without_privileged_turns_raise_before_replies(recipe, tmp_path, monkeypatch):
    """Hours of generated replies would be lost. The same call, which would resume, raises again."""
    talks = [{"messages": [{"role": "user", "content": f"Say {word}"}]} for word in ("rain", "bread", "maps")]
    (tmp_path / "talks.json").write_text(json.dumps(talks))
    monkeypatch.setattr(module, "_generate", lambda *args: pytest.fail("replies were generated"))
    values = {"data": str(tmp_path / "talks.json"), "replies": "self", "shares": {"plain": 1}, "preset": "added"}
    for _ in range(2):
        with pytest.raises(ValueError, match=r"`data`: expected rows with tokens of the privileged .*`added_heads`"):
            retrain(recipe(**values), tmp_path / "out")
