"""Isolated verification: readers see privileged messages and the reply only; retries, refusal, record."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rolesafe.court import (
    ClassifierReader,
    ForbiddenPhrases,
    ModelReader,
    ProgramReader,
    generate_verified,
    isolated,
    judge,
)
from tests.court.conftest import MESSAGES, court_of

UNTRUSTED = st.lists(
    st.tuples(st.sampled_from(["user", "assistant", "tool"]), st.text(max_size=40)).map(
        lambda pair: {"role": pair[0], "content": pair[1]}
    ),
    max_size=4,
)


GOOD = [{"role": "system", "content": "be good"}]


@pytest.fixture(scope="module")
def judged(patched, tokenizer):
    """Readers, their verdicts without untrusted text, and what the first one has seen."""
    seen = []
    readers = [
        ProgramReader("program", lambda privileged, reply: seen.append((privileged, reply)) is None),
        ClassifierReader("classifier", lambda privileged, reply: len(repr(privileged)) / 1e6),
        ModelReader("model", patched, tokenizer, margin=-math.inf),
    ]
    return readers, judge(readers, GOOD, "hello"), seen


@given(UNTRUSTED)
@settings(max_examples=4, deadline=None)
def test_verdicts_are_equal_whatever_the_untrusted_text(judged, texts):
    """Bit for bit, for a model, a classifier and a program."""
    readers, expected, seen = judged
    found = judge(readers, [*GOOD, *texts], "hello")
    assert found == expected
    assert found[2].score.hex() == expected[2].score.hex()
    assert all(one == seen[0] for one in seen)


def test_model_reader_depends_on_reply_and_privileged_text(patched, tokenizer):
    reader = ModelReader("model", patched, tokenizer)
    scores = {
        judge([reader], [{"role": "system", "content": system}], reply)[0].score
        for system in ("be good", "tell me")
        for reply in ("hello", "the secret code")
    }
    assert len(scores) == 4


def test_isolated_keeps_privileged_messages_only():
    messages = [*MESSAGES, {"role": "developer", "content": "d"}, {"role": "tool", "content": "system: x"}]
    assert isolated(messages) == ({"role": "system", "content": "be good"}, {"role": "developer", "content": "d"})


@pytest.mark.parametrize("score", [float("nan"), float("inf"), None, "0"])
def test_bad_scores_refuse(score):
    verdict = judge([ClassifierReader("c", lambda privileged, reply: score)], MESSAGES, "x")[0]
    assert not verdict.allowed


def test_error_of_a_reader_refuses():
    def fails(privileged, reply):
        raise RuntimeError("boom")

    (verdict,) = judge([ProgramReader("p", fails), ProgramReader("q", lambda *_: True)], MESSAGES, "x")
    assert not verdict.allowed
    assert "boom" in verdict.reason


def test_only_true_is_a_release():
    assert not judge([ProgramReader("p", lambda *_: 1)], MESSAGES, "x")[0].allowed


def test_refused_replies_are_drawn_again_and_recorded(plain, tokenizer):
    court = court_of([], tokenizer)
    calls = []

    def third(privileged, reply):
        calls.append(reply)
        return len(calls) == 3

    out = generate_verified(plain, tokenizer, MESSAGES, court, [ProgramReader("p", third)], retries=3, max_new_tokens=6)
    assert not out.refused
    assert [p.allowed for p in out.record] == [False, False, True]
    assert out.text == calls[2] == out.record[2].text
    assert len(set(calls)) == 3, "retries are drawn, not repeated"


def test_no_allowed_reply_gives_the_refusal(plain, tokenizer):
    released = []
    out = generate_verified(
        plain, tokenizer, MESSAGES, court_of([], tokenizer), [ProgramReader("p", lambda *_: False)],
        retries=2, max_new_tokens=4, release=released.append,
    )  # fmt: skip
    assert (out.text, out.refused, len(out.record)) == ("1", True, 3)
    assert released == ["1"]


def test_sentences_are_released_one_by_one(plain, tokenizer, monkeypatch):
    """A refused sentence is never released; the reply goes on from the last released one."""
    import rolesafe.court.replies as module
    from rolesafe.court import CourtReply

    texts = iter(["One. Two bad. Three.", "One. Two good. Bad.", "One. Two good. Three."])
    begun = []

    def fake(model, tokenizer, messages, court, *, continue_final_message=False, **options):
        begun.append(messages[-1]["content"] if continue_final_message else None)
        return [CourtReply(next(texts))]

    monkeypatch.setattr(module, "generate", fake)
    released = []
    reader = ProgramReader("p", lambda privileged, reply: "bad" not in reply.lower())
    out = generate_verified(
        plain, tokenizer, MESSAGES, court_of([], tokenizer), [reader], unit="sentence", release=released.append
    )
    assert out.text == "One. Two good. Three."
    assert "".join(released) == out.text
    assert begun == [None, "One. ", "One. Two good. "]
    assert [p.allowed for p in out.record] == [True, False, True, False, True]


def test_refusal_after_sentences_keeps_the_articles(plain, tokenizer, monkeypatch):
    import rolesafe.court.replies as module
    from rolesafe.court import CourtReply

    monkeypatch.setattr(module, "generate", lambda *_, **__: [CourtReply("Good. Bad.")])
    reader = ProgramReader("p", lambda privileged, reply: "Bad" not in reply)
    court = court_of([ForbiddenPhrases(name="x", phrases=("good. 1",))], tokenizer)
    out = generate_verified(plain, tokenizer, MESSAGES, court, [reader], unit="sentence", retries=0)
    assert out.refused
    assert out.text == "Good. "


@pytest.mark.parametrize(
    "options, match",
    [({"readers": []}, "`readers`"), ({"retries": -1}, "`retries`"), ({"unit": "word"}, "`unit`")],
)
def test_bad_arguments_raise(plain, tokenizer, options, match):
    given_ = {"readers": [ProgramReader("p", lambda *_: True)], **options}
    with pytest.raises(ValueError, match=match):
        generate_verified(plain, tokenizer, MESSAGES, court_of([], tokenizer), given_.pop("readers"), **given_)
