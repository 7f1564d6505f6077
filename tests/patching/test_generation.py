"""`generate` of patched models: every decoding method and cache equals full forward passes."""

from __future__ import annotations

import itertools
import re

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel, StaticCache

import rolesafe
from rolesafe import RoleConfig
from rolesafe.patching.caches import output_cache
from tests.models import (
    CACHE,
    NAMED,
    base_model,
    cached_logits,
    logits,
    new_config,
    plain,
    random_batch,
    randomise,
    role_model,
    tiny_model,
    with_cache,
)

FAMILIES = ["llama", "gemma3_text", "gpt2", "mistral", "gpt_oss"]
"""Full attention; sliding and full layers; learned positions; sliding layers alone; sinks."""

families = pytest.mark.parametrize("family", FAMILIES)
WITHOUT_CACHE: dict[str, Tensor] = {}
FULL = RoleConfig.preset("channel", share=0.3)
NEW = 8
GREEDY: dict[str, object] = {"max_new_tokens": NEW, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}


def prompt(seed: int = 0, batch: int = 2, length: int = 11, padding: int = 3) -> dict[str, Tensor]:
    return random_batch(seed, batch, length, padding)


def positions(mask: Tensor) -> Tensor:
    return (mask.cumsum(1) - 1).clamp(min=0)


def one_by_one(model: PreTrainedModel, batch: dict[str, Tensor], new: int = NEW, role: int = 3) -> Tensor:
    """Decode greedily by full forward passes without cache; new tokens have `role`."""
    ids, mask, roles = batch["input_ids"], batch["attention_mask"], batch["role_ids"]
    one = torch.ones(len(ids), 1, dtype=torch.long)
    with torch.no_grad():
        for _ in range(new):
            output = model(ids, attention_mask=mask, role_ids=roles, position_ids=positions(mask), use_cache=False)
            ids = torch.cat([ids, output.logits[:, -1].argmax(-1, keepdim=True)], 1)
            mask = torch.cat([mask, one], 1)
            roles = torch.cat([roles, role * one], 1)
    return ids


def assistant(family: str, patched: bool) -> PreTrainedModel:
    """Return another model of the family."""
    model = tiny_model(family, seed=5)
    model.generation_config.num_assistant_tokens = 3
    return randomise(rolesafe.patch(model, RoleConfig()), seed=3) if patched else model


# half of all combinations: every family with both caches and all chunks, and every cache with all chunks
PREFILLS = [
    (family, cache, chunk)
    for (i, family), (j, cache), (k, chunk) in itertools.product(
        enumerate(NAMED), enumerate(("dynamic", "static")), enumerate((None, 3, 10))
    )
    if (i + j + k) % 2 == 0
]


@pytest.mark.parametrize("family, cache, chunk", PREFILLS)
def test_greedy(family: str, cache: str, chunk: int | None) -> None:
    model, batch = role_model(family, FULL), prompt()
    options = {} if chunk is None else {"prefill_chunk_size": chunk}
    got = model.generate(**batch, **GREEDY, **options, cache_implementation=cache)
    if family not in WITHOUT_CACHE:  # the same for every cache and chunk
        WITHOUT_CACHE[family] = one_by_one(model, batch)
    assert torch.equal(got, WITHOUT_CACHE[family])


@families
@pytest.mark.parametrize("cache", ["dynamic", "static"])
def test_sampling(family: str, cache: str) -> None:
    model, batch = role_model(family, FULL), prompt()
    options = {**GREEDY, "do_sample": True, "top_k": 5}
    torch.manual_seed(0)
    expected = model.generate(**batch, **options, use_cache=False)
    torch.manual_seed(0)
    assert torch.equal(model.generate(**batch, **options, cache_implementation=cache), expected)


@families
@pytest.mark.parametrize("cache", ["dynamic", "static"])
@pytest.mark.parametrize("options", [{"num_beams": 3}, {"num_beams": 4, "num_return_sequences": 2}])
def test_beam_search(family: str, cache: str, options: dict[str, int]) -> None:
    model, batch = role_model(family, FULL), prompt()
    expected = model.generate(**batch, **GREEDY, **options, use_cache=False)
    got = model.generate(**batch, **GREEDY, **options, cache_implementation=cache)
    assert got.shape[0] == 2 * options.get("num_return_sequences", 1)
    assert torch.equal(got, expected)


@families
@pytest.mark.parametrize("padding", [0, 3])
@pytest.mark.parametrize("patched", [True, False], ids=["patched", "plain"])
def test_assisted_decoding(family: str, patched: bool, padding: int) -> None:
    """With a patched or a plain assistant, the text is that of the main model."""
    model, batch = role_model(family, FULL), prompt(batch=1, padding=padding)
    helper = assistant(family, patched)
    got = model.generate(**batch, **GREEDY, assistant_model=helper)
    assert torch.equal(got, one_by_one(model, batch))


SHARING = ["gemma3n_text", "gemma4_text", "gemma4_unified_text"]
"""Families where layers can share keys."""


def sharing_model(family: str, config: RoleConfig | None = None) -> PreTrainedModel:
    """Return a model of four layers, of which the last two have no keys of their own."""
    kinds = ["sliding_attention", "full_attention"] * 2
    model = tiny_model(
        family, config=new_config(family, num_hidden_layers=4, num_kv_shared_layers=2, layer_types=kinds)
    )
    assert model.config.num_kv_shared_layers == 2
    return model if config is None else randomise(rolesafe.patch(model, config))


@pytest.mark.parametrize("family", SHARING)
def test_layers_sharing_keys_share_roles(family: str) -> None:
    batch = random_batch()
    with torch.no_grad():
        base = sharing_model(family)
        resting = rolesafe.patch(sharing_model(family), RoleConfig())
        assert torch.equal(logits(resting, batch), logits(base, plain(batch)))
        model = sharing_model(family, FULL)
        batch["position_ids"] = positions(batch["attention_mask"])
        torch.testing.assert_close(cached_logits(model, batch), logits(model, batch), rtol=0, atol=2e-5)


@pytest.mark.parametrize("family", SHARING)
@pytest.mark.parametrize("cache", ["dynamic", "static"])
@pytest.mark.parametrize("padding", [0, 3])
def test_generation_with_shared_keys(family: str, cache: str, padding: int) -> None:
    """Gemma 4 runs its last layers for the last token of a prompt only."""
    model, batch = sharing_model(family, FULL), prompt(padding=padding)
    assert torch.equal(model.generate(**batch, **GREEDY, cache_implementation=cache), one_by_one(model, batch))


@families
@pytest.mark.parametrize("how", ["by name", "a cache"])
@pytest.mark.parametrize("kind", ["assistant", "lookup"])
def test_assisted_decoding_static_cache_raises_or_equals(family: str, how: str, kind: str) -> None:
    model, batch = role_model(family, FULL), prompt(batch=1)
    options: dict[str, object] = (
        {"prompt_lookup_num_tokens": 3} if kind == "lookup" else {"assistant_model": assistant(family, True)}
    )
    if how == "by name":
        options["cache_implementation"] = "static"
    else:
        options[CACHE] = StaticCache(config=model.config, max_cache_len=32)
    try:
        got, refusal = model.generate(**batch, **GREEDY, **options), ""
    except ValueError as error:  # before transformers 5.24, and where a window has forgotten what came before
        got, refusal = None, str(error)
    if got is None:
        assert re.search(r"[Aa]ssisted generat.*[Ss]tatic|cache", refusal)
    else:
        assert torch.equal(got, one_by_one(model, batch))


@families
def test_assisted_decoding_by_itself(family: str) -> None:
    """All candidates are accepted: the caches of the assistant have the rows of the main model."""
    model, batch = role_model(family, FULL), prompt(batch=1)
    twin = role_model(family, FULL)
    twin.generation_config.num_assistant_tokens = 4
    assert torch.equal(model.generate(**batch, **GREEDY, assistant_model=twin), one_by_one(model, batch))


@families
def test_prompt_lookup(family: str) -> None:
    model, batch = role_model(family, FULL), prompt(batch=1, length=12)
    batch["input_ids"][:, 6:] = batch["input_ids"][:, :6]  # something to look up
    got = model.generate(**batch, **GREEDY, prompt_lookup_num_tokens=3)
    assert torch.equal(got, one_by_one(model, batch))


@families
@pytest.mark.parametrize("cache", ["dynamic", "static"])
def test_padded_batch_equals_single_rows(family: str, cache: str) -> None:
    model, batch = role_model(family, FULL), prompt(batch=2, padding=3)
    together = model.generate(**batch, **GREEDY, cache_implementation=cache)
    alone = {name: value[:1, 3:] for name, value in batch.items()}
    assert torch.equal(together[:1, 3:], model.generate(**alone, **GREEDY, cache_implementation=cache))
    alone = {name: value[1:] for name, value in batch.items()}
    assert torch.equal(together[1:], model.generate(**alone, **GREEDY, cache_implementation=cache))


@families
@pytest.mark.parametrize("cache", ["dynamic", "static"])
def test_num_return_sequences(family: str, cache: str) -> None:
    model, batch = role_model(family, FULL), prompt()
    options = {**GREEDY, "do_sample": True, "num_return_sequences": 3}
    torch.manual_seed(1)
    expected = model.generate(**batch, **options, use_cache=False)
    torch.manual_seed(1)
    got = model.generate(**batch, **options, cache_implementation=cache)
    assert got.shape == (6, 11 + NEW)
    assert torch.equal(got, expected)


@families
@pytest.mark.parametrize("cache", ["dynamic", "static"])
def test_generated_tokens_are_assistant(family: str, cache: str) -> None:
    model, batch = role_model(family, FULL), prompt(batch=1)
    output = model.generate(
        **batch, **GREEDY, cache_implementation=cache, return_dict_in_generate=True, output_logits=True
    )
    ids = output.sequences[:, :-1]
    new = ids.shape[1] - 11
    mask = torch.cat([batch["attention_mask"], torch.ones(1, new, dtype=torch.long)], 1)
    written = torch.stack(output.logits, 1)

    def full(role: int) -> Tensor:
        roles = torch.cat([batch["role_ids"], torch.full((1, new), role)], 1)
        with torch.no_grad():
            return model(ids, attention_mask=mask, role_ids=roles, position_ids=positions(mask)).logits[:, 10:]

    torch.testing.assert_close(written, full(3), rtol=0, atol=2e-5)
    assert (written - full(2))[:, 1:].abs().max() > 1e-3
    assert (written - full(0))[:, 1:].abs().max() > 1e-3


@families
def test_generated_role_is_configurable(family: str) -> None:
    config = RoleConfig(roles=("system", "user", "model"), privileged=("system",), generated="model", share=0.3)
    model, batch = role_model(family, config), random_batch(length=11, roles=3)
    assert torch.equal(model.generate(**batch, **GREEDY), one_by_one(model, batch, role=2))


@families
@pytest.mark.parametrize("cache", ["dynamic", "static"])
@pytest.mark.parametrize("give", ["all_ids", "new_ids"])
def test_second_turn_on_live_cache(family: str, cache: str, give: str) -> None:
    """A second turn continues the cache of the first, with the roles of the whole sequence."""
    model, batch = role_model(family, FULL), prompt()
    options = {**GREEDY, "return_dict_in_generate": True}
    if cache == "static":
        options["max_cache_len"] = 64  # room for the turn to come
        options["cache_implementation"] = "static"
    first = model.generate(**batch, **options)
    turn = prompt(seed=9, length=5, padding=0)
    longer = {
        "input_ids": torch.cat([first.sequences, turn["input_ids"]], 1),
        "attention_mask": torch.cat([batch["attention_mask"], torch.ones(2, NEW + 5, dtype=torch.long)], 1),
        "role_ids": torch.cat([batch["role_ids"], torch.full((2, NEW), 3), turn["role_ids"]], 1),
    }
    expected = one_by_one(model, longer)
    held = int(output_cache(first).get_seq_length())
    given = longer if give == "all_ids" else {**longer, "input_ids": longer["input_ids"][:, held:]}
    second = model.generate(**given, **GREEDY, **with_cache(output_cache(first)))
    assert torch.equal(second[:, -NEW:], expected[:, -NEW:])


@families
@pytest.mark.parametrize("back", [1, 4])
def test_generation_on_cropped_cache(family: str, back: int) -> None:
    model, batch = role_model(family, FULL), prompt(length=14)
    ids, mask, roles = batch["input_ids"], batch["attention_mask"], batch["role_ids"]
    cache = DynamicCache(config=model.config)
    cache.activate_past_recording()  # sliding layers forget what they could roll back to otherwise
    other = (roles + 1) % 5
    with torch.no_grad():
        model(ids[:, :7], attention_mask=mask[:, :7], role_ids=roles[:, :7], **with_cache(cache))
        cache.crop(0)
        kept = 7
        wrong = torch.cat([roles[:, :kept], other[:, kept : kept + back]], 1)
        model(ids[:, kept : kept + back], attention_mask=mask[:, : kept + back], role_ids=wrong, **with_cache(cache))
        cache.crop(-back)
        got = model(ids[:, kept:], attention_mask=mask, role_ids=roles, **with_cache(cache)).logits
        full = model(ids, attention_mask=mask, role_ids=roles).logits[:, kept:]
    torch.testing.assert_close(got, full, rtol=0, atol=2e-5)


@families
@pytest.mark.parametrize("cache", ["dynamic", "static"])
def test_generation_from_embeddings(family: str, cache: str) -> None:
    model, batch = role_model(family, FULL), prompt()
    expected = one_by_one(model, batch)[:, 11:]
    ids = batch.pop("input_ids")
    embeds = model.get_input_embeddings()(ids)
    got = model.generate(inputs_embeds=embeds, **batch, **GREEDY, cache_implementation=cache)
    assert torch.equal(got[:, -NEW:], expected)


@families
def test_generation_at_rest_equals_base(family: str) -> None:
    batch = prompt()
    base, model = base_model(family), role_model(family, trained=False)
    ids, mask = batch["input_ids"], batch["attention_mask"]
    for options in ({}, {"cache_implementation": "static"}, {"num_beams": 2}):
        expected = base.generate(ids, attention_mask=mask, **GREEDY, **options)
        assert torch.equal(model.generate(**batch, **GREEDY, **options), expected)
