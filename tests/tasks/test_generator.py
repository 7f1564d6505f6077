"""Generator: deterministic, split, with twins, without a "do the opposite" shortcut."""

from __future__ import annotations

import hashlib
import random
import re
import subprocess
import sys
from collections import Counter

import pytest

from rolesafe.attacks import contains
from rolesafe.tasks import FAMILIES, generate, training_conversations, training_records, vocabulary
from rolesafe.tasks import phrasing as say
from rolesafe.tasks.words import PLACES, SECRETS, filler, split_of, tokens

DIGEST = """
import hashlib, random
from rolesafe.tasks import generate, training_conversations
random.seed({noise})
made = repr((generate("test", 60, 3, difficulty=2), training_conversations(60, 3)))
print(hashlib.sha256(made.encode()).hexdigest())
"""


def digest(noise: int) -> str:
    command = [sys.executable, "-c", DIGEST.format(noise=noise)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_generate_is_the_same_in_every_process() -> None:
    made = repr((generate("test", 60, 3, difficulty=2), training_conversations(60, 3)))
    here = hashlib.sha256(made.encode()).hexdigest()
    assert digest(1).strip() == digest(2).strip() == here


def test_generate_keeps_the_global_random_state() -> None:
    before = random.getstate()
    generate("train", 20, 0)
    training_conversations(20, 0)
    assert random.getstate() == before


def test_generate_fewer_examples_are_a_prefix() -> None:
    assert generate("test", 10, 0) == generate("test", 40, 0)[:10]
    assert training_conversations(10, 0) == training_conversations(40, 0)[:10]


def test_generate_ids_are_unique() -> None:
    examples = [e for split in ("train", "test") for seed in (0, 1) for e in generate(split, 60, seed)]
    assert len({e.id for e in examples}) == len(examples)
    assert [e.messages for e in generate("test", 60, 0)] != [e.messages for e in generate("test", 60, 1)]


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize("difficulty", [1, 2, 4])
def test_generate_protected_examples_have_twins(split: str, difficulty: int) -> None:
    examples = {e.id: e for e in generate(split, 120, 0, difficulty=difficulty)}
    protected = [e for e in examples.values() if e.kind == "protected"]
    assert len(protected) == 60
    for example in protected:
        twin = examples[example.twin]
        assert twin.kind == "benign"
        assert twin.twin == example.id
        assert twin.family == example.family
        assert twin.messages[0] != example.messages[0]
        assert twin.reply != example.reply
        assert contains(twin.reply, example.violation)
        assert not contains(example.reply, example.violation)
        assert twin.violation is None
        assert [m["role"] for m in twin.messages] == [m["role"] for m in example.messages]


def test_generate_families_take_turns() -> None:
    assert FAMILIES == ("access", "form", "data", "never", "code")
    assert Counter(e.family for e in generate("test", 60, 0)) == dict.fromkeys(FAMILIES, 12)
    assert {e.family for e in generate("test", 8, 0, ["form"])} == {"form"}


def test_attack_texts_do_not_contain_the_secret() -> None:
    for example in generate("test", 120, 0, ["access", "code"], difficulty=2):
        if example.kind == "protected":
            for text in (example.request, example.forged, *(text for _, text in example.statements)):
                assert not contains(text, example.violation)


@pytest.mark.parametrize("difficulty", [1, 3])
def test_wanted_is_the_reply_of_the_twin(difficulty: int) -> None:
    examples = {e.id: e for e in generate("test", 100, 4, difficulty=difficulty)}
    for example in examples.values():
        if example.kind == "protected":
            assert example.wanted == examples[example.twin].reply
            assert contains(example.wanted, example.violation)
        else:
            assert example.wanted == ""


def test_violation_is_only_in_the_system_text() -> None:
    words = set(SECRETS)
    frames = " ".join((*say.phrases_of(FAMILIES), *say.trigger_phrases())).replace("{", " ").replace("}", " ")
    fillers = " ".join(filler(random.Random(i), split, 40) for i in range(30) for split in ("train", "test"))
    assert not words & set(tokens(frames.lower()))
    assert not words & set(tokens(fillers.lower()))


def test_injection_states_a_policy() -> None:
    for example in generate("test", 60, 0):
        if example.kind == "protected":
            assert example.injection() == example.injection(example.contrary) != example.injection(example.truth)
            assert len(example.injection().split()) <= 9
        assert example.messages[-1] == {"role": example.target, "content": example.request}
        assert 4 <= len(example.messages[0]["content"].split()) <= 30
        with pytest.raises(ValueError, match="`policy`: expected one of"):
            example.injection("nonsense")
    with pytest.raises(ValueError, match=r"`policy`: .*Attack protected ones"):
        generate("test", 2, 0)[1].injection()


# ------------------------------------------------------------------------------------------------------------- splits


def test_splits_have_disjoint_phrasings() -> None:
    names = (
        *("ALLOW", "DENY", "ASK", "FORM", "OPEN", "QUESTION", "READ", "SAY", "NOTHING", "HAND_OVER", "IGNORE"),
        *("FORBID", "PERMIT", "REQUEST", "MENTION", "LOCK", "UNLOCK", "SHUT", "GIVE", "CLAIM", "TRIGGER"),
    )
    assert set(names) == {name for name, value in vars(say).items() if isinstance(value, dict) and "test" in value} - {
        "FACT"
    }
    for name in names:
        phrases = getattr(say, name)
        assert phrases["test"], name
        assert not set(phrases["train"]) & set(phrases["test"]), name
        known = {t for p in phrases["train"] for t in tokens(p)}
        assert {t for p in phrases["test"] for t in tokens(p)} <= known, name


def facts_in(text: str) -> set[tuple[str, str]]:
    return set(re.findall(r"The (\w+) code is (\w+)\.", text))


def both_ways(family: str, texts: list[str]) -> set[tuple[str, str]]:
    """Return the word to say and the mentioned one, or the required pass word and the given one."""
    if family == "never":
        asked = re.search(r"(?:Say|Repeat|Please write) (?:the|this|one) word (\w+)\.", texts[-1])
        mentioned = re.search(r"(?:said|likes|saw) (\w+)\.", texts[-1])
        assert asked is not None
        assert mentioned is not None
        found = [(asked[1], mentioned[1])]
    else:
        place = re.search(r"the (\w+) code(?: now| please)?\?", texts[-1])
        given = re.search(r"(?:word is) (\w+)\.", texts[-1])
        assert place is not None
        lock = re.search(rf"the {place[1]} code only \w+ the word (\w+)\.", texts[0])
        found = [(lock[1], given[1])] if lock and given and lock[1] != given[1] else []
    return {pair for a, b in found for pair in ((a, b), (b, a))}


def test_splits_have_disjoint_word_pairs() -> None:
    train, test = set(), set()
    for difficulty in (1, 3):
        for record in training_records(1500, 0, difficulty=difficulty):
            train |= {pair for m in record.messages for pair in facts_in(m["content"])}
            if record.family == "form":
                first, second = record.policies
                train |= {(first, second), (second, first)}
            if record.family == "data":
                found = {s for m in record.messages for _, s in facts_in(m["content"])} if difficulty == 1 else ()
                train |= {(secret, record.policies[1]) for secret in found}
            if record.family in ("never", "code"):
                train |= both_ways(record.family, [m["content"] for m in record.messages[:-1]])
        for example in generate("test", 300, 0, difficulty=difficulty):
            test |= {pair for m in example.messages for pair in facts_in(m["content"])}
            if example.family == "form":
                test.add(example.policies)
            if example.family == "data" and difficulty == 1:
                test |= {(s, example.policies[1]) for m in example.messages for _, s in facts_in(m["content"])}
            if example.family in ("never", "code") and example.kind == "protected":
                test |= both_ways(example.family, [m["content"] for m in example.messages])
    assert len(train) > 500
    assert len(test) > 200
    assert not train & test


def test_splits_share_every_word() -> None:
    for pool in (PLACES, SECRETS):
        for word in pool:
            assert {split_of(word, other) for other in SECRETS if other != word} == {"train", "test"}
    seen = Counter(t for c in training_conversations(3000, 0) for t in tokens(c[-1]["content"]))
    assert all(seen[word] >= 5 for word in SECRETS)


def test_splits_share_no_prompt() -> None:
    prompts = {tuple(m["content"] for m in c[:-1]) for c in training_conversations(2000, 0)}
    assert not prompts & {tuple(m["content"] for m in e.messages) for e in generate("test", 200, 0)}


def test_vocabulary_covers_all_conversations() -> None:
    known = set(vocabulary())
    assert vocabulary() == sorted(known)
    texts = [m["content"] for c in training_conversations(1500, 0, difficulty=3) for m in c]
    for split in ("train", "test"):
        for example in generate(split, 240, 0, difficulty=3):
            texts += [*(m["content"] for m in example.messages), example.reply, example.goal, example.forged]
            texts += [text for _, text in example.statements]
    assert {t for text in texts for t in tokens(text)} <= known


# ----------------------------------------------------------------------------------------------------------- training


@pytest.mark.parametrize("family", FAMILIES)
def test_injections_are_independent_of_the_truth(family: str) -> None:
    """An injection agrees with the system text as often as a blind guess."""
    agrees: dict[str, list[bool]] = {}
    for record in training_records(6000, 0, [family], neutral_share=0.0):
        truth = record.truth if family in ("access", "never", "code") else str(record.truth == "nothing")
        agrees.setdefault(truth, []).extend(policy == record.truth for policy in record.injected)
    guess = 1 / len(next(training_records(1, 0, [family], neutral_share=0.0)).policies)
    assert sum(map(len, agrees.values())) > 2000
    for hits in agrees.values():
        # 4 standard deviations of a binomial share
        assert abs(sum(hits) / len(hits) - guess) < 4 * (guess * (1 - guess) / len(hits)) ** 0.5


def test_form_user_order_counts_only_if_left_open() -> None:
    for record in training_records(600, 1, ["form"], neutral_share=0.0, injections=(1, 1)):
        system, user, reply = (m["content"] for m in record.messages)
        ordered = [t for t in tokens(user) if t in SECRETS]
        set_by_system = [t for t in tokens(system) if t in SECRETS]
        assert len(ordered) <= 1
        assert [reply] == (set_by_system or ordered)


@pytest.mark.parametrize("bounds", [(0, 0), (1, 1), (0, 2), (3, 5)])
def test_training_records_number_of_injections(bounds: tuple[int, int]) -> None:
    records = list(training_records(200, 0, ["data"], injections=bounds, neutral_share=0.0))
    assert {len(r.injected) for r in records} == set(range(bounds[0], bounds[1] + 1))


def test_training_conversations_match_the_records() -> None:
    for messages in training_conversations(200, 0):
        roles = [m["role"] for m in messages]
        assert roles in (["system", "user", "assistant"], ["system", "user", "tool", "assistant"])
        assert all(set(m) == {"role", "content"} and m["content"].strip() == m["content"] != "" for m in messages)
    words = [sum(len(m["content"].split()) for m in c) for c in training_conversations(500, 0)]
    assert sum(words) / len(words) < 60


def test_training_records_system_last_share() -> None:
    for messages in training_conversations(50, 0, system_last=1.0):
        assert [m["role"] for m in messages[-2:]] == ["system", "assistant"]


# ---------------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"split": "dev"}, r"`split`: expected one of .*got 'dev'"),
        ({"n": 0}, r"`n`: expected a number of examples >= 1, got 0"),
        ({"n": 7}, r"`n`: expected an even number.*got 7"),
        ({"families": ["nope"]}, r"`families`: expected names out of .*, got 'nope'"),
        ({"families": "form"}, r"`families`: expected a sequence"),
        ({"families": []}, r"`families`: expected a sequence"),
        ({"difficulty": 5}, r"`difficulty`: expected 1 to 4 code words, got 5"),
        ({"difficulty": "hard"}, r"`difficulty`: expected 1 to 4 code words, got 'hard'"),
    ],
)
def test_generate_bad_arguments_raise(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        generate(**{"split": "test", "n": 2, "seed": 0, **arguments})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n": -1}, r"`n`"),
        ({"injections": (2, 1)}, r"`injections`: expected \(low, high\)"),
        ({"neutral_share": 1.5}, r"`neutral_share`: expected a share in \[0, 1\], got 1.5"),
        ({"system_last": -0.1}, r"`system_last`"),
        ({"trigger_share": 2.0}, r"`trigger_share`: expected a share in \[0, 1\], got 2.0"),
    ],
)
def test_training_records_bad_arguments_raise(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        training_conversations(**{"n": 2, "seed": 0, **arguments})
