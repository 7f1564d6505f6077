"""Shapes of the inputs of `generate`, and decoding methods that call the model themselves."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers.generation import UnbatchedClassifierFreeGuidanceLogitsProcessor

from rolesafe import RoleConfig
from rolesafe.patching.caches import output_cache
from tests.models import base_model, plain, random_batch, role_model, with_cache

FULL = RoleConfig.preset("channel", share=0.3)
GREEDY: dict[str, Any] = {"max_new_tokens": 4, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}


def zeros(*shape: int) -> Tensor:
    return torch.zeros(*shape, dtype=torch.long)


@pytest.mark.parametrize("cache", ["dynamic", "static"])
def test_generate_without_prompt_takes_one_role(cache: str) -> None:
    """Later tokens are generated, so they take no roles."""
    model = role_model("llama", FULL)
    got = model.generate(role_ids=zeros(2, 1), **GREEDY, cache_implementation=cache)
    ids = torch.ones(2, 1, dtype=torch.long)
    assert torch.equal(got, model.generate(ids, role_ids=zeros(2, 1), **GREEDY))
    for roles in (zeros(1, 5), zeros(1, 0), zeros(2, 2)):
        with pytest.raises(ValueError, match=rf"`role_ids`: expected shape \({len(roles)}, 1\)"):
            model.generate(role_ids=roles, **GREEDY, cache_implementation=cache)
    with pytest.raises(ValueError, match=r"`role_ids`: expected shape"):
        model.generate(role_ids=zeros(1, 5), attention_mask=zeros(1, 5) + 1, **GREEDY)


LONGER: dict[str, tuple[tuple[int, int], tuple[int, int], str]] = {
    "both": ((2, 9), (2, 9), "`attention_mask`: expected shape .2, 5."),
    "both, as long as the cache": ((2, 12), (2, 12), "`attention_mask`: expected shape .2, 5."),
    "both shorter": ((2, 4), (2, 4), "`attention_mask`: expected shape .2, 5."),
    "mask": ((2, 9), (2, 5), "`attention_mask`: expected shape .2, 5."),
    "roles": ((2, 5), (2, 9), "`role_ids`: expected shape .2, 5."),
    "rows": ((2, 5), (1, 5), "`role_ids`: expected shape .2, 5."),
}


@pytest.mark.parametrize("cache", ["dynamic", "static"])
@pytest.mark.parametrize("embeds", [False, True])
@pytest.mark.parametrize("what", LONGER)
def test_generate_takes_one_role_per_prompt_token(what: str, embeds: bool, cache: str) -> None:
    model, ids = role_model("llama", FULL), torch.full((2, 5), 7)
    mask, roles, message = LONGER[what]
    tokens = {"inputs_embeds": model.get_input_embeddings()(ids)} if embeds else {"input_ids": ids}
    with pytest.raises(ValueError, match=message):
        model.generate(
            **tokens, attention_mask=zeros(*mask) + 1, role_ids=zeros(*roles), **GREEDY, cache_implementation=cache
        )


def test_generate_with_cache_role_ids_shape_is_checked() -> None:
    model, batch = role_model("llama", FULL), random_batch(padding=0)
    ids, roles = batch["input_ids"], batch["role_ids"]
    whole = model.generate(**batch, **GREEDY)[:, 14:]

    def cache() -> Any:
        with torch.no_grad():
            return output_cache(model(ids[:, :9], role_ids=roles[:, :9], use_cache=True))

    assert torch.equal(model.generate(**batch, **GREEDY, **with_cache(cache()))[:, 14:], whole)
    for length in (5, 9, 13, 15, 23):
        batch["attention_mask"], batch["role_ids"] = zeros(2, length) + 1, zeros(2, length)
        with pytest.raises(ValueError, match=r"`attention_mask`: expected shape|`role_ids`: expected"):
            model.generate(**batch, **GREEDY, **with_cache(cache()))


# ------------------------------------------------------------------------------------------------------- guidance


def guided(model: Any, batch: dict[str, Tensor], ids: Tensor, roles: Tensor, scale: float = 1.5) -> Tensor:
    """Compute classifier-free guidance by full passes; the unconditional text is `ids` and the generated tokens."""
    one, out = torch.ones(len(ids), 1, dtype=torch.long), dict(batch)
    for _ in range(GREEDY["max_new_tokens"]):
        with torch.no_grad():
            scores = model(**out, use_cache=False).logits[:, -1].log_softmax(-1)
            free = model(ids, role_ids=roles, use_cache=False).logits[:, -1].log_softmax(-1)
        token = (scale * (scores - free) + free).argmax(-1, keepdim=True)
        out["input_ids"] = torch.cat([out["input_ids"], token], 1)
        out["attention_mask"] = torch.cat([out["attention_mask"], one], 1)
        out["role_ids"] = torch.cat([out["role_ids"], 3 * one], 1)
        ids, roles = torch.cat([ids, token], 1), torch.cat([roles, 3 * one], 1)
    return out["input_ids"]


@pytest.mark.parametrize("use_cache", [False, True])
@pytest.mark.parametrize("config", [FULL, RoleConfig.preset("separate")], ids=["channel", "separate"])
def test_guidance_has_roles(config: RoleConfig, use_cache: bool) -> None:
    model, batch = role_model("llama", config), random_batch(padding=0)
    got = model.generate(**batch, **GREEDY, guidance_scale=1.5, use_cache=use_cache)
    assert torch.equal(got, guided(model, batch, batch["input_ids"][:, -1:], batch["role_ids"][:, -1:]))
    negative = random_batch(seed=4, length=6, padding=0)
    got = model.generate(
        **batch,
        **GREEDY,
        guidance_scale=1.5,
        use_cache=use_cache,
        negative_prompt_ids=negative["input_ids"],
        negative_prompt_role_ids=negative["role_ids"],
    )
    assert torch.equal(got, guided(model, batch, negative["input_ids"], negative["role_ids"]))


def test_guidance_without_negative_roles_raises() -> None:
    model, batch = role_model("llama", FULL), random_batch(padding=0)
    ids = torch.full((2, 3), 5)
    for roles in (None, zeros(2, 4), zeros(1, 3), [[0, 0, 0]]):
        with pytest.raises(ValueError, match=r"`negative_prompt_role_ids`: expected shape \(2, 3\)"):
            model.generate(
                **batch, **GREEDY, guidance_scale=1.5, negative_prompt_ids=ids, negative_prompt_role_ids=roles
            )
    with pytest.raises(ValueError, match="`negative_prompt_role_ids`: expected None without `negative_prompt_ids`"):
        model.generate(**batch, **GREEDY, guidance_scale=1.5, negative_prompt_role_ids=zeros(2, 3))
    with pytest.raises(ValueError, match="`negative_prompt_role_ids`: expected None without classifier-free guidance"):
        model.generate(**batch, **GREEDY, negative_prompt_role_ids=zeros(2, 3))


def test_guidance_processor_of_caller_has_roles() -> None:
    model, batch = role_model("llama", FULL), random_batch(padding=0)
    own = UnbatchedClassifierFreeGuidanceLogitsProcessor(1.5, model)
    got = model.generate(**batch, **GREEDY, logits_processor=[own])
    assert torch.equal(got, model.generate(**batch, **GREEDY, guidance_scale=1.5))


def test_guidance_of_beams_runs() -> None:
    model, batch = role_model("llama", FULL), random_batch(padding=0)
    options = {**GREEDY, "num_beams": 2, "guidance_scale": 1.5, "use_cache": False}
    assert model.generate(**batch, **options).shape == base_model("llama").generate(**plain(batch), **options).shape


@pytest.mark.parametrize("how", ["dola_layers", "penalty_alpha"])
def test_hub_decoding_raises(how: str) -> None:
    """Its code would come from the hub; transformers itself raises."""
    options: dict[str, Any] = {"dola_layers": "low"} if how == "dola_layers" else {"penalty_alpha": 0.6, "top_k": 4}
    with pytest.raises((ValueError, OSError), match="trust_remote_code"):
        role_model("llama", FULL).generate(**random_batch(padding=0), **GREEDY, **options)
