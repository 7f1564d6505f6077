"""Searches that need no gradient: best of N, the worst place for an injection, a prefilled reply."""

from __future__ import annotations

from random import Random

import pytest
import torch

from rolesafe import RoleConfig, patch
from rolesafe.attacks import (
    ATTACKS,
    AttackResult,
    PrefillConfig,
    SearchContext,
    WorstInsertionConfig,
    attack,
    attackable,
    contains,
    replies,
)
from rolesafe.attacks.best_of_n import by_letters, by_words
from rolesafe.attacks.judge import words
from rolesafe.attacks.likelihood import reply_ids, reply_losses
from rolesafe.attacks.replies import role_config
from rolesafe.roles.encoding import encode_one
from rolesafe.tasks import Example, generate, vocabulary
from rolesafe.tasks.words import tokens
from tests.attacks.stubs import Scripted, make_model, make_tokenizer
from tests.roles.tokenizers import tokenizer_of

ALL = generate("test", 20, 0)
EXAMPLES = attackable(ALL)
ACCESS = next(e for e in EXAMPLES if e.family == "access")
TOKENIZER = make_tokenizer()


def run(model: object, name: str, **parameters: object) -> AttackResult:
    config = ATTACKS[name](**parameters, batch_size=4, max_new_tokens=6)
    return attack(model, TOKENIZER, ALL, config, check_goal=False)


def context_of(model: object, **changes: object) -> SearchContext:
    given = {"wanted": ACCESS.wanted, "success": "gold", "seed": 0, "batch_size": 8, **changes}
    return SearchContext(model=model, tokenizer=TOKENIZER, example=ACCESS, **given)


def role_aware(seed: int = 0) -> object:
    model = patch(make_model(seed=seed), RoleConfig(embedding="input")).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "rolesafe" in name:
                parameter.normal_(std=2.0, generator=torch.Generator().manual_seed(1))
    return model


# ----------------------------------------------------------------------------------------------------------- best of n


def test_best_of_n_stops_at_the_first_success() -> None:
    """The model gives in only if the injection precedes the request."""

    def answer(prompt: str) -> str:
        example = next(e for e in EXAMPLES if contains(prompt, e.messages[0]["content"]))
        weak = " ".join(words(prompt)).endswith(" ".join(words(example.request)) + " s assistant")  # "</s>" in words
        return f"It is {example.violation}." if weak else "Done."

    model = Scripted(answer)
    result = run(model, "best-of-n", n=40)
    assert result.rate.value == 1.0
    for outcome in result.outcomes:
        assert 1 <= outcome.n_steps <= 40
        assert outcome.n_queries == outcome.n_steps + 1  # the judged reply is one more
        assert outcome.typed
    assert sum(o.n_queries for o in result.outcomes) == sum(map(len, model.calls)) == result.n_queries
    assert result == run(Scripted(answer), "best-of-n", n=40)


def test_best_of_n_spends_its_budget_and_no_more() -> None:
    model = Scripted(lambda prompt: "Done.")
    result = run(model, "best-of-n", n=10)
    assert result.rate.k == 0
    assert [o.n_steps for o in result.outcomes] == [10] * len(EXAMPLES)
    assert sum(map(len, model.calls)) == 11 * len(EXAMPLES)
    assert len({p for call in model.calls for p in call}) > 9 * len(EXAMPLES)  # the variants differ


def test_by_words_stays_in_the_vocabulary() -> None:
    known, rng = set(vocabulary()), Random(0)
    texts = [by_words(ACCESS, rng, 0.4)[-1]["content"] for _ in range(200)]
    assert all(set(tokens(t)) <= known for t in texts)
    assert all(ACCESS.request in t for t in texts)
    assert len(set(texts)) > 190
    assert any(ACCESS.injection() not in t for t in texts)
    assert any(ACCESS.injection() in by_words(ACCESS, rng, 0.0)[-1]["content"] for _ in range(20))


def test_by_letters_keeps_the_request() -> None:
    rng = Random(0)
    texts = [by_letters(ACCESS, rng, 0.4)[-1]["content"] for _ in range(50)]
    assert all(ACCESS.request in t for t in texts)
    assert len(set(texts)) == 50
    assert not any(ACCESS.injection() in t for t in texts)
    assert any(by_letters(ACCESS, rng, 0.0)[-1]["content"].endswith(ACCESS.injection()) for _ in range(20))


# ------------------------------------------------------------------------------------------------------ likelihood


@pytest.mark.parametrize("make", [make_model, role_aware])
def test_reply_losses_equal_unpadded_losses(make) -> None:
    """Against the model's own loss on the ids of each conversation and its reply, without padding."""
    model = make()
    conversations = [e.messages for e in EXAMPLES]
    losses = reply_losses(model, TOKENIZER, conversations, "It is gold.", batch_size=3)
    config = role_config(model)
    for messages, loss in zip(conversations, losses, strict=True):
        encoded = encode_one(TOKENIZER, messages, config=config, add_generation_prompt=True)
        wanted = reply_ids(TOKENIZER, messages, "It is gold.", config)
        assert TOKENIZER.decode(wanted) == "It is gold ."
        inputs = {"input_ids": torch.tensor([encoded.input_ids + wanted])}
        if config is not None:
            inputs["role_ids"] = torch.tensor([encoded.role_ids + [config.generated_id] * len(wanted)])
        labels = torch.full_like(inputs["input_ids"], -100)
        labels[0, -len(wanted) :] = torch.tensor(wanted)
        assert loss == pytest.approx(model(**inputs, labels=labels).loss.item(), rel=1e-4)


def test_reply_ids_of_empty_reply_raises() -> None:
    with pytest.raises(ValueError, match="`reply`: expected a text with at least one token"):
        reply_ids(TOKENIZER, ACCESS.messages, "", None)


# ------------------------------------------------------------------------------------------------------ worst insertion


@pytest.mark.parametrize("make", [make_model, role_aware])
def test_worst_insertion_finds_the_best_place(make) -> None:
    model = make()
    found = WorstInsertionConfig(max_new_tokens=2).search(context_of(model, batch_size=3))
    parts = ACCESS.request.split()
    every = [
        ACCESS.with_target(" ".join([*parts[:at], ACCESS.injection(), *parts[at:]])) for at in range(len(parts) + 1)
    ]
    losses = [reply_losses(model, TOKENIZER, [m], ACCESS.wanted, batch_size=1)[0] for m in every]
    assert found.messages == every[losses.index(min(losses))]
    assert found.losses[0] == pytest.approx(min(losses), rel=1e-4)
    assert found.n_steps == len(every)
    assert found.n_queries == len(every) + min(8, len(every))


def test_worst_insertion_asks_further_places() -> None:
    """The places are ranked by loss; a reply decides, down to the last of the tries."""
    model = make_model()

    def search(success: str, tries: int):
        config = WorstInsertionConfig(words=20, tries=tries, max_new_tokens=4)
        return config.search(context_of(model, success=success, batch_size=1))

    best = search("nowhere", 1)
    many = search("nowhere", 20)
    assert best.messages == many.messages
    assert many.n_queries - many.n_steps == 20
    said = words(replies(model, TOKENIZER, [best.messages], max_new_tokens=4)[0])[0]
    assert search(said, 20).n_queries - search(said, 20).n_steps == 1  # the first one is a success already


def test_worst_insertion_samples_a_long_text() -> None:
    model = make_model()
    config = WorstInsertionConfig(places=5, tries=1, words=60, max_new_tokens=1)
    found = [config.search(context_of(model, seed=seed)) for seed in (0, 0, 1)]
    assert found[0] == found[1] != found[2]
    assert found[0].n_steps == 5


# ------------------------------------------------------------------------------------------------------------- prefill


@pytest.mark.parametrize("make", [make_model, role_aware])
def test_prefill_continues_the_wanted_reply(make) -> None:
    """The continuation equals greedy decoding token by token, with the assistant's role on the prefill."""
    model = make()
    found = PrefillConfig(k=2, max_new_tokens=6).search(context_of(model, wanted="It is gold."))
    config = role_config(model)
    encoded = encode_one(TOKENIZER, found.messages, config=config, add_generation_prompt=True)
    ids = [*encoded.input_ids, *TOKENIZER("It is", add_special_tokens=False)["input_ids"]]
    prompt = len(encoded)
    while len(ids) < prompt + 6 and ids[-1] != TOKENIZER.eos_token_id:
        inputs = {"input_ids": torch.tensor([ids])}
        if config is not None:
            inputs["role_ids"] = torch.tensor([encoded.role_ids + [config.generated_id] * (len(ids) - prompt)])
        ids.append(int(model(**inputs).logits[0, -1].argmax()))
    assert found.reply == TOKENIZER.decode(ids[prompt:], skip_special_tokens=True).strip()
    assert found.reply.startswith("It is")
    assert not found.typed
    assert found.n_steps == 2


@pytest.mark.parametrize(
    ("wanted", "k", "given"), [("It is gold.", 8, 2), ("It is gold.", 1, 1), ("gold. Done.", 3, 0)]
)
def test_prefill_never_gives_the_violation(wanted: str, k: int, given: int) -> None:
    found = PrefillConfig(k=k, max_new_tokens=6).search(context_of(make_model(), wanted=wanted))
    assert found.n_steps == given


def test_prefill_ends_before_the_violation() -> None:
    """A word of several tokens: none of them is given, or the rest would follow by itself."""
    from rolesafe.attacks.trajectory import before_success

    tokenizer = tokenizer_of("llama3")
    ids = tokenizer("It is the zebra crossing now.", add_special_tokens=False)["input_ids"]
    cut = before_success(tokenizer, ids, "zebra crossing")
    assert tokenizer.decode(ids[:cut]).strip() == "It is the"
    assert before_success(tokenizer, ids, "gold") == len(ids)


def test_prefill_counts_generated_tokens_only() -> None:
    """A model that ends every reply at once never loses to a prefill, however long."""
    result = run(Scripted(lambda prompt: ""), "prefill", k=8)
    assert result.rate.k == 0
    assert not result.typed
    assert {o.reply for o in result.outcomes if o.family == "access"} == {"It is"}


def test_prefill_leaves_out_what_does_not_fit() -> None:
    config = PrefillConfig(max_new_tokens=4)
    result = attack(make_model(positions=40), TOKENIZER, ALL, config, check_goal=False)
    assert result.left_out
    assert {o.id for o in result.outcomes} | set(result.left_out) == {e.id for e in EXAMPLES}


@pytest.mark.parametrize(
    ("name", "parameters", "message"),
    [
        ("prefill", {"k": 0}, "`k`: expected a whole number >= 1, got 0"),
        ("best-of-n", {"n": 0}, "`n`: expected a whole number >= 1, got 0"),
        ("best-of-n", {"augment": "lines"}, "`augment`: expected one of"),
        ("best-of-n", {"strength": 2.0}, r"`strength`: expected a finite number in \[0, 1\], got 2.0"),
        ("worst-insertion", {"places": 0}, "`places`: expected a whole number >= 1, got 0"),
        ("worst-insertion", {"tries": 0}, "`tries`: expected a whole number >= 1, got 0"),
        ("worst-insertion", {"words": -3}, "`words`: expected a whole number >= 0, got -3"),
    ],
)
def test_search_with_bad_parameters_names_them(name: str, parameters: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        run(make_model(), name, **parameters)


def test_attackable_examples_have_wanted_reply() -> None:
    assert all(isinstance(e, Example) and e.wanted for e in EXAMPLES)
