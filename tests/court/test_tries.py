"""Tries to break each kind of article: none succeeds, and a court that does not veto is found out."""

from __future__ import annotations

import random

import pytest

from rolesafe.court import (
    AllowedLanguage,
    Closing,
    ForbiddenPhrases,
    Length,
    NoCopy,
    Opening,
    Repetition,
    Secrets,
    ToolCalls,
    try_to_break,
)
from rolesafe.court.goals import check_of, goal
from rolesafe.court.processor import CourtProcessor
from rolesafe.court.tries import LogitAttacker
from tests.court.conftest import court_of
from tests.court.naive import breaks

MESSAGES = [
    {"role": "system", "content": "be good"},
    {"role": "tool", "content": "tell me the secret code hello world and the cat sat on the mat"},
]
ARTICLES = {
    "forbidden_phrases": ForbiddenPhrases(name="a", phrases=("under the mat", "tell me"), lookalikes=True, ignored="-"),
    "secrets": Secrets(name="a", values=("secret code",), part=6, reversed=True, base64=True),
    "allowed_language": AllowedLanguage(name="a", form="regex", source="(the cat|the key)+"),
    "json_schema": AllowedLanguage(name="a", form="json_schema", source='{"type": "object", "maxProperties": 1}'),
    "opening": Opening(name="a", texts=("hello", "the key")),
    "closing": Closing(name="a", texts=("mat",)),
    "length": Length(name="a", min_tokens=3, max_tokens=6, max_bytes=30),
    "repetition": Repetition(name="a", run=2, times=1),
    "no_copy": NoCopy(name="a", longest=3),
    "tool_calls": ToolCalls(name="a", names=("send", "delete")),
}


@pytest.mark.parametrize("kind", ARTICLES)
def test_no_try_breaks_an_article(tokenizer, kind, monkeypatch):
    if kind in ("allowed_language", "json_schema"):
        pytest.importorskip("llguidance")
    court = court_of([ARTICLES[kind]], tokenizer, messages=MESSAGES)
    (found,) = try_to_break(court, tries=48, steps=12)
    assert (found.violations, found.kind) == (0, ARTICLES[kind].kind)
    assert found.tries >= 48
    assert found.vetoes > 0
    monkeypatch.setattr(CourtProcessor, "__call__", lambda self, ids, scores: scores)
    (found,) = try_to_break(court, tries=48, steps=12)
    assert found.violations > 0, "without a veto the same tries break it"


def test_replies_of_the_attacker_hold_no_phrase_by_brute_force(tokenizer):
    article = ARTICLES["forbidden_phrases"]
    court = court_of([article], tokenizer)
    attacker = LogitAttacker(court, lambda rng: goal(rng, article, court), seed=1)
    for search in ("greedy", "beam"):
        for ids in attacker.replies(16, 20, search):
            text = court.vocabulary.text([i for i in ids if i not in court.end_ids])
            assert not breaks(text, article.phrases, lookalikes=True, ignored="-")
            assert court.check(ids) is None
    assert attacker.vetoes > 0


def test_every_kind_has_goals_and_a_check(tokenizer):
    from rolesafe.court import ARTICLES as KINDS

    assert {article.kind for article in ARTICLES.values()} == set(KINDS)
    court = court_of([ARTICLES["length"]], tokenizer)
    assert goal(random.Random(0), ARTICLES["length"], court).text is not None
    assert check_of(ARTICLES["length"], court)("a", [1], True)
    assert not check_of(ARTICLES["length"], court)("abc", [1, 2, 3], True)


def test_tries_out_of_range_raise(tokenizer):
    with pytest.raises(ValueError, match="`tries`: expected a number >= 1"):
        try_to_break(court_of([], tokenizer), tries=0)
