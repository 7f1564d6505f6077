"""Dials of the difficulty, in evaluation and training."""

from __future__ import annotations

import re
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rolesafe.tasks import (
    FAMILIES,
    Difficulty,
    Example,
    generate,
    placed,
    training_conversations,
    training_records,
    vocabulary,
)
from rolesafe.tasks.words import SECRETS, tokens

PLACES = ("first", "middle", "last", "any")


def dials() -> st.SearchStrategy[Difficulty]:
    return st.builds(
        Difficulty,
        facts=st.integers(1, 4),
        filler=st.integers(0, 40),
        system_filler=st.integers(0, 40),
        turns=st.integers(1, 3),
        tool=st.one_of(st.none(), st.sampled_from([0.0, 0.5, 1.0])),
        place=st.sampled_from(PLACES),
    )


def of_role(example: Example, role: str) -> list[str]:
    return [m["content"] for m in example.messages if m["role"] == role]


def rules_of(texts: list[str]) -> list[str]:
    """Return the sentences without filler, sorted."""
    sentences = [s.strip() for text in texts for s in re.findall(r"[^.?]+[.?]", text)]
    return sorted(s for s in sentences if not re.match(r"The (happy|small|old|quiet|young|big) ", s))


@settings(max_examples=20, deadline=None)
@given(difficulty=dials(), seed=st.integers(0, 5))
def test_dials_do_not_change_the_rules(difficulty: Difficulty, seed: int) -> None:
    hard = generate("test", 20, seed, difficulty=difficulty)
    plain = generate("test", 20, seed, difficulty=difficulty.facts)
    assert not {e.id for e in hard} & {e.id for e in plain}
    for a, b in zip(hard, plain, strict=True):
        assert (a.reply, a.wanted, a.violation, a.truth, a.contrary) == (
            b.reply,
            b.wanted,
            b.violation,
            b.truth,
            b.contrary,
        )
        assert a.statements == b.statements
        assert rules_of(of_role(a, "system")) == rules_of(of_role(b, "system"))
        assert [m["role"] for m in a.messages].count("system") == 1


@settings(max_examples=20, deadline=None)
@given(difficulty=dials(), seed=st.integers(0, 5))
def test_dials_shape_the_conversation(difficulty: Difficulty, seed: int) -> None:
    plain = generate("test", 20, seed, difficulty=difficulty.facts)
    for example, other in zip(generate("test", 20, seed, difficulty=difficulty), plain, strict=True):
        roles = [m["role"] for m in example.messages]
        assert roles.count("assistant") == difficulty.turns
        (system,) = of_role(example, "system")
        longer = len(system.split()) - len(of_role(other, "system")[0].split())
        assert difficulty.system_filler <= longer <= difficulty.system_filler + 10 * (difficulty.system_filler > 0)
        assert of_role(example, example.target)[-1] == example.request
        assert len(example.request.split()) >= difficulty.filler
        if difficulty.tool is not None and difficulty.tool != 0.5:
            assert example.target == ("tool" if difficulty.tool else "user")
            assert ("tool" in roles) == bool(difficulty.tool)
        where = roles.index("system")
        if difficulty.place == "first":
            assert where == 0
        elif difficulty.place == "last":
            assert where == len(roles) - 1
        elif difficulty.place == "middle":
            assert 0 < where < len(roles) - 1
            assert roles[where + 1] in ("user", "tool")


@settings(max_examples=15, deadline=None)
@given(difficulty=dials())
def test_training_records_have_the_dials(difficulty: Difficulty) -> None:
    known = set(vocabulary())
    plain = list(training_records(40, 3, difficulty=difficulty.facts))
    for hard, easy in zip(training_records(40, 3, difficulty=difficulty), plain, strict=True):
        assert (hard.family, hard.truth, hard.policies) == (easy.family, easy.truth, easy.policies)
        roles = [m["role"] for m in hard.messages]
        assert roles[-1] == "assistant"
        assert hard.messages[-1] == easy.messages[-1]
        assert roles.count("system") == 1
        assert roles.count("assistant") - 1 <= difficulty.turns
        assert {t for m in hard.messages for t in tokens(m["content"])} <= known


def test_training_records_draw_up_to_the_dials() -> None:
    difficulty = Difficulty(filler=60, turns=2, place="any")
    conversations = training_conversations(400, 0, difficulty=difficulty)
    turns = {sum(m["role"] == "assistant" for m in c) - 1 for c in conversations}
    places = {[m["role"] for m in c].index("system") for c in conversations}
    lengths = [
        len(next(m for m in reversed(c[:-1]) if m["role"] != "system")["content"].split()) for c in conversations
    ]
    assert turns == {0, 1, 2}
    assert places >= {0, 1, 2}
    assert min(lengths) < 15 < 60 < max(lengths)


@pytest.mark.parametrize("family", FAMILIES)
def test_tool_injections_are_independent_of_truth(family: str) -> None:
    """Also if the user's order is to be obeyed: a tool's output is not the user's."""
    agrees: dict[str, list[bool]] = {}
    for record in training_records(3000, 0, [family], neutral_share=0.0, difficulty=Difficulty(tool=1.0)):
        assert [m["role"] for m in record.messages] == ["system", "user", "tool", "assistant"]
        free = "guest" in record.messages[0]["content"]
        truth = str(free) if family == "form" else record.truth if record.truth in ("allow", "deny") else "data"
        agrees.setdefault(truth, []).extend(policy == record.truth for policy in record.injected)
    guess = 1 / len(record.policies)
    assert len(agrees) == (1 if family == "data" else 2)
    for hits in agrees.values():
        assert len(hits) > 800
        assert abs(sum(hits) / len(hits) - guess) < 4 * (guess * (1 - guess) / len(hits)) ** 0.5


def test_tool_output_keeps_the_users_word() -> None:
    for example in generate("test", 60, 0, ["form"], difficulty=Difficulty(tool=1.0)):
        (user,) = of_role(example, "user")
        words = [t for t in tokens(user) if t in SECRETS]
        assert words == ([] if example.kind == "protected" else [example.reply])
        assert not [t for t in tokens(of_role(example, "tool")[0]) if t in SECRETS]


def test_with_target_replaces_the_last_message() -> None:
    example = generate("test", 2, 0, ["access"], difficulty=Difficulty(turns=2))[0]
    attacked = example.with_target("changed")
    assert attacked[:-1] == example.messages[:-1]
    assert attacked[-1] == {"role": "user", "content": "changed"}
    last = generate("test", 2, 0, ["access"], difficulty=Difficulty(place="last"))[0]
    assert [m["content"] for m in last.with_target("changed")] == ["changed", last.messages[1]["content"]]


# ----------------------------------------------------------------------------------------------------------- placing


def talk(*roles: str) -> list[dict[str, str]]:
    return [{"role": role, "content": f"{role} {i}"} for i, role in enumerate(roles)]


@pytest.mark.parametrize(
    ("roles", "place", "expected"),
    [
        (("system", "user"), "first", 0),
        (("user", "system"), "first", 0),
        (("system", "user"), "last", 1),
        (("system", "user", "tool"), "middle", 1),
        (("system", "user", "assistant", "user"), "middle", 2),
        (("system", "user", "assistant", "user", "assistant", "user", "tool"), "middle", 2),
    ],
)
def test_placed_moves_the_system_message(roles: tuple[str, ...], place: Any, expected: int) -> None:
    messages = talk(*roles)
    found = placed(messages, place)
    assert [m["role"] for m in found].index("system") == expected
    assert [m for m in found if m["role"] != "system"] == [m for m in messages if m["role"] != "system"]


def test_placed_any_draws_a_place() -> None:
    places = {tuple(m["role"] for m in placed(talk("system", "user"), "any", Random(i))) for i in range(20)}
    assert places == {("system", "user"), ("user", "system")}


def test_placed_bad_messages_raise() -> None:
    with pytest.raises(ValueError, match=r"`messages`: expected one system message, got 0"):
        placed(talk("user"), "last")
    with pytest.raises(ValueError, match=r"`place`: expected two messages .*, got 1"):
        placed(talk("system", "user"), "middle")
    with pytest.raises(ValueError, match=r"`rng`: expected a random generator"):
        placed(talk("system", "user"), "any")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"facts": 0}, r"`facts`: expected 1 to 4 code words, got 0"),
        ({"filler": -1}, r"`filler`: expected a whole number >= 0, got -1"),
        ({"system_filler": 1.5}, r"`system_filler`: expected a whole number >= 0, got 1.5"),
        ({"turns": -2}, r"`turns`: expected a whole number >= 0, got -2"),
        ({"tool": 2.0}, r"`tool`: expected a share in \[0, 1\] or None, got 2.0"),
        ({"place": "top"}, r"`place`: expected one of .*got 'top'"),
        ({"place": "middle"}, r"`place`: expected .* got 'middle'"),
    ],
)
def test_difficulty_bad_dials_raise(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Difficulty(**arguments)


def test_difficulty_label_has_changed_dials() -> None:
    assert Difficulty(facts=3).label == "3"
    assert Difficulty(filler=40, tool=0.5, place="last").label == "1,filler=40,tool=0.5,place=last"
