"""Veto in every way of generating, on plain and patched models: nothing forbidden comes out."""

from __future__ import annotations

import pytest
import torch
from transformers import LogitsProcessorList, TextStreamer

import rolesafe
from rolesafe.court import (
    Closing,
    CourtProcessor,
    ForbiddenPhrases,
    Length,
    NoCopy,
    Opening,
    Repetition,
    generate,
    project,
    veto_mask,
)
from rolesafe.court.rules import Rule
from rolesafe.training.tiny import tiny_llama
from tests.court.conftest import MESSAGES, court_of
from tests.court.naive import breaks
from tests.models import CACHE

COMMON = ("t", "h", "a", "o", "+", "c", ")", "key", "#", "2")
"""Phrases of one character bite at most steps of a random model."""

WAYS = {
    "greedy": {},
    "sampling": {"do_sample": True, "top_k": 0},
    "hot_sampling": {"do_sample": True, "temperature": 3.0, "top_p": 0.9},
    "beam": {"num_beams": 4, "num_return_sequences": 4},
    "beam_sampling": {"num_beams": 3, "num_return_sequences": 2, "do_sample": True},
    "sequences": {"do_sample": True, "num_return_sequences": 3},
    "prompt_lookup": {"prompt_lookup_num_tokens": 4},
    "static": {"cache_implementation": "static"},
    "assisted": {"assisted": True},
    "assisted_sampling": {"assisted": True, "do_sample": True},
    "early_stop_strings": {"stop_strings": ["\n\n"]},
}


@pytest.fixture(scope="module")
def assistant(tokenizer):
    return tiny_llama(len(tokenizer), seed=1, layers=1).eval()


def options_of(way, assistant):
    options = dict(WAYS[way])
    if options.pop("assisted", False):
        options["assistant_model"] = assistant
    return options


@pytest.mark.parametrize("way", WAYS)
def test_generate_never_emits_a_phrase(request, tokenizer, assistant, way):
    """The characters of the free reply are forbidden, so the court bites at every step."""
    model = request.getfixturevalue("plain" if way in ("greedy", "beam_sampling", "assisted") else "patched")
    options = options_of(way, assistant)
    torch.manual_seed(0)
    free = generate(model, tokenizer, MESSAGES, empty(tokenizer), max_new_tokens=16, **options)
    phrases = tuple(
        dict.fromkeys(c for one in free for c in one.text if c.isascii() and c.isprintable() and c not in " 1")
    )
    court = court_of([ForbiddenPhrases(name="common", phrases=phrases[:8])], tokenizer, end_ids=[2])
    torch.manual_seed(0)
    found = generate(model, tokenizer, MESSAGES, court, max_new_tokens=16, **options)
    for one in found:
        assert not breaks(one.text, phrases[:8]), one
        assert one.replaced is None
    assert any(one.vetoes for one in found)
    assert all(veto.article == "common" for one in found for veto in one.vetoes)


def empty(tokenizer):
    return court_of([], tokenizer, end_ids=[2])


def test_greedy_choice_is_best_allowed(plain, tokenizer):
    """Allowed logits keep their bits, forbidden ones are -inf exactly."""
    court = court_of([ForbiddenPhrases(name="x", phrases=COMMON)], tokenizer, end_ids=[2])
    ids = torch.tensor([[10, 11, 12]])
    processor = CourtProcessor(court, ids)
    scores = torch.randn(1, len(tokenizer))
    before = scores.clone()
    out = processor(ids, scores)
    assert torch.equal(scores, before)
    for token, piece in enumerate(court.vocabulary.pieces):
        allowed = token == 2 or (piece is not None and not breaks(piece.decode("utf-8", "replace"), COMMON))
        assert out[0, token] == (before[0, token] if allowed else -torch.inf)
    assert torch.softmax(out, -1)[out == -torch.inf].sum() == 0


def test_batch_of_different_courts(model, tokenizer):
    """Each prompt has its own articles; left padding."""
    courts = [empty(tokenizer), *(court_of([ForbiddenPhrases(name=p, phrases=(p,))], tokenizer) for p in "+c")]
    batch = rolesafe.encode(
        tokenizer,
        [MESSAGES, [*MESSAGES[:1], {"role": "user", "content": "hello"}], MESSAGES],
        add_generation_prompt=True,
    )
    if not hasattr(model, "rolesafe_config"):
        batch.pop("role_ids")
    processor = CourtProcessor(courts, batch["input_ids"])
    out = model.generate(
        **batch, logits_processor=LogitsProcessorList([processor]), max_new_tokens=20, do_sample=True, num_beams=2,
        num_return_sequences=2, pad_token_id=0,
    )  # fmt: skip
    assert out.shape[0] == 6
    for r, row in enumerate(out[:, batch["input_ids"].shape[1] :].tolist()):
        assert courts[r // 2].check(row) is None


def test_phrase_across_continued_message(model, tokenizer):
    """The reply begins in the prompt: its end and the first new token complete a phrase."""
    for start in ("hello wor", "tell m", "the ke", "is t", "a cat o", "code an", "it", "su", "gh", "qu"):
        begun = [*MESSAGES, {"role": "assistant", "content": start}]
        first = generate(model, tokenizer, begun, empty(tokenizer), continue_final_message=True, max_new_tokens=1)[0]
        new = first.text.lstrip()[len(start) :]
        if new.isascii() and new.isprintable() and new.strip():
            break
    else:
        pytest.fail("no beginning with a printable continuation")
    phrase = start[-2:] + new
    article = ForbiddenPhrases(name="x", phrases=(phrase,), spaces="exact", case=False, zero_width=False)
    (second,) = generate(
        model, tokenizer, begun, court_of([article], tokenizer), continue_final_message=True, max_new_tokens=8
    )
    assert first.text.lstrip() == start + new
    assert phrase not in second.text
    assert second.text.lstrip().startswith(start)
    assert second.vetoes[0].position == len(tokenizer(f" {start}").input_ids)


def test_begun_reply_that_breaks_an_article_raises(plain, tokenizer):
    court = court_of([ForbiddenPhrases(name="x", phrases=("hello",))], tokenizer)
    begun = [*MESSAGES, {"role": "assistant", "content": "Hello you"}]
    with pytest.raises(ValueError, match=r"`input_ids\[0\]`: expected the beginning of a reply .* breaks 'x'"):
        generate(plain, tokenizer, begun, court, continue_final_message=True, max_new_tokens=2)


def test_streamed_text_is_the_reply(plain, tokenizer, capsys):
    court = court_of([ForbiddenPhrases(name="x", phrases=COMMON)], tokenizer, end_ids=[2])
    streamer = TextStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
    (reply,) = generate(plain, tokenizer, MESSAGES, court, max_new_tokens=12, streamer=streamer)
    shown = capsys.readouterr().out
    assert shown.strip() == reply.text.strip()
    assert not breaks(shown, COMMON)


def test_shape_articles_hold(model, tokenizer):
    court = court_of(
        [
            Opening(name="o", texts=("hello", "tell me")),
            Closing(name="c", texts=(" sat.", "code")),
            Length(name="l", min_tokens=4, max_tokens=12, max_bytes=60),
            Repetition(name="r", run=2, times=1),
        ],
        tokenizer,
    )
    for options in ({}, {"do_sample": True, "temperature": 2.0}, {"num_beams": 3, "num_return_sequences": 2}):
        torch.manual_seed(1)
        for reply in generate(model, tokenizer, MESSAGES, court, max_new_tokens=20, **options):
            assert reply.text.startswith(("hello", "tell me"))
            assert reply.text.endswith((" sat.", "code"))
            assert len(reply.text.encode()) <= 60
            assert reply.replaced is None


def test_no_copy_forbids_runs_of_a_message(plain, tokenizer):
    messages = [*MESSAGES, {"role": "tool", "content": "tell me the secret code hello world"}]
    article = NoCopy(name="n", roles=("tool",), longest=2)
    court = court_of([article], tokenizer, messages=messages)
    ids = tokenizer(messages[-1]["content"]).input_ids
    assert court.read(ids[:2]).broken is None
    assert court.read(ids[:3]).broken == "n"
    assert court.violation("I TELL  me The secret code now") == "n"
    letters = [i for c in "the secret code" for i in tokenizer(c).input_ids]
    assert court.read(letters).broken == "n", "another split into tokens"


# ----------------------------------------------------------------------------------------------------- fail closed


class Failing(Rule):
    """Rule whose engine fails after two tokens."""

    article = "engine"
    start = 0

    def step(self, state, token):
        return state + 1

    def allowed(self, state):
        from rolesafe.court.language import EngineError

        if state == 2:
            raise EngineError("boom")
        return None


def test_engine_error_ends_with_the_refusal(plain, tokenizer):
    court = empty(tokenizer)
    court.rules = (Failing(),)
    (reply,) = generate(plain, tokenizer, MESSAGES, court, max_new_tokens=10)
    assert reply.text.endswith("1")
    (veto,) = [v for v in reply.vetoes if v.kind == "ended"]
    assert (veto.position, veto.article) == (2, "engine")
    assert "boom" in veto.reason


def test_nothing_allowed_ends_with_the_refusal(plain, tokenizer):
    """A closing is required, and the bytes end before it. The court's text does not count."""
    court = court_of([Length(name="l", max_bytes=6), Closing(name="c", texts=("zzzz",))], tokenizer)
    (reply,) = generate(plain, tokenizer, MESSAGES, court, max_new_tokens=30)
    assert reply.vetoes[-1].kind == "ended"
    assert reply.vetoes[-1].article == "c"
    assert reply.vetoes[-1].reason == "nothing allowed"
    assert reply.text.endswith("1")


@pytest.mark.parametrize("bad", [float("nan"), -float("inf")])
def test_bad_logits_end_the_reply(plain, tokenizer, bad):
    court = empty(tokenizer)
    ids = torch.tensor([[10, 11]])
    processor = CourtProcessor(court, ids)
    out = processor(ids, torch.full((1, len(tokenizer)), bad))
    (token,) = torch.nonzero(out[0] > -torch.inf).flatten().tolist()
    assert token == court.refusal_ids[0]
    after = processor(torch.cat([ids, torch.tensor([[token]])], 1), torch.randn(1, len(tokenizer)))
    assert torch.nonzero(after[0] > -torch.inf).flatten().tolist() == [court.end_ids[0]]


def test_special_tokens_and_rows_beyond_the_vocabulary_are_vetoed(tokenizer):
    court = empty(tokenizer)
    ids = torch.tensor([[10, 11]])
    out = CourtProcessor(court, ids)(ids, torch.zeros(1, len(tokenizer) + 7))
    forbidden = set(torch.nonzero(out[0] == -torch.inf).flatten().tolist())
    assert forbidden == {*range(8), *range(len(tokenizer), len(tokenizer) + 7)} - {2}


def test_beams_of_probability_zero_are_replaced(plain, tokenizer):
    """One text is allowed and four beams are wanted: `generate` returns impossible ones, the court does not."""
    court = court_of(
        [Opening(name="o", texts=("hello world",)), Length(name="l", max_bytes=11), Repetition(name="r", run=1)],
        tokenizer,
    )
    found = generate(plain, tokenizer, MESSAGES, court, max_new_tokens=12, num_beams=4, num_return_sequences=4)
    assert {one.text for one in found} <= {"hello world", "1"}
    assert "hello world" in {one.text for one in found}


# ------------------------------------------------------------------------------------------------------- processor


def test_processor_of_other_prompts_raises(tokenizer):
    processor = CourtProcessor(empty(tokenizer), torch.tensor([[10, 11]]))
    with pytest.raises(ValueError, match="begins with prompt 0 of this processor"):
        processor(torch.tensor([[10, 12]]), torch.zeros(1, len(tokenizer)))
    with pytest.raises(ValueError, match="Make a new processor for each call"):
        processor(torch.tensor([[10]]), torch.zeros(1, len(tokenizer)))


def test_processor_of_other_vocabulary_raises(tokenizer):
    ids = torch.tensor([[10, 11]])
    with pytest.raises(ValueError, match="Compile the court with the tokenizer of the model"):
        CourtProcessor(empty(tokenizer), ids)(ids, torch.zeros(1, 50))


def test_state_follows_from_ids_in_any_order(tokenizer):
    """Reordered beams, shorter and longer rows give the masks of a fresh processor."""
    court = court_of([ForbiddenPhrases(name="x", phrases=("aaa", "ab", "tell me"))], tokenizer)
    prompt = torch.tensor([[10, 11]])
    letters = {c: tokenizer(c).input_ids[0] for c in "abtel"}
    rows = [[letters[c] for c in text] for text in ("aa", "tl", "at", "ea", "aat", "", "t")]
    processor = CourtProcessor(court, prompt)
    generator = torch.Generator().manual_seed(0)
    for _ in range(60):
        length = int(torch.randint(0, 4, (), generator=generator))
        some = [r for r in rows if len(r) == length] or [[]]
        picked = [some[int(torch.randint(0, len(some), (), generator=generator))] for _ in range(3)]
        ids = torch.tensor([[10, 11, *row] for row in picked])
        scores = torch.randn(3, len(tokenizer), generator=generator)
        fresh = torch.cat([CourtProcessor(court, prompt)(ids[r : r + 1], scores[r : r + 1]) for r in range(3)])
        assert torch.equal(processor(ids, scores), fresh)


# ------------------------------------------------------------------------------------------------------- projection


def test_projection_passes_no_gradient(tokenizer):
    court = court_of([ForbiddenPhrases(name="x", phrases=COMMON)], tokenizer, end_ids=[2])
    ids = torch.tensor([tokenizer("is nd").input_ids])
    forbidden = veto_mask(court, ids, torch.ones_like(ids, dtype=torch.bool), len(tokenizer))
    assert 0 < forbidden.sum() < forbidden.numel()
    logits = torch.randn(*ids.shape, len(tokenizer), requires_grad=True)
    out = project(logits, forbidden)
    assert not out.requires_grad
    assert torch.equal(out, logits.detach().masked_fill(forbidden, -torch.inf))
    out = project(logits, forbidden, gradient="constant_mask")
    out.log_softmax(-1).gather(-1, ids[..., None]).sum().backward()
    assert torch.all(logits.grad[forbidden] == 0)
    assert torch.any(logits.grad[~forbidden] != 0)


def test_frozen_prompt_under_a_court(tokenizer):
    model = rolesafe.patch(tiny_llama(len(tokenizer), seed=0, layers=1), rolesafe.RoleConfig.preset("channel")).eval()
    frozen = rolesafe.freeze(model, tokenizer, MESSAGES[:1])
    court = court_of([ForbiddenPhrases(name="x", phrases=COMMON)], tokenizer, end_ids=[2])
    (found,) = generate(model, tokenizer, MESSAGES, court, max_new_tokens=8, **{CACHE: frozen.cache()})
    (expected,) = generate(model, tokenizer, MESSAGES, court, max_new_tokens=8)
    assert found == expected
    assert found.vetoes


def test_processor_refuses_the_last_tokens_alone(tokenizer):
    """Continuous batching passes one token of each row, from which no state follows."""
    processor = CourtProcessor(empty(tokenizer), torch.tensor([[10, 11]]))
    with pytest.raises(ValueError, match=r"`input_ids`: expected whole rows .* Continuous batching"):
        processor(torch.tensor([11]), torch.zeros(1, len(tokenizer)))
