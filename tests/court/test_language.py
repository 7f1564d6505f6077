"""Regular expressions, JSON schemas and grammars, by llguidance."""

from __future__ import annotations

import json
import re

import pytest
import torch

from rolesafe.court import AllowedLanguage, Court, ForbiddenPhrases, generate
from rolesafe.court.language import EngineError
from tests.court.conftest import MESSAGES, court_of

pytest.importorskip("llguidance", reason='llguidance is not installed: pip install "rolesafe[court]"')

SCHEMA = json.dumps(
    {
        "type": "object",
        "properties": {"key": {"enum": ["mat", "cat"]}, "on": {"type": "boolean"}},
        "required": ["key", "on"],
        "additionalProperties": False,
        "x-guidance": {"whitespace_flexible": False},
    }
)
GRAMMAR = 'start: "the " animal (" and " animal)*\nanimal: "cat" | "dog"'


@pytest.mark.parametrize("options", [{}, {"do_sample": True}, {"num_beams": 3}, {"prompt_lookup_num_tokens": 3}])
def test_replies_match_a_regex(model, tokenizer, options):
    court = court_of([AllowedLanguage(name="l", source=r"code [0-9]{3}(, [a-c]{2}){2}")], tokenizer)
    torch.manual_seed(0)
    for reply in generate(model, tokenizer, MESSAGES, court, max_new_tokens=40, **options):
        assert re.fullmatch(r"code [0-9]{3}(, [a-c]{2}){2}", reply.text), reply


def test_replies_match_a_schema(model, tokenizer):
    court = court_of([AllowedLanguage(name="l", form="json_schema", source=SCHEMA)], tokenizer)
    torch.manual_seed(0)
    (reply,) = generate(model, tokenizer, MESSAGES, court, max_new_tokens=120, do_sample=True)
    value = json.loads(reply.text)
    assert set(value) == {"key", "on"}
    assert value["key"] in ("mat", "cat")


def test_replies_match_a_grammar_and_avoid_phrases(plain, tokenizer):
    articles = [AllowedLanguage(name="l", form="grammar", source=GRAMMAR), ForbiddenPhrases(name="x", phrases=("dog",))]
    court = court_of(articles, tokenizer)
    for seed in range(3):
        torch.manual_seed(seed)
        (reply,) = generate(plain, tokenizer, MESSAGES, court, max_new_tokens=24, do_sample=True)
        assert re.fullmatch(r"the cat( and cat)*( an?d?)?( and )?( and ca?)?", reply.text), reply


def test_grammar_that_phrases_make_impossible_ends_the_reply(plain, tokenizer):
    """A contradiction is an error of the compilation; behind more text than is searched it ends the reply."""
    phrases = ForbiddenPhrases(name="x", phrases=("dog",))
    with pytest.raises(ValueError, match="leaves no first token"):
        court_of([AllowedLanguage(name="l", source="the dog"), phrases], tokenizer)
    for source in ("q{20}the dog", "q{400}(the|a) dog"):
        with pytest.raises(ValueError, match="`articles`: expected articles that allow some"):
            court_of([AllowedLanguage(name="l", source=source), phrases], tokenizer)
    court = court_of([AllowedLanguage(name="l", source="(the cat|q{20}the dog)"), phrases], tokenizer)
    (q,) = tokenizer("q").input_ids
    vetoed = court.mask(court.start()).forbidden
    assert any(q in ids for ids in vetoed), "its way ends at the phrase, 24 characters on"
    articles = [AllowedLanguage(name="l", source="[a-z ]{6}the dog"), phrases]  # too many ways to search
    (reply,) = generate(plain, tokenizer, MESSAGES, court_of(articles, tokenizer), max_new_tokens=40)
    assert reply.vetoes[-1].kind == "ended"
    assert "dog" not in reply.text
    assert reply.text.endswith("1")


def test_mask_equals_brute_force(tokenizer):
    """Each token of each mask keeps a beginning of the language, and no other token does."""
    court = court_of([AllowedLanguage(name="l", source="(ab|ba){2}")], tokenizer)
    words = {"abab", "abba", "baab", "baba"}
    rule = court.rules[0]
    todo = [("", rule.start)]
    seen = 0
    while todo:
        text, state = todo.pop()
        mask = rule.allowed(state)
        assert rule.may_end(state) == (text in words)
        for token, piece in enumerate(court.vocabulary.pieces):
            after = text.encode() + (piece or b"\xff")
            assert bool(mask[token]) == any(word.encode().startswith(after) for word in words), (text, token)
            if mask[token]:
                todo.append((after.decode(), rule.step(state, token)))
        seen += 1
    assert seen > 10


@pytest.mark.parametrize(
    "options, match",
    [
        ({"source": "("}, "`source`: expected a valid regex"),
        ({"form": "grammar", "source": "start: nothing"}, "`source`: expected a valid grammar"),
        ({"form": "json_schema", "source": '{"type": "no"}'}, "`source`: expected a valid json_schema"),
        ({"source": "(a{1,3000}b{1,3000}){1,3000}", "max_fuel": 10}, "`max_fuel`"),
        ({"form": "grammar", "source": "start: " + '"a" "b" ' * 200, "max_grammar": 20}, "`max_grammar`"),
        ({"form": "json_schema", "source": "false"}, "allows none|expected a valid"),
        ({"form": "grammar", "source": "start: /a/ & /b/"}, "allows none|expected a valid"),
    ],
)
def test_bad_source_raises_at_compile_time(tokenizer, options, match):
    with pytest.raises(ValueError, match=match):
        court_of([AllowedLanguage(name="l", **options)], tokenizer)


def test_engine_error_is_not_taken_for_a_mask(tokenizer):
    """In its error state a matcher allows the end token: the court must not."""
    court = court_of([AllowedLanguage(name="l", source="abc")], tokenizer)
    rule = court.rules[0]
    broken = rule.start.deep_copy()
    broken.consume_token(tokenizer("zz").input_ids[0])
    assert broken.is_error()
    for call in (rule.allowed, rule.may_end):
        with pytest.raises(EngineError):
            call(broken)
    reply = court.start()
    reply.states = (broken,)
    assert court.mask(reply).forced == court.refusal_ids[0]
    assert "engine error" in reply.veto.reason


def test_compile_without_end_token_raises(tokenizer):
    with pytest.raises(ValueError, match="`end_ids`: expected the id of at least one end token"):
        Court.compile([], tokenizer, end_ids=[])
