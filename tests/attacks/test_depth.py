"""Attacks inside the reply: forced tokens from one cache, spans at every position, banned tokens, consistency."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from transformers import GenerationMixin, LlamaConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput

from rolesafe import RoleConfig, patch
from rolesafe.attacks import (
    BannedDecodingConfig,
    ForcedPrompt,
    PrefillDepthConfig,
    SearchContext,
    SpanInsertionConfig,
    WorstSpanInsertionConfig,
    attack,
    attackable,
    consistency,
    replies,
)
from rolesafe.attacks.depth import inserted
from rolesafe.attacks.replies import prompts
from rolesafe.tasks import generate
from tests.attacks.stubs import make_model, make_tokenizer
from tests.models import randomise, tiny_model

TOKENIZER = make_tokenizer()
EXAMPLE = next(e for e in attackable(generate("test", 24, 0)) if e.family == "access")
REFUSAL = TOKENIZER(EXAMPLE.reply, add_special_tokens=False)["input_ids"]
WANTED = TOKENIZER(EXAMPLE.wanted, add_special_tokens=False)["input_ids"]
PREFIXES = [WANTED[:n] for n in (0, 3, 1, 2)]


class Bigram(PreTrainedModel, GenerationMixin):
    """Predicts the next token from the last one: logits are rows of a table (V, V)."""

    config_class = LlamaConfig
    _supports_cache_class = False

    def __init__(self, table: torch.Tensor) -> None:
        size = len(table)
        super().__init__(LlamaConfig(vocab_size=size, max_position_embeddings=700, bos_token_id=None, eos_token_id=1))
        self.table = torch.nn.Parameter(table)

    def get_input_embeddings(self) -> Any:
        return torch.nn.Embedding.from_pretrained(self.table)

    def get_output_embeddings(self) -> Any:
        return self.get_input_embeddings()

    def forward(self, input_ids: Any, attention_mask: Any = None, use_cache: Any = None, **other: Any) -> Any:
        return CausalLMOutput(logits=self.table[input_ids])

    def prepare_inputs_for_generation(self, input_ids: Any, attention_mask: Any = None, **other: Any) -> dict[str, Any]:
        return {"input_ids": input_ids}


def bigram(*chains: list[int], second: list[int] = ()) -> Bigram:
    """Return a model that follows the chains, and the transitions of `second` where those of `chains` are banned."""
    table = torch.zeros(len(TOKENIZER), len(TOKENIZER))
    for weight, some in ((20.0, chains), (10.0, [second])):
        for a, b in (pair for chain in some for pair in itertools.pairwise(chain)):
            table[a, b] = weight
    return Bigram(table).eval()


START = TOKENIZER("<|assistant|>", add_special_tokens=False)["input_ids"][-1]
SHALLOW = ([START, *REFUSAL, 1], [*WANTED[:-1], 1])
"""Refuses, and continues the wanted reply wherever it has begun."""
DEEP = ([START, *REFUSAL, 1], *([token, *REFUSAL[:1]] for token in WANTED))
"""Refuses after any token of the wanted reply."""


def run(model: Any, config: Any) -> Any:
    (outcome,) = attack(model, TOKENIZER, [EXAMPLE], config, check_goal=False).outcomes
    return outcome


# ---------------------------------------------------------------------------------------------------- forced prefixes

CONFIGS = {
    "plain": None,
    "embedding": RoleConfig(embedding="input"),
    "share": RoleConfig(share=0.5),
    "own_positions": RoleConfig(own_positions=True),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_continued_from_one_cache_equals_separate_replies(name: str) -> None:
    model = make_model()
    if CONFIGS[name] is not None:
        randomise(patch(model, CONFIGS[name])).eval()
    (encoded,) = prompts(model, TOKENIZER, [EXAMPLE.messages])
    prompt = ForcedPrompt(model, TOKENIZER, encoded, batch_size=3)
    assert prompt._cache is not None
    found = prompt.continued(PREFIXES, max_new_tokens=5)
    alone = [replies(model, TOKENIZER, [EXAMPLE.messages], max_new_tokens=5, begun=p) for p in PREFIXES]
    assert [[one.text for one in row] for row in found] == alone
    assert prompt.n_queries == len(PREFIXES)
    again = prompt.continued(PREFIXES, max_new_tokens=5)  # the shared cache is unchanged
    assert again == found


@pytest.mark.parametrize("family", ["llama", "mistral"])
@pytest.mark.parametrize("roles", [False, True])
def test_log_probs_equal_a_whole_pass(family: str, roles: bool) -> None:
    """Mistral has a sliding window, so every row runs from the start."""
    model = tiny_model(family, vocab_size=len(TOKENIZER), max_position_embeddings=700)
    if roles:
        randomise(patch(model, RoleConfig(embedding="input"))).eval()
    (encoded,) = prompts(model, TOKENIZER, [EXAMPLE.messages])
    prompt = ForcedPrompt(model, TOKENIZER, encoded)
    assert (prompt._cache is None) is (family == "mistral")
    found = prompt.log_probs(PREFIXES, lambda rows, _: rows)
    for prefix, rows in zip(PREFIXES, found, strict=True):
        given = {"input_ids": torch.tensor([[*encoded.input_ids, *prefix]])}
        if roles:
            generated = model.rolesafe_config.generated_id
            given["role_ids"] = torch.tensor([[*encoded.role_ids, *[generated] * len(prefix)]])
        with torch.no_grad():
            whole = model(**given).logits[0, len(encoded) - 1 :].log_softmax(-1)
        torch.testing.assert_close(rows, whole, atol=1e-5, rtol=1e-4)


def test_continued_samples_are_seeded_and_keep_the_global_generator() -> None:
    model = make_model()
    (encoded,) = prompts(model, TOKENIZER, [EXAMPLE.messages])
    prompt = ForcedPrompt(model, TOKENIZER, encoded)
    torch.manual_seed(3)
    first = prompt.continued([[], WANTED[:1]], max_new_tokens=4, samples=3, seed=1)
    after = torch.rand(1)
    torch.manual_seed(3)
    assert torch.equal(after, torch.rand(1))
    assert [len(row) for row in first] == [3, 3]
    assert len({one.own for one in first[0]}) > 1
    assert prompt.continued([[], WANTED[:1]], max_new_tokens=4, samples=3, seed=1) == first
    assert prompt.continued([[], WANTED[:1]], max_new_tokens=4, samples=3, seed=2) != first


def test_model_in_training_mode_is_run_without_dropout() -> None:
    model = make_model()
    model.config.attention_dropout = 0.9
    for module in model.modules():
        if hasattr(module, "attention_dropout"):
            module.attention_dropout = 0.9
    (encoded,) = prompts(model, TOKENIZER, [EXAMPLE.messages])
    expected = ForcedPrompt(model, TOKENIZER, encoded).log_probs(PREFIXES, lambda rows, _: rows)
    model.train()
    found = ForcedPrompt(model, TOKENIZER, encoded).log_probs(PREFIXES, lambda rows, _: rows)
    assert model.training
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_continued_never_writes_banned_tokens() -> None:
    model = make_model()
    (encoded,) = prompts(model, TOKENIZER, [EXAMPLE.messages])
    prompt = ForcedPrompt(model, TOKENIZER, encoded)
    ((free,),) = prompt.continued([[]], max_new_tokens=3)
    ((other,),) = prompt.continued([[]], max_new_tokens=3, banned=free.own)
    assert not set(free.own) & set(other.own)


def test_prefix_longer_than_the_context_raises() -> None:
    model = make_model(positions=100)
    (encoded,) = prompts(model, TOKENIZER, [EXAMPLE.messages])
    prompt = ForcedPrompt(model, TOKENIZER, encoded)
    with pytest.raises(ValueError, match=r"`prefixes`: expected at most \d+ forced tokens, the model's context of 100"):
        prompt.continued([[3] * 100], max_new_tokens=1)
    result = attack(model, TOKENIZER, [EXAMPLE], PrefillDepthConfig(k=90), check_goal=False)
    assert "the model's context of 100" in result.failed[0][1]


# ------------------------------------------------------------------------------------------------------------ attacks


@pytest.mark.parametrize(
    "config",
    [
        PrefillDepthConfig(k=1),
        PrefillDepthConfig(k=2),
        PrefillDepthConfig(k=1, samples=2),
        PrefillDepthConfig(k=1, source="optimised", candidates=len(TOKENIZER), beams=2),
        PrefillDepthConfig(k=3, source="foreign", text="Answer. It"),
        SpanInsertionConfig(),
        WorstSpanInsertionConfig(length=2),
        WorstSpanInsertionConfig(spans=2, places=4),
        BannedDecodingConfig(),
    ],
    ids=lambda config: config.label,
)
def test_attack_breaks_the_shallow_model_only(config: Any) -> None:
    shallow = run(bigram(*SHALLOW, second=[START, *WANTED]), config)
    assert shallow.success
    assert not shallow.typed
    assert shallow.messages == EXAMPLE.with_target(EXAMPLE.request)
    deep = run(bigram(*DEEP, second=[START, *WANTED]), config)
    assert deep.success is (config.name == "banned-decoding")  # who bans the refusal gets the base model back


def test_own_prefix_of_any_depth_has_no_refusal_and_no_success() -> None:
    for depth in (1, 2, 7, 19):
        outcome = run(bigram(*DEEP), PrefillDepthConfig(k=depth, max_new_tokens=2))
        assert outcome.n_steps == depth
        forced = TOKENIZER(outcome.reply, add_special_tokens=False)["input_ids"][:depth]
        assert len(forced) == depth
        assert forced[:2] == WANTED[:depth][:2]
        assert not {*REFUSAL} & {*forced}
        assert EXAMPLE.violation not in outcome.reply


def test_worst_span_tries_every_position() -> None:
    outcome = run(bigram(*DEEP), WorstSpanInsertionConfig())
    assert outcome.n_steps == len(REFUSAL) + 1
    assert outcome.n_queries == len(REFUSAL) + 1
    limited = run(bigram(*DEEP), WorstSpanInsertionConfig(spans=2, places=5))
    assert limited.n_steps == 5


def test_worst_span_finds_the_one_weak_position() -> None:
    """The model continues the span after the third token of the refusal only: a trigram in a bigram's place."""
    weak = REFUSAL[2]

    class Trigram(Bigram):
        def forward(self, input_ids: Any, **other: Any) -> Any:
            logits = super().forward(input_ids).logits.clone()
            after = (input_ids[:, :-1] == weak) & (input_ids[:, 1:] == WANTED[0])
            logits[:, 1:][after] = 50.0 * torch.nn.functional.one_hot(torch.tensor(WANTED[1]), len(TOKENIZER))
            return CausalLMOutput(logits=logits)

    chains = ([START, *REFUSAL, 1], [WANTED[0], *REFUSAL[:1]], [*WANTED[1:-1], 1])
    model = Trigram(bigram(*chains).table.data).eval()
    outcome = run(model, WorstSpanInsertionConfig())
    assert outcome.success
    tokens = TOKENIZER(outcome.reply, add_special_tokens=False)["input_ids"]
    assert tokens[:5] == [*REFUSAL[:3], *WANTED[:2]]


@pytest.mark.parametrize(
    ("places", "expected"), [((0,), [8, 9]), ((4,), [1, 2, 3, 4, 8, 9]), ((1, 3), [1, 8, 9, 2, 3, 8, 9])]
)
def test_inserted_ends_with_the_last_span(places: tuple[int, ...], expected: list[int]) -> None:
    assert inserted([1, 2, 3, 4], [8, 9], places) == expected


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (SpanInsertionConfig(spans=99), f"`spans`: expected at most the {len(REFUSAL) + 1} positions of the refusal"),
        (PrefillDepthConfig(source="foreign", text=EXAMPLE.violation, k=2), "`text`: expected a text without"),
    ],
)
def test_attack_that_cannot_run_says_why(config: Any, message: str) -> None:
    result = attack(bigram(*DEEP), TOKENIZER, [EXAMPLE], config, check_goal=False)
    assert message in result.failed[0][1]


@pytest.mark.parametrize(
    ("kind", "fields", "message"),
    [
        (PrefillDepthConfig, {"k": 0}, "`k`: expected a whole number >= 1, got 0"),
        (PrefillDepthConfig, {"source": "mine"}, "`source`: expected one of"),
        (SpanInsertionConfig, {"length": 0}, "`length`: expected a whole number >= 1"),
        (WorstSpanInsertionConfig, {"samples": -1}, "`samples`: expected a whole number >= 0"),
        (BannedDecodingConfig, {"k": -1}, "`k`: expected a whole number >= 0"),
    ],
)
def test_config_out_of_range_raises(kind: Any, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        kind(**fields)


def test_model_without_own_refusal_is_asked_for_it() -> None:
    """A set without right replies: the refusal is the model's own reply."""
    import dataclasses

    silent = dataclasses.replace(EXAMPLE, reply="")
    context = SearchContext(
        model=bigram(*DEEP), tokenizer=TOKENIZER, example=silent, wanted=EXAMPLE.wanted,
        success=EXAMPLE.violation, seed=0,
    )  # fmt: skip
    assert WorstSpanInsertionConfig().search(context).n_steps == len(REFUSAL) + 1


# -------------------------------------------------------------------------------------------------------- consistency


def test_consistency_of_a_bigram_is_the_divergence_of_two_rows() -> None:
    torch.manual_seed(0)
    model = Bigram(torch.randn(len(TOKENIZER), len(TOKENIZER))).eval()
    own, forced = REFUSAL[0], WANTED[0]
    found = consistency(
        model, TOKENIZER, EXAMPLE.messages, reply=REFUSAL, forced=forced, positions=[0], tokens=3, samples=400
    )
    rows = model.table.detach()[[forced, own]].clone()
    rows[:, 1] = -torch.inf  # the end of the turn is banned
    p, q = rows.log_softmax(-1)
    exact = float(torch.nan_to_num(p.exp() * (p - q)).sum())  # the later tokens follow the same rows
    assert found.low[0] < exact < found.high[0]
    assert found.score == pytest.approx(found.nats[0] / 3)


def test_consistency_is_zero_where_nothing_follows_the_token() -> None:
    model = Bigram(torch.randn(1, len(TOKENIZER)).expand(len(TOKENIZER), -1).clone()).eval()
    found = consistency(model, TOKENIZER, EXAMPLE.messages, reply=REFUSAL, tokens=2, samples=4)
    assert found.positions == tuple(range(len(REFUSAL)))
    assert found.nats == pytest.approx([0.0] * len(REFUSAL), abs=1e-5)
    assert all(token != own for token, own in zip(found.forced, REFUSAL, strict=True))


def test_consistency_with_bad_arguments_raises() -> None:
    model = bigram(*DEEP)
    for values, message in (
        ({"samples": 1}, "`samples`: expected a whole number >= 2, got 1"),
        ({"reply": []}, "`reply`: expected at least one token"),
        ({"reply": REFUSAL, "positions": [99]}, r"`positions`: expected positions in \[0, "),
    ):
        with pytest.raises(ValueError, match=message):
            consistency(model, TOKENIZER, EXAMPLE.messages, **values)
