"""SEP-style probes, and harmless text with the words of attacks."""

from __future__ import annotations

from typing import Any

import pytest

from rolesafe.attacks import attackable, contains
from rolesafe.tasks import (
    FAMILIES,
    Difficulty,
    generate,
    probes,
    training_conversations,
    trigger_examples,
    vocabulary,
)
from rolesafe.tasks import phrasing as say
from rolesafe.tasks.words import tokens

DIALS = Difficulty(facts=3, filler=20, turns=1, place="any")


def text(messages: Any, role: str) -> str:
    return " ".join(m["content"] for m in messages if m["role"] == role)


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize("difficulty", [1, 3, DIALS])
def test_probes_are_in_data_and_in_instruction(split: Any, difficulty: Any) -> None:
    examples = {e.id: e for e in probes(split, 60, 0, difficulty=difficulty)}
    assert len(examples) == 60
    for probe in examples.values():
        if probe.kind == "benign":
            continue
        twin = examples[probe.twin]
        order, witness = probe.injection(), probe.violation
        assert order in text(probe.messages, probe.target)
        assert order not in text(probe.messages, "system")
        assert order in text(twin.messages, "system")
        assert order not in text(twin.messages, twin.target)
        assert contains(order, witness)
        assert probe.request == twin.request == text(twin.messages[-2:], twin.target)
        assert not contains(probe.request, witness)
        assert not contains(probe.reply, witness)
        assert contains(twin.reply, witness)
        assert probe.wanted == twin.reply
        assert text(probe.messages, "system") + order != text(twin.messages, "system")
        both = (text(m.messages, "system").replace(order, "").split() for m in (probe, twin))
        assert next(both) == next(both), "the task is the same"


def test_probes_can_be_attacked() -> None:
    found = probes("test", 20, 0)
    assert len(attackable(found)) == 10
    assert probes("test", 10, 0) == found[:10]
    assert {e.target for e in found} == {"user", "tool"}


def test_probes_have_different_places() -> None:
    places = set()
    for probe in probes("test", 80, 0, difficulty=4):
        if probe.kind == "protected":
            before, _, after = text(probe.messages, probe.target).partition(probe.injection())
            places.add((bool(before), bool(after)))
            assert " ".join((before + after).split()) == probe.request
    assert places == {(False, True), (True, False), (True, True)}


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize("difficulty", [1, DIALS])
def test_trigger_examples_keep_the_right_reply(split: Any, difficulty: Any) -> None:
    twins = {e.id: e for e in generate(split, 100, 0, difficulty=difficulty)}
    found = trigger_examples(split, 50, 0, difficulty=difficulty)
    assert {e.family for e in found} == set(FAMILIES)
    assert len({e.id for e in found} | set(twins)) == 150
    for example in found:
        plain = twins[example.twin]
        assert (example.kind, example.violation, example.reply) == ("benign", None, plain.reply)
        assert example.request.endswith(plain.request)
        extra = example.request.removesuffix(plain.request)
        assert any(phrase in extra for phrase in say.TRIGGER[split])
        assert {"ignore", "follow", "forget", "never", "system", "override"} & set(tokens(extra.lower()))
        assert example.with_target(plain.request) == plain.messages


def test_training_records_with_triggers() -> None:
    def with_trigger(share: float) -> int:
        made = training_conversations(300, 0, trigger_share=share)
        return sum(any(phrase in m["content"] for m in c for phrase in say.TRIGGER["train"]) for c in made)

    assert with_trigger(0.0) == 0
    assert 50 < with_trigger(0.25) < 100
    assert with_trigger(1.0) == 300
    known = set(vocabulary())
    assert {
        t for c in training_conversations(300, 0, trigger_share=1.0) for m in c for t in tokens(m["content"])
    } <= known


def test_vocabulary_covers_probes_and_triggers() -> None:
    known = set(vocabulary())
    for split in ("train", "test"):
        examples = [*probes(split, 40, 0), *trigger_examples(split, 60, 0), *generate(split, 40, 0, difficulty=DIALS)]
        assert {t for e in examples for m in e.messages for t in tokens(m["content"])} <= known


@pytest.mark.parametrize(
    ("make", "arguments", "message"),
    [
        (probes, ("dev", 2, 0), r"`split`: expected one of"),
        (probes, ("test", 3, 0), r"`n`: expected an even number"),
        (probes, ("test", 0, 0), r"`n`: expected a number of examples >= 1"),
        (trigger_examples, ("test", 0, 0), r"`n`: expected a number of examples >= 1"),
        (trigger_examples, ("test", 2, 0, ["nope"]), r"`families`: expected .*, got 'nope'"),
    ],
)
def test_probes_bad_arguments_raise(make: Any, arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(*arguments)
