"""Token equality: the same token ids in exchanged roles."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import rolesafe
from rolesafe import RoleConfig
from rolesafe.attacks import Rate
from rolesafe.audit.equality import exchange, token_equality
from rolesafe.tasks import Difficulty, generate, vocabulary
from rolesafe.training.tiny import tiny_llama, tiny_tokenizer

TOKENIZER = tiny_tokenizer(vocabulary())
EXAMPLES = generate("test", 6, seed=2)


def model(config: RoleConfig | None = None):
    made = tiny_llama(len(TOKENIZER), seed=0)
    return made if config is None else rolesafe.patch(made, config)


def test_equality_of_plain_model_runs_nothing():
    found = token_equality(model(), TOKENIZER, EXAMPLES)
    assert (found.takes_roles, found.n, found.max_delta, found.max_kl) == (False, 6, 0.0, 0.0)


def test_equality_of_untrained_layer_is_exact():
    found = token_equality(model(RoleConfig()), TOKENIZER, EXAMPLES)
    assert (found.takes_roles, found.max_delta, found.mean_kl, found.changed) == (True, 0.0, 0.0, Rate(0, 6))


def test_equality_differences_equal_two_runs():
    made = model(RoleConfig.preset("channel", embedding_std=0.5)).train()
    found = token_equality(made, TOKENIZER, EXAMPLES)
    assert made.training
    made.eval()
    deltas, divergences, changed = [], [], 0
    for example in EXAMPLES:
        inputs = rolesafe.encode(TOKENIZER, example.messages, add_generation_prompt=True)
        target = {"user": 2, "tool": 4}[example.target]
        table = torch.arange(5)
        table[0], table[target] = target, 0
        with torch.no_grad():
            p, q = (
                made(input_ids=inputs["input_ids"], role_ids=r).logits[0, -1].double()
                for r in (inputs["role_ids"], table[inputs["role_ids"]])
            )
        deltas.append((p - q).abs())
        divergences.append(torch.nn.functional.kl_div(q.log_softmax(-1), p.softmax(-1), reduction="sum"))
        changed += int(p.argmax() != q.argmax())
    assert found.max_delta == pytest.approx(float(torch.stack(deltas).max()), rel=1e-5)
    assert found.mean_delta == pytest.approx(float(torch.stack(deltas).mean()), rel=1e-5)
    assert found.max_kl == pytest.approx(float(max(divergences)), rel=1e-5)
    assert found.mean_kl == pytest.approx(float(sum(divergences)) / 6, rel=1e-5)
    assert found.changed == Rate(changed, 6)
    assert found.max_delta > found.tolerance > 0


@pytest.mark.parametrize("place", ["first", "middle", "last"])
def test_exchange_finds_the_system_text_anywhere(place):
    asked = generate("test", 4, seed=2, difficulty=Difficulty(place=place, turns=1))
    assert all(exchange(e, RoleConfig()) == (0, {"user": 2, "tool": 4}[e.target]) for e in asked)
    found = token_equality(model(RoleConfig.preset("channel", embedding_std=0.5)), TOKENIZER, asked)
    assert found.n == 4
    assert found.max_delta > found.tolerance


def talk(*roles: str):
    messages = tuple({"role": role, "content": "It is gold."} for role in roles)
    return replace(EXAMPLES[0], messages=messages, target="user")


@pytest.mark.parametrize(
    ("roles", "config", "pair"),
    [
        (("user", "system"), RoleConfig(), (0, 2)),
        (("assistant", "developer", "user", "system"), RoleConfig(), (1, 2)),
        (("assistant", "user"), RoleConfig(), None),
        (("user", "system"), RoleConfig(privileged=("user", "system")), (0, 2)),  # never the attacker's own
        (("user", "system"), RoleConfig(privileged=("developer",)), None),
        (("user", "system"), RoleConfig(privileged=()), (0, 2)),
        (("user",), RoleConfig(privileged=()), None),
    ],
)
def test_exchange_returns_the_two_roles(roles, config, pair):
    assert exchange(talk(*roles), config) == pair


def test_equality_without_privileged_role_is_refused():
    with pytest.raises(ValueError, match="`examples`: expected a message of a privileged role in each"):
        token_equality(model(RoleConfig()), TOKENIZER, [*EXAMPLES, talk("user")])


def test_equality_without_examples_is_refused():
    with pytest.raises(ValueError, match="`examples`: expected at least one example, got none"):
        token_equality(model(), TOKENIZER, [])
