"""Missing or unfitting role ids raise in every call of a patched model."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import StaticCache

from rolesafe import RoleConfig
from rolesafe.patching.caches import output_cache
from tests.models import base_model, plain, random_batch, role_model, with_cache

FAMILIES = ["llama", "gemma3_text", "gpt2", "gpt_oss"]
families = pytest.mark.parametrize("family", FAMILIES)
configs = pytest.mark.parametrize(
    "config", [RoleConfig(), RoleConfig.preset("channel"), RoleConfig.preset("ise")], ids=["bias", "channel", "ise"]
)


@configs
@families
def test_role_ids_missing_raise(family: str, config: RoleConfig) -> None:
    model = role_model(family, config, trained=False)
    batch = plain(random_batch())
    ids, mask = batch["input_ids"], batch["attention_mask"]
    embeds = model.get_input_embeddings()(ids)
    inner = model.base_model
    assert inner is not model
    ways: list[Callable[[], Any]] = [
        lambda: model(ids),
        lambda: model(ids, mask),
        lambda: model(input_ids=ids, attention_mask=mask),
        lambda: model.forward(ids),
        lambda: model(inputs_embeds=embeds, attention_mask=mask),
        lambda: model.generate(ids, max_new_tokens=1),
        lambda: model.generate(input_ids=ids, attention_mask=mask, max_new_tokens=1),
        lambda: model.generate(inputs_embeds=embeds, attention_mask=mask, max_new_tokens=1),
        lambda: model.generate(max_new_tokens=1),
        lambda: inner(ids),
        lambda: inner(input_ids=ids, attention_mask=mask),
        lambda: inner(inputs_embeds=embeds),
    ]
    for way in ways:
        with pytest.raises(ValueError, match="`role_ids`"):
            way()


WRONG: dict[str, tuple[Callable[[Tensor], Any], str]] = {
    "too short": (lambda r: r[:, :-1], r"14"),
    "too long": (lambda r: torch.cat([r, r[:, :1]], 1), r"14"),
    "one row": (lambda r: r[:1], r"2"),
    "three rows": (lambda r: torch.cat([r, r[:1]]), r"2"),
    "flat": (lambda r: r[0], r"`role_ids`"),
    "three dimensions": (lambda r: r[..., None], r"`role_ids`"),
    "negative": (lambda r: r - 5, r"\[0, 5\)"),
    "too large": (lambda r: r + 1, r"\[0, 5\)"),
    "float": (lambda r: r.float(), r"integer"),
    "bool": (lambda r: r > 2, r"integer"),
    "a list": (lambda r: r.tolist(), r"`role_ids`"),
    "names": (lambda r: "system", r"`role_ids`"),
}


@pytest.mark.parametrize("how", ["forward", "generate", "embeds"])
@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_role_ids_invalid_raise(family: str, wrong: str, how: str) -> None:
    model = role_model(family, RoleConfig())
    change, message = WRONG[wrong]
    batch = random_batch()
    batch["role_ids"][0, 0] = 4  # so that one more is too large
    batch["role_ids"] = change(batch["role_ids"])
    if how == "embeds":
        batch["inputs_embeds"] = model.get_input_embeddings()(batch.pop("input_ids"))
    call = functools.partial(model.generate, max_new_tokens=2, pad_token_id=0) if how == "generate" else model
    with pytest.raises(ValueError, match=message) as raised:
        call(**batch)
    assert "role_ids" in str(raised.value)


@families
def test_role_ids_of_new_tokens_with_cache_raise(family: str) -> None:
    model, batch = role_model(family), random_batch()
    ids, mask, roles = batch["input_ids"], batch["attention_mask"], batch["role_ids"]
    first = model(ids[:, :9], attention_mask=mask[:, :9], role_ids=roles[:, :9], use_cache=True)
    with pytest.raises(ValueError, match=r"14 tokens \(9 in the cache and 5 new\), got 5"):
        model(ids[:, 9:], attention_mask=mask, role_ids=roles[:, 9:], **with_cache(output_cache(first)))


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_role_ids_static_cache_length_is_checked(family: str) -> None:
    model, batch = role_model(family, RoleConfig.preset("channel", share=0.3)), random_batch(padding=0)
    ids = batch["input_ids"]
    roles = nn.functional.pad(batch["role_ids"], (0, 10), value=3)
    with torch.no_grad():
        full = model(ids, role_ids=roles[:, :14], use_cache=False).logits
        for start, stop in ((0, 9), (9, 14)):
            for length in (stop, 20):
                cache = StaticCache(config=model.config, max_cache_len=20)
                if start:
                    model(ids[:, :start], role_ids=roles[:, :start], **with_cache(cache))
                got = model(ids[:, start:stop], role_ids=roles[:, :length], **with_cache(cache)).logits
                torch.testing.assert_close(got, full[:, start:stop], rtol=0, atol=1e-5)
            for length in (stop - 1, stop + 1, 19, 21, 24):
                cache = StaticCache(config=model.config, max_cache_len=20)
                if start:
                    model(ids[:, :start], role_ids=roles[:, :start], **with_cache(cache))
                with pytest.raises(ValueError, match=rf"`role_ids`: expected one role .* {stop} tokens.*got {length}"):
                    model(ids[:, start:stop], role_ids=roles[:, :length], **with_cache(cache))


@families
def test_inputs_embeds_take_roles(family: str) -> None:
    model, batch = role_model(family, RoleConfig.preset("channel", share=0.3)), random_batch()
    ids = batch["input_ids"]
    with torch.no_grad():
        expected = model(**batch).logits
        embeds = model.get_input_embeddings()(batch.pop("input_ids"))
        assert torch.equal(model(inputs_embeds=embeds, **batch).logits, expected)
        with pytest.raises(ValueError):
            model(input_ids=ids, inputs_embeds=embeds, **batch)
        with pytest.raises(ValueError, match="input_ids or inputs_embeds"):
            model(**batch)


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64, torch.uint8, torch.int8])
def test_role_ids_of_any_integer_dtype(dtype: torch.dtype) -> None:
    model, batch = role_model("llama"), random_batch()
    with torch.no_grad():
        expected = model(**batch).logits
        batch["role_ids"] = batch["role_ids"].to(dtype)
        assert torch.equal(model(**batch).logits, expected)
    got = model.generate(**batch, max_new_tokens=3, do_sample=False, pad_token_id=0)
    assert got.shape[1] > 14


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_input_ids_by_position_are_accepted(family: str) -> None:
    """The first argument of `forward` is `input_ids`, by position or keyword; roles are keyword-only."""
    model, batch = role_model(family), random_batch(padding=0)
    with torch.no_grad():
        expected = model(**batch).logits
        assert torch.equal(model(batch["input_ids"], role_ids=batch["role_ids"]).logits, expected)


def test_base_model_rejects_roles() -> None:
    """A plain model does not silently ignore role ids; transformers itself raises in `generate`."""
    base, batch = base_model("llama"), random_batch()
    with pytest.raises(ValueError, match="role_ids"):
        base.generate(**batch, max_new_tokens=1)


@pytest.mark.parametrize("call", ["generate_batch", "init_continuous_batching", "continuous_batching_context_manager"])
def test_continuous_batching_raises(call: str) -> None:
    model = role_model("llama")
    with pytest.raises(RuntimeError, match=r"(?s)roles.*generate\("):
        getattr(model, call)([[5, 6, 7]])
