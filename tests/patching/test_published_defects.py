"""Defects in public code of the published mechanisms, checked for each mechanism here.

- Generated tokens inherit the role of the last prompt token (ASIDE, ISE), or every cached step counts as the reply
  (AIR): wrong for a new user turn, for a prompt fed in chunks, for a prompt that is in a cache already.
- A slice along the batch instead of the time (ASIDE): rows of a batch change each other.
- Roles read from delimiters in the tokens, so `inputs_embeds` switches the defence off, and typed delimiters forge
  roles (DRIP). The latter is `tests/roles/test_forging.py`.
- The length of the prompt taken without its left padding (InstABoost), the size of a mask that is replaced (PASTA).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import StaticCache

import rolesafe
from rolesafe import RoleConfig
from rolesafe.patching.caches import output_cache
from rolesafe.patching.guards import accept_roles
from tests.models import CACHE, VOCAB, base_model, cached_logits, logits, plain, random_batch, role_model, with_cache
from tests.patching.test_generation import GREEDY, one_by_one
from tests.patching.test_training import gradients

CONFIGS = {
    "ise": RoleConfig.preset("ise"),
    "air": RoleConfig.preset("air"),
    "aside": RoleConfig.preset("aside"),
    "pft": RoleConfig.preset("pft", position_gap=20),
    "drip": RoleConfig.preset("drip"),
    "instaboost": RoleConfig.preset("instaboost", boost=9.0),
    "pasta": RoleConfig.preset("pasta", dampen=0.01),
    "spotlight": RoleConfig.preset("spotlight", mass_target=0.6),
    "separate": RoleConfig.preset("separate", share=0.3),
    "all at once": RoleConfig.preset(
        "separate", embedding="all", share=0.3, rotation=1.0, shift=True, position_gap=10, boost=3.0, dampen=0.3,
        mass_target=0.4,
    ),
}  # fmt: skip
OTHERS = ("qwen3", "gemma2", "gpt2", "mixtral")
mechanisms = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
families = pytest.mark.parametrize("family", ["llama", *OTHERS])
pairs = pytest.mark.parametrize(
    "family, config",
    [
        pytest.param(family, config, id=f"{family}-{name}")
        for i, (name, config) in enumerate(CONFIGS.items())
        for family in ("llama", *(OTHERS if name == "all at once" else (OTHERS[i % 4],)))
    ],
)
"""For tests of equality that generate: each mechanism in two families, and all of them at once in every family."""


@pairs
def test_generated_tokens_have_generated_role(family: str, config: RoleConfig) -> None:
    """With every cache, in chunks and with left padding, equal to full passes with that role."""
    model, batch = role_model(family, config), random_batch(seed=2, length=11)
    expected = one_by_one(model, batch)
    for options in ({"use_cache": False}, {}, {"prefill_chunk_size": 3}, {"cache_implementation": "static"}):
        assert torch.equal(model.generate(**batch, **GREEDY, **options), expected), options


@pairs
def test_cached_step_has_its_own_role(family: str, config: RoleConfig) -> None:
    """Random roles, one token at a time and in chunks, equal one pass."""
    model, batch = role_model(family, config), random_batch()
    with torch.no_grad():
        expected = logits(model, batch)
        for chunks in ((9, 1, 1, 3), (1,) * 14, (13, 1)):
            torch.testing.assert_close(cached_logits(model, batch, chunks), expected, rtol=0, atol=2e-5)


@mechanisms
@pytest.mark.parametrize("static", [False, True], ids=["dynamic", "static"])
def test_user_turn_on_kept_cache(config: RoleConfig, static: bool) -> None:
    model, make = role_model("llama", config), torch.Generator().manual_seed(1)
    ids = torch.randint(3, VOCAB, (1, 9), generator=make)
    roles = torch.tensor([[0, 0, 0, 2, 2, 2, 2, 3, 3]])
    kept: dict[str, Any] = {CACHE: StaticCache(model.config, max_cache_len=32)} if static else {}
    first = model.generate(ids, role_ids=roles, return_dict_in_generate=True, **GREEDY, **kept)
    new = first.sequences.shape[1] - 9
    turn = torch.cat([first.sequences, torch.randint(3, VOCAB, (1, 5), generator=make)], 1)
    # the last generated token has not been through the model yet; a user's turn and a tool's follow
    roles = torch.cat([roles, torch.full((1, new), 3), torch.tensor([[2, 2, 4, 2, 3]])], 1)
    second = model.generate(turn, role_ids=roles, **with_cache(output_cache(first)), **GREEDY)
    batch = {"input_ids": turn, "attention_mask": torch.ones_like(turn), "role_ids": roles}
    assert torch.equal(second, one_by_one(model, batch))
    with torch.no_grad():
        difference = (model(**batch).logits - model(**{**batch, "role_ids": roles.clamp(max=3)}).logits).abs().max()
    # the tool's token would be another as part of the reply, but for mechanisms that know two channels only
    tells = config.rotation or config.shift or config.embedding != "none" or config.bias
    assert (difference > 1e-4) == bool(tells)


@mechanisms
@families
def test_batch_rows_do_not_change_each_other(family: str, config: RoleConfig) -> None:
    """Alone, padded on the left, and padded on the right: the same logits at the same tokens."""
    model, batch = role_model(family, config), random_batch()
    with torch.no_grad():
        both = model(**batch).logits
        for row, start in ((0, 3), (1, 0)):
            alone = model(**{name: x[row : row + 1, start:] for name, x in batch.items()}).logits
            expected = both[row : row + 1, start:]
            if family == "gpt2" and not config.moves_positions and start:
                continue  # its own positions count padding unless they are given
            torch.testing.assert_close(alone, expected, rtol=0, atol=2e-5)
        if family != "gpt2" or config.moves_positions:
            turned = {name: torch.stack([x[0].roll(-3), x[1]]) for name, x in batch.items()}
            torch.testing.assert_close(model(**turned).logits[0, :11], both[0, 3:], rtol=0, atol=2e-5)


@pairs
def test_inputs_embeds_keep_mechanism(family: str, config: RoleConfig) -> None:
    model, batch = role_model(family, config), random_batch()
    embeds = model.get_input_embeddings()(batch["input_ids"])
    without_ids = {**batch, "inputs_embeds": embeds}
    del without_ids["input_ids"]
    with torch.no_grad():
        expected = logits(model, batch)
        torch.testing.assert_close(logits(model, without_ids), expected, rtol=0, atol=1e-6)
    new = model.generate(**without_ids, **GREEDY)
    assert torch.equal(new, model.generate(**batch, **GREEDY)[:, 14:])


@mechanisms
@families
def test_each_mechanism_changes_outputs(family: str, config: RoleConfig) -> None:
    """Control: the other tests pass for a mechanism without effect."""
    model, batch = role_model(family, config), random_batch()
    with torch.no_grad():
        base = logits(base_model(family), plain(batch))
        assert (logits(model, batch) - base).abs().max() > 1e-3


@mechanisms
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_save_load_unpatch_round_trip(family: str, config: RoleConfig, tmp_path: Path) -> None:
    model, batch, base = role_model(family, config), random_batch(), base_model(family)
    with torch.no_grad():
        expected = logits(model, batch)
        model.save_pretrained(tmp_path / "whole")
        rolesafe.save_role_layer(model, tmp_path / "alone", base_model="somewhere")
        for loaded in (
            rolesafe.from_pretrained(tmp_path / "whole"),
            rolesafe.from_pretrained(tmp_path / "alone", base_model=base_model(family)),
        ):
            assert loaded.rolesafe_config == config
            assert torch.equal(logits(loaded, batch), expected)
        rolesafe.unpatch(model)
        assert torch.equal(logits(model, plain(batch)), logits(base, plain(batch)))
        assert not [name for name, _ in model.named_modules() if "rolesafe" in name]
        accept_roles(model)  # the one hook that stays: roles that are given now raise
        assert not any(m._forward_pre_hooks or m._forward_hooks for m in model.modules())


@mechanisms
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_gradients_with_and_without_checkpointing(family: str, config: RoleConfig) -> None:
    model, batch = role_model(family, config).train(), random_batch()
    expected = gradients(model, batch)
    for name, _ in rolesafe.named_role_parameters(model):
        assert expected[name].abs().max() > 0, name
    model.gradient_checkpointing_enable({"use_reentrant": False})
    for name, gradient in gradients(model, batch).items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["bias", "embedding", "ise", "air", "drip"])
@families
def test_learned_mechanism_at_rest_equals_base(family: str, name: str) -> None:
    model, batch = role_model(family, RoleConfig.preset(name), trained=False), random_batch()
    with torch.no_grad():
        base: Tensor = logits(base_model(family), plain(batch))
        assert torch.equal(logits(model, batch), base)


@pytest.mark.parametrize("name", CONFIGS)
def test_torch_compile(name: str) -> None:
    """All mechanisms on two layers together, and each alone on one: compiling a layer takes a second."""
    torch._dynamo.reset()
    model = role_model("llama", CONFIGS[name], layers=2 if name == "all at once" else 1)
    batch = random_batch()
    with torch.no_grad():
        expected = logits(model, batch)
        compiled = torch.compile(model, backend="eager")(**batch).logits[batch["attention_mask"].bool()]
    torch.testing.assert_close(compiled, expected, rtol=0, atol=2e-5)


@mechanisms
def test_arguments_are_not_modified(config: RoleConfig) -> None:
    """Public code of PASTA replaces the mask's `size` by a function, permanently."""
    model, batch = role_model("llama", config), random_batch()
    before = {name: x.clone() for name, x in batch.items()}
    with torch.no_grad():
        model(**batch)
    model.generate(**batch, **GREEDY)
    for name, x in batch.items():
        assert torch.equal(x, before[name])
        assert x.__dict__ == {}, "no attribute of a tensor was replaced"
        assert x.size() == x.shape


def test_patch_changes_no_transformers_class() -> None:
    """Public code forks modelling files or replaces methods of all models. Here one instance changes."""
    model = base_model("llama")
    classes = [type(module) for module in model.modules()]
    before = {kind: dict(vars(kind)) for kind in classes}
    rolesafe.patch(model, CONFIGS["all at once"])
    with torch.no_grad():
        model(**random_batch())
    assert all(dict(vars(kind)) == before[kind] for kind in classes)
