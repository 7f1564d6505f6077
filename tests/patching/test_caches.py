"""Caches are bound to the roles and the patch that filled them, through changes of rows and length."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache, StaticCache
from transformers.cache_utils import StaticLayer

import rolesafe
from rolesafe import RoleConfig
from rolesafe.mechanisms import set_strength
from rolesafe.patching.caches import output_cache
from tests.models import base_model, plain, random_batch, role_model, with_cache

FULL = RoleConfig.preset("channel", share=0.3)
Batch = dict[str, Tensor]
caches = pytest.mark.parametrize("kind", ["dynamic", "static"])
families = pytest.mark.parametrize("family", ["llama", "gemma3_text"])


def new_cache(kind: str, model: Any) -> Any:
    if kind == "static":
        return StaticCache(config=model.config, max_cache_len=20)
    return DynamicCache(config=model.config)


def conversation() -> Batch:
    batch = random_batch(padding=0)
    batch["role_ids"][:, 2:6] = 2
    return batch


def prefix(batch: Batch, stop: int = 9) -> Batch:
    return {name: value[:, :stop] for name, value in batch.items()}


def rest(batch: Batch, start: int = 9) -> Batch:
    return {**batch, "input_ids": batch["input_ids"][:, start:]}


def filled(model: Any, batch: Batch, kind: str = "dynamic") -> Any:
    cache = new_cache(kind, model)
    with torch.no_grad():
        model(**prefix(batch), **with_cache(cache), use_cache=True)
    return cache


def go_on(model: Any, batch: Batch, cache: Any, start: int = 9) -> Tensor:
    with torch.no_grad():
        logits: Tensor = model(**rest(batch, start), **with_cache(cache), use_cache=True).logits
    return logits


def expected(model: Any, batch: Batch, start: int = 9) -> Tensor:
    with torch.no_grad():
        logits: Tensor = model(**batch, use_cache=False).logits[:, start:]
    return logits


def needs_crop(kind: str) -> None:
    if kind == "static" and not hasattr(StaticLayer, "crop"):
        pytest.skip("static caches of this transformers cannot be cropped")


def close(x: Tensor, y: Tensor) -> None:
    torch.testing.assert_close(x, y, rtol=0, atol=1e-5)


# ------------------------------------------------------------------------------------------------ what is refused


@caches
@families
def test_cache_of_relabelled_tokens_raises(family: str, kind: str) -> None:
    model, batch = role_model(family, FULL), conversation()
    for role in (0, 3):
        cache = filled(model, batch, kind)
        other = {**batch, "role_ids": batch["role_ids"].clone()}
        other["role_ids"][1, 4] = role
        with pytest.raises(ValueError, match=rf"got role {role} for token 4 of row 1, which was computed with role 2"):
            go_on(model, other, cache)
        close(go_on(model, batch, cache), expected(model, batch))


@caches
def test_cache_copies_role_ids(kind: str) -> None:
    model, batch = role_model("llama", FULL), conversation()
    cache = filled(model, batch, kind)
    batch["role_ids"][1, 4] = 0
    with pytest.raises(ValueError, match="which was computed with role 2"):
        go_on(model, batch, cache)


@caches
@families
def test_cache_of_the_plain_base_raises(family: str, kind: str) -> None:
    model, base, batch = role_model(family, FULL), base_model(family), conversation()
    cache = new_cache(kind, base)
    with torch.no_grad():
        base(**plain(prefix(batch)), **with_cache(cache), use_cache=True)
    with pytest.raises(ValueError, match="got keys of another model, without roles"):
        go_on(model, batch, cache)
    with pytest.raises(ValueError, match="got keys of another model, without roles"):
        model.generate(**batch, **with_cache(cache), max_new_tokens=2, pad_token_id=0)


@caches
def test_cache_extended_by_plain_base_raises(kind: str) -> None:
    model, base, batch = role_model("llama", FULL), base_model("llama"), conversation()
    cache = filled(model, batch, kind)
    with torch.no_grad():
        base(batch["input_ids"][:, 9:11], **with_cache(cache), use_cache=True)
    with pytest.raises(ValueError, match="without roles"):
        go_on(model, batch, cache, 11)


@caches
def test_cache_cropped_and_filled_by_the_base_raises(kind: str) -> None:
    needs_crop(kind)
    model, base, batch = role_model("llama", FULL), base_model("llama"), conversation()
    cache = filled(model, batch, kind)
    cache.crop(-2)
    with torch.no_grad():
        base(batch["input_ids"][:, 7:9], **with_cache(cache), use_cache=True)
    with pytest.raises(ValueError, match="without roles"):
        go_on(model, batch, cache)


@caches
def test_cache_of_another_patched_model_raises(kind: str) -> None:
    model, other, batch = role_model("llama", FULL), role_model("llama", RoleConfig.preset("bias")), conversation()
    with pytest.raises(ValueError, match="got keys of another patched model"):
        go_on(model, batch, filled(other, batch, kind))
    cache = filled(model, batch, kind)
    rolesafe.patch(rolesafe.unpatch(model), FULL)
    with pytest.raises(ValueError, match="got keys of another patched model"):
        go_on(model, batch, cache)


@caches
def test_cache_of_another_strength_raises(kind: str) -> None:
    model, batch = role_model("llama", FULL), conversation()
    set_strength(model, 0.0)
    cache = filled(model, batch, kind)
    set_strength(model, 1.0)
    with pytest.raises(ValueError, match=r"got keys of this model at strength 0.0 \(it has 1.0 now\)"):
        go_on(model, batch, cache)


def test_cache_of_other_rows_raises() -> None:
    model, batch = role_model("llama", FULL), conversation()
    cache = filled(model, batch)
    for layer in cache.layers:  # behind the back of the cache
        layer.batch_repeat_interleave(2)
    more = {name: value.repeat_interleave(2, 0) for name, value in batch.items()}
    with pytest.raises(ValueError, match="`cache`: expected 4 rows with roles, got 2"):
        go_on(model, more, cache)


def test_cache_reordered_without_its_roles_raises() -> None:
    model, batch = role_model("llama", FULL), conversation()
    batch["role_ids"][0, 4] = 1
    cache = filled(model, batch)
    cache.reorder_cache(torch.tensor([1, 0]))
    with pytest.raises(ValueError, match="for token"):
        go_on(model, batch, cache)
    swapped = {name: value.flip(0) for name, value in batch.items()}
    close(go_on(model, swapped, cache), expected(model, swapped))


def test_compiled_code_checks_cached_roles() -> None:
    model, batch = role_model("llama", FULL), conversation()
    cache = filled(model, batch, "static")
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    close(go_on(compiled, batch, copy.deepcopy(cache)), expected(model, batch))
    batch["role_ids"] = batch["role_ids"].clone()
    batch["role_ids"][1, 4] = 0
    with pytest.raises(RuntimeError, match="`cache`: its roles differ from `role_ids`"):
        go_on(compiled, batch, cache)
    torch._dynamo.reset()


# ------------------------------------------------------------------------------------------------ what goes on working

CHANGES: dict[str, tuple[Callable[[Any], Any], Callable[[Tensor], Tensor]]] = {
    "repeat": (lambda cache: cache.batch_repeat_interleave(3), lambda x: x.repeat_interleave(3, 0)),
    "select": (lambda cache: cache.batch_select_indices(torch.tensor([1])), lambda x: x[1:]),
    "reorder": (lambda cache: cache.reorder_cache(torch.tensor([1, 1])), lambda x: x[[1, 1]]),
}


@families
@pytest.mark.parametrize("change", CHANGES)
def test_cache_with_changed_rows_follows_rows(family: str, change: str) -> None:
    model, batch = role_model(family, FULL), conversation()
    batch["role_ids"][0, 4] = 1
    cache = filled(model, batch)
    of_cache, of_rows = CHANGES[change]
    of_cache(cache)
    batch = {name: of_rows(value) for name, value in batch.items()}
    close(go_on(model, batch, cache), expected(model, batch))


@caches
def test_cropped_cache_accepts_other_roles(kind: str) -> None:
    needs_crop(kind)
    model, batch = role_model("llama", FULL), conversation()
    cache = filled(model, batch, kind)
    cache.crop(-4)
    other = {name: value.clone() for name, value in batch.items()}
    other["role_ids"][:, 5:] = 4
    close(go_on(model, other, cache, 5), expected(model, other, 5))


def test_reset_static_cache_accepts_other_roles() -> None:
    model, batch = role_model("llama", FULL), conversation()
    cache = filled(model, batch, "static")
    cache.reset()
    set_strength(model, 0.5)
    other = random_batch(seed=3, padding=0)
    with torch.no_grad():
        model(**prefix(other), **with_cache(cache), use_cache=True)
    close(go_on(model, other, cache), expected(model, other))


@caches
@pytest.mark.parametrize("how", ["deepcopy", "pickle"])
def test_copied_prefix_cache_serves_conversations(kind: str, how: str) -> None:
    model, batch = role_model("llama", FULL), conversation()
    cache = filled(model, batch, kind)
    for seed in (1, 2):
        other = {name: value.clone() for name, value in batch.items()}
        other["input_ids"][:, 9:] = random_batch(seed)["input_ids"][:, 9:]
        other["role_ids"][:, 9:] = seed
        own = copy.deepcopy(cache) if how == "deepcopy" else pickle.loads(pickle.dumps(cache))
        close(go_on(model, other, own), expected(model, other))
        other["role_ids"][0, 3] = 0
        with pytest.raises(ValueError, match="for token 3 of row 0"):
            go_on(model, other, copy.deepcopy(cache))


def test_cache_of_copied_model_is_accepted() -> None:
    """A copy is the same patch: it computes the same keys."""
    model, batch = role_model("llama", FULL), conversation()
    close(go_on(copy.deepcopy(model), batch, filled(model, batch)), expected(model, batch))


@pytest.mark.parametrize("options", [{"num_beams": 3}, {"prompt_lookup_num_tokens": 3}, {"prefill_chunk_size": 4}])
def test_generate_continues_cache(options: dict[str, Any]) -> None:
    """Beams reorder the cache, rejected candidates crop it, a second turn checks it."""
    model, batch = role_model("llama", FULL), {name: x[:1] for name, x in conversation().items()}
    fixed = {"max_new_tokens": 5, "do_sample": False, "eos_token_id": None, "pad_token_id": 0, "use_cache": True}
    first = model.generate(**batch, **fixed, **options, return_dict_in_generate=True)
    ids = torch.cat([first.sequences, batch["input_ids"][:, :4]], 1)
    more = ids.shape[1] - 14
    roles = torch.cat([batch["role_ids"], torch.full((1, more - 4), 3), torch.full((1, 4), 2)], 1)
    if "num_beams" in options:  # its cache has several rows
        return
    turn = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "role_ids": roles}
    cache = output_cache(first)
    got = model.generate(**turn, **fixed, **with_cache(copy.deepcopy(cache)))
    assert torch.equal(got, model.generate(**turn, **fixed))
    turn["role_ids"] = roles.clone()
    turn["role_ids"][:, 15] = 0  # what the model wrote is no system text
    with pytest.raises(ValueError, match="got role 0 for token 15 of row 0, which was computed with role 3"):
        model.generate(**turn, **fixed, **with_cache(cache))
