"""Soft prompts: a lower loss than tokens reach, inside their ball, marked as what nobody can type."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from rolesafe import RoleConfig, patch
from rolesafe.attacks import GCGConfig, SoftPromptConfig, replies
from rolesafe.attacks.gradient.soft import _project, ask_in_embeddings
from rolesafe.attacks.gradient.victim import Victim
from rolesafe.roles.encoding import encode_one
from rolesafe.training.tiny import tiny_llama
from tests.attacks.gradient import (
    CONFIGS,
    direct_loss,
    example,
    gradient_search,
    make,
    spied,
    target_of,
    words_tokenizer,
)


def search(model: Any, tokenizer: Any, **changes: Any) -> Any:
    return gradient_search(SoftPromptConfig, model, tokenizer, **{"num_steps": 40, **changes})


@pytest.mark.parametrize("name", [None, "bias", "embeddings", "channel"])
def test_soft_prompt_loss_is_below_gcg(name: str | None) -> None:
    model, tokenizer = make(name)
    soft = search(model, tokenizer)
    hard = gradient_search(GCGConfig, model, tokenizer, num_steps=10, search_width=32, topk=64)
    assert soft.losses[0] == pytest.approx(hard.losses[0], abs=1e-4)
    assert soft.losses[-1] < hard.losses[-1]
    assert not soft.typed
    assert isinstance(soft.reply, str)
    assert soft.n_steps == 40
    assert len(soft.losses) == 41


def test_soft_prompt_hidden_from_reply_has_no_effect() -> None:
    """Every head dedicated: the reply reads the privileged channel alone, whatever the embeddings are."""
    model, tokenizer = make("all dedicated")
    found = search(model, tokenizer)
    assert found.losses[-1] == pytest.approx(found.losses[0], abs=1e-4)


def test_soft_prompt_messages_are_those_of_the_start() -> None:
    model, tokenizer = make("channel")
    found = search(model, tokenizer, num_steps=1)
    assert found.losses[0] == pytest.approx(direct_loss(model, tokenizer, found.messages, example().wanted), abs=1e-4)


@pytest.mark.parametrize("name", [None, "channel"])
def test_soft_prompt_of_tokens_gets_their_reply(name: str | None) -> None:
    model, tokenizer = make(name)
    target = target_of(model, tokenizer)
    soft = model.get_input_embeddings()(target.start).detach()
    answer = ask_in_embeddings(Victim(model, target), tokenizer, 12)(soft)
    assert answer == replies(model, tokenizer, [target.messages(target.start.tolist())], max_new_tokens=12)[0]
    assert answer


@pytest.mark.parametrize("method", ["adam", "sign"])
@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_soft_prompt_in_ball_is_bounded(norm: str, method: str) -> None:
    model, tokenizer = make("bias")
    reached = [search(model, tokenizer, norm=norm, eps=eps, method=method).losses[-1] for eps in (1e-4, 0.3)]
    free = search(model, tokenizer, method=method)
    assert reached[0] == pytest.approx(free.losses[0], abs=1e-2)
    assert free.losses[-1] < reached[1] < reached[0] - 0.02


def test_project_moves_onto_the_ball() -> None:
    shift = torch.tensor([[3.0, 4.0], [0.3, 0.4]])
    torch.testing.assert_close(_project(shift, "l2", 1.0), torch.tensor([[0.6, 0.8], [0.3, 0.4]]))
    torch.testing.assert_close(_project(shift, "linf", 0.35), torch.tensor([[0.35, 0.35], [0.3, 0.35]]))
    assert torch.equal(_project(shift, "none", 1.0), shift)


def test_soft_prompt_stops_early_and_is_equal() -> None:
    """On a model that sees the slot well the wanted reply becomes the greedy one long before the last step."""
    tokenizer = words_tokenizer()
    model = patch(tiny_llama(len(tokenizer), seed=0).eval(), RoleConfig())
    found, again = (search(model, tokenizer, num_steps=200, length=20, early_stop=True) for _ in range(2))
    assert found == again
    assert 0 < found.n_steps < 200
    assert example().violation in found.reply


@pytest.mark.parametrize("name", list(CONFIGS))
def test_soft_prompt_slot_is_never_privileged(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokenizer = make(name)
    calls = spied(model, monkeypatch)
    found = search(model, tokenizer, num_steps=2)
    encoded = encode_one(tokenizer, found.messages, config=model.rolesafe_config, add_generation_prompt=True)
    roles = torch.tensor(encoded.role_ids + [model.rolesafe_config.generated_id] * 16)
    assert len(calls) > 3
    assert all((given == roles[: given.shape[1]]).all() for given in calls)


def test_soft_prompt_with_bad_arguments_names_them() -> None:
    model, tokenizer = make(None)
    for options, match in (
        ({"norm": "l1"}, "`norm`: expected one of"),
        ({"method": "sgd"}, "`method`: expected one of"),
        ({"eps": 0}, "`eps`: expected a finite number > 0"),
        ({"step_size": float("nan")}, "`step_size`: expected a finite number > 0"),
        ({"num_steps": -1}, "`num_steps`: expected a whole number >= 1"),
        ({"wanted": ""}, "`wanted`: expected"),
    ):
        with pytest.raises(ValueError, match=match):
            search(model, tokenizer, **options)
