"""Configurations of attacks: validation, plain dicts, suites, and the call forms of earlier versions."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest

import rolesafe.attacks
from rolesafe.attacks import (
    ATTACKS,
    TEXT_ATTACKS,
    AttackConfig,
    AttackResult,
    BeastConfig,
    DilutionConfig,
    GCGConfig,
    MimicryConfig,
    TextAttackConfig,
    attack,
    attackable,
    suite,
    transfer,
)
from rolesafe.tasks import generate
from tests.attacks.stubs import Scripted, make_tokenizer

EXAMPLES = generate("test", 6, 0)


@pytest.mark.parametrize(
    ("name", "fields", "message"),
    [
        ("dilution", {"repeats": 0}, "`repeats`: expected a whole number >= 1, got 0"),
        ("none", {"batch_size": 0}, "`batch_size`: expected a whole number >= 1, got 0"),
        ("none", {"max_new_tokens": 1.5}, "`max_new_tokens`: expected a whole number >= 1, got 1.5"),
        ("none", {"seed": "x"}, "`seed`: expected a whole number, got 'x'"),
        ("mimicry", {"place": 1}, r"`place`: expected one of \('before', 'after'\), got 1"),
        ("mimicry", {"place": "middle"}, r"`place`: expected one of \('before', 'after'\), got 'middle'"),
        ("position", {"at": 1.5}, r"`at`: expected a finite number in \[0, 1\], got 1.5"),
        ("position", {"at": "half"}, r"`at`: expected a finite number in \[0, 1\], got 'half'"),
        ("position", {"words": 7.5}, "`words`: expected a whole number >= 0, got 7.5"),
        ("position", {"system": "middle"}, r"`system`: expected one of \('first', 'last'\), got 'middle'"),
        ("fake-system", {"delimiters": 1}, "`delimiters`: expected True or False, got 1"),
        ("gcg", {"num_steps": True}, "`num_steps`: expected a whole number >= 1, got True"),
        ("gcg", {"weight": float("nan")}, "`weight`: expected a finite number >= 0, got nan"),
        ("gcg", {"mellowmax_alpha": 0}, "`mellowmax_alpha`: expected a finite number > 0, got 0"),
        ("gcg", {"draft": None}, "`draft`: expected a text, got None"),
        ("gcg", {"init": 3}, "`init`: expected a text or None, got 3"),
    ],
)
def test_config_with_bad_value_names_the_field(name: str, fields: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ATTACKS[name](**fields)


@pytest.mark.parametrize("name", ATTACKS)
def test_config_defaults_are_the_first_point(name: str) -> None:
    kind = ATTACKS[name]
    assert kind.__name__.endswith("Config")
    assert kind().parameters == dict(kind.grid[0])
    assert [list(kind(**point).parameters) for point in (*kind.grid, *kind.quick)] == [list(kind.grid[0])] * (
        len(kind.grid) + len(kind.quick)
    )


@pytest.mark.parametrize("config", suite(), ids=lambda config: config.label)
def test_config_through_json_is_equal(config: AttackConfig) -> None:
    values = json.loads(json.dumps(config.to_dict()))
    assert list(values) == ["name", "parameters", "seed", "batch_size", "max_new_tokens"]
    assert AttackConfig.from_dict(values) == config


def test_config_rare_parameter_is_recorded() -> None:
    config = GCGConfig(n_replace=2, seed=3)
    assert "n_replace" not in GCGConfig().parameters
    assert config.parameters["n_replace"] == 2
    assert "n_replace=2" in config.label
    assert AttackConfig.from_dict(config.to_dict()) == config


def test_config_from_record_of_first_version_is_read() -> None:
    parameters = {"length": 4, "beams": 2, "branches": 3, "temperature": 1.0, "objective": "ce", "carrier": "request"}
    old = {"name": "beam", "parameters": parameters, "seed": 5, "batch_size": 60, "max_new_tokens": 16}
    assert AttackConfig.from_dict(old) == BeastConfig(length=4, beams=2, branches=3, seed=5, batch_size=60)
    assert AttackConfig.from_dict(old).to_dict() == old


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"name": "magic"}, r"`name`: expected one of \['banned-decoding', 'beam'.*, got the unknown attack 'magic'"),
        ({}, "`name`: expected one of"),
        ({"name": "dilution", "parameters": {"times": 3}}, r"`parameters`: .* 'dilution', got \['times'\]"),
    ],
)
def test_config_from_bad_dict_raises(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AttackConfig.from_dict(values)


def test_config_is_frozen_and_can_be_replaced() -> None:
    config = MimicryConfig()
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.place = "before"  # type: ignore[misc]
    assert dataclasses.replace(config, seed=1).label == config.label == "mimicry(place=after)"
    with pytest.raises(ValueError, match="`place`"):
        dataclasses.replace(config, place="middle")


# -------------------------------------------------------------------------------------------------------------- suites


def test_suite_has_every_attack_and_point() -> None:
    assert list(dict.fromkeys(config.name for config in suite())) == list(ATTACKS)
    assert len(suite()) == sum(len(kind.grid) for kind in ATTACKS.values())
    assert len(suite(quick=True)) < len(suite())
    assert suite(["dilution"], quick=True)[0].label == "dilution(repeats=1)"
    assert all(
        (c.seed, c.batch_size, c.max_new_tokens) == (5, 7, 3) for c in suite(seed=5, batch_size=7, max_new_tokens=3)
    )
    assert {name for name, kind in ATTACKS.items() if issubclass(kind, TextAttackConfig)} == set(TEXT_ATTACKS)


def test_suite_with_bad_names_raises() -> None:
    for names in ([], "gcg"):
        with pytest.raises(ValueError, match="`names`: expected a sequence of names"):
            suite(names)
    with pytest.raises(ValueError, match="unknown attack 'magic'"):
        suite(["magic"])


# --------------------------------------------------------------------------------------------------- earlier versions


def test_config_old_form_names_the_new_class() -> None:
    with pytest.raises(TypeError, match=r"Write `GCGConfig\(num_steps=250\)` instead of `AttackConfig\(name='gcg'"):
        AttackConfig(name="gcg", parameters={"num_steps": 5})
    with pytest.raises(TypeError, match=r"Write `NoAttackConfig\(seed=0\)`"):
        AttackConfig(name="none")
    with pytest.raises(TypeError, match="`TextAttackConfig`: expected the class of one attack"):
        TextAttackConfig()


def test_attack_old_arguments_name_the_new_ones() -> None:
    model, tokenizer, config = Scripted(str), make_tokenizer(), DilutionConfig()
    with pytest.raises(TypeError, match=r"`attack\(model, tokenizer, examples, config, goal=...\)`"):
        attack(model, tokenizer, EXAMPLES, None, config)
    with pytest.raises(TypeError, match=r"`attack`: expected `attack\(model, tokenizer, examples"):
        attack(model, tokenizer, conversations=EXAMPLES, config=config)
    with pytest.raises(TypeError, match=r"`attackable`: expected `attackable\(examples\)`"):
        attackable(conversations=EXAMPLES)
    found = AttackResult(config=config, goal=None, outcomes=())
    with pytest.raises(TypeError, match=r"`transfer`: expected `transfer\(model, tokenizer, examples, found\)`"):
        transfer(model, tokenizer, conversations=EXAMPLES, found=found)


@pytest.mark.parametrize(("name", "new"), [("AttackFamily", "TextAttackConfig"), ("Search", "SearchAttackConfig")])
def test_old_public_name_names_the_new_one(name: str, new: str) -> None:
    with pytest.raises(ImportError, match=f"`rolesafe.attacks.{name}`: expected {new}"):
        getattr(rolesafe.attacks, name)
