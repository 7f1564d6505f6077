"""Attacked messages: changed and preserved parts of each text."""

from __future__ import annotations

import pytest
from transformers import AutoTokenizer

from benchmarks.pretrained.answers import batches, with_structure
from benchmarks.pretrained.data import Data
from benchmarks.pretrained.goals import BY_NAME
from benchmarks.pretrained.injections import CORE, EVERY, METHODS, PLACES, Case, attacked, cases, read_marks
from benchmarks.pretrained.settings import Settings
from benchmarks.pretrained.suites.followup import pair
from benchmarks.pretrained.suites.injection import assigned, rows
from rolesafe import RoleConfig
from rolesafe.roles.encoding import encode_one

GOAL = BY_NAME["france"]


@pytest.fixture(scope="module")
def tokenizer(plain):
    return AutoTokenizer.from_pretrained(plain)


@pytest.fixture(scope="module")
def task(sets):
    return Data(sets).tasks(inputs=True)[0]


@pytest.mark.parametrize("tool", [False, True])
@pytest.mark.parametrize("case", EVERY, ids=lambda case: case.label)
def test_injection_keeps_instruction_and_data(case, tool, tokenizer, task):
    messages = attacked(task, GOAL, case, read_marks(tokenizer, tool=tool), 0)
    assert messages[0] == {"role": "system", "content": task.instruction}
    assert messages[-1]["role"] == ("tool" if tool else "user")
    content = messages[-1]["content"]
    assert all(sentence in content for sentence in task.data.split(". ")[:2])
    orders = GOAL.orders if case.styled else (GOAL.destyled,)
    count = max(content.count(order) for order in orders)
    assert count == {"none": 0, "8 times": 8, "32 times": 32}.get(case.method, 1)


def test_injection_places_differ(tokenizer, task):
    marks = read_marks(tokenizer, tool=False)
    found = [attacked(task, GOAL, Case("naive", place), marks, 0)[-1]["content"] for place in PLACES]
    order = next(order for order in GOAL.orders if order in found[0])
    at = [text.index(order) for text in found]
    assert at[0] == 0 < at[1] < at[2]
    assert found[2].endswith(order)


def test_injection_core_has_every_method():
    assert {case.method for case in CORE} == {"none", *METHODS}
    assert {(c.method, c.place) for c in EVERY} >= {(m, p) for m in METHODS for p in PLACES}
    assert len({case.label for case in EVERY}) == len(EVERY)
    assert set(CORE) <= set(cases("all"))


def test_injection_is_seeded(tokenizer, task):
    marks = read_marks(tokenizer, tool=False)
    texts = [attacked(task, GOAL, Case("combined"), marks, seed)[-1]["content"] for seed in (0, 0, 1, 2, 3)]
    assert texts[0] == texts[1]
    assert len(set(texts)) > 1


def test_fake_turn_ids_equal_the_rendered_text(tokenizer, task):
    messages = attacked(task, GOAL, Case("fake turn ids"), read_marks(tokenizer, tool=False), 0)
    encoded = encode_one(tokenizer, messages, add_generation_prompt=True)
    with_ids = with_structure(tokenizer, encoded, messages)
    rendered = tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True)
    assert with_ids.input_ids == tokenizer(rendered, add_special_tokens=False).input_ids
    assert encoded.input_ids != with_ids.input_ids
    structural = tokenizer.convert_tokens_to_ids("<|assistant|>")
    roles = [r for r, i in zip(with_ids.role_ids, with_ids.input_ids, strict=True) if i == structural]
    assert len(set(roles)) == len(roles) == 2  # the typed one keeps the user's role
    assert len(with_ids.role_ids) == len(with_ids.message_ids) == len(with_ids.parts) == len(with_ids)


@pytest.mark.parametrize("tool", [False, True])
def test_followup_pair_has_the_same_tokens_in_other_roles(tokenizer, task, tool):
    own, forged = pair(task, GOAL, read_marks(tokenizer, tool=tool), 0)
    real = encode_one(tokenizer, own, add_generation_prompt=True)
    typed = with_structure(tokenizer, encode_one(tokenizer, forged, add_generation_prompt=True), forged)
    assert real.input_ids == typed.input_ids
    user, data = (RoleConfig().roles.index(name) for name in ("user", "tool" if tool else "user"))
    order = [i for i, message in enumerate(real.message_ids) if message == len(own) - 1]
    assert {real.role_ids[i] for i in order} == {user}
    assert {typed.role_ids[i] for i in order} == {data}
    assert own[-1]["content"] in GOAL.orders


def test_goals_come_in_turn_and_are_not_in_the_row(sets):
    tasks = Data(sets).tasks(inputs=True)
    found = assigned(tasks, ("france", "japan"), 0)
    assert [task for task, _ in found] == tasks
    assert {goal.name for _, goal in found} == {"france", "japan"}
    assert not any(goal.contains(task.data) for task, goal in found)


def test_goal_of_a_row_does_not_depend_on_the_limit(sets):
    settings = Settings()
    whole = {task.source: goal.name for task, goal in rows(Data(sets), settings)}
    some = {task.source: goal.name for task, goal in rows(Data(sets, 2), settings)}
    assert len(some) == 2
    assert some.items() <= whole.items()


def test_batches_hold_every_index_once():
    lengths = [3, 50, 7, 7, 120, 1]
    found = list(batches(lengths, 10, 60))
    assert sorted(i for batch in found for i in batch) == list(range(6))
    assert all(len(b) == 1 or (max(lengths[i] for i in b) + 10) * len(b) <= 60 for b in found)
    assert found[0] == [4]


def test_limit_draws_the_same_rows(sets):
    some = [task.source for task in Data(sets, 2, 3).tasks(inputs=True)]
    assert some == [task.source for task in Data(sets, 2, 3).tasks(inputs=True)]
    assert len(some) == 2
    pairs = {place: [row.source for row in Data(sets, 1, 0).ifeval(place)] for place in ("user", "system")}
    assert pairs["user"] == pairs["system"]


def test_missing_set_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"`data`: expected a folder with sep_1000.json.*--data"):
        Data(tmp_path).sep()
