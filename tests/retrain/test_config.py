"""Recipes: validation and YAML."""

from __future__ import annotations

from pathlib import Path

import pytest

from rolesafe import RoleConfig
from rolesafe.retrain import RetrainConfig

ROOT = Path(__file__).resolve().parents[2]


def config(**changes) -> RetrainConfig:
    return RetrainConfig(**{"model": "m", "data": "d", **changes})


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"preset": "plain", "steps": 3, "lora": 4, "replies": "self", "tool_share": 0.5},
        {"preset": "share", "role_config": {"share": 0.1, "layers": (0, 1)}, "epochs": 0.5, "anneal": 0.25},
        {"preset": "channel", "dedicated": "chosen", "held_out": ["a.json", "b/c"]},
        {"shares": {"injected": 1}, "learning_rate": 1e-12, "model": "na: [me]"},
    ],
)
def test_config_survives_yaml(changes, tmp_path):
    one = config(**changes)
    again = RetrainConfig.from_yaml(one.to_yaml())
    assert again.roles() == one.roles()
    assert again.to_dict() == one.to_dict()
    one.save(tmp_path / "r.yaml")
    assert RetrainConfig.load(tmp_path / "r.yaml", seed=7).seed == 7


def test_yaml_number_without_a_point_is_a_number():
    assert RetrainConfig.from_yaml("model: m\ndata: d\nlearning_rate: 1e-4\n").learning_rate == 1e-4


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("model: m\ndata: d\nlerning_rate: 1\n", "`lerning_rate`: expected a key of a recipe"),
        ("model: m\ndata: d\nmodel: n\n", "expected each key once, got 'model'"),
        ("model: m\n", "`data`: expected a path or hub id, got none"),
        ("- model\n", "expected a YAML mapping"),
        ("model: !!python/object/apply:os.system [ls]\n", "expected YAML"),
        ("model: [", "expected YAML"),
        ("1: m\n", "expected names as keys"),
        ("format_version: 99\nmodel: m\ndata: d\n", "`format_version`: expected 1 to 1, got 99"),
    ],
)
def test_yaml_that_is_no_recipe_raises(text, said):
    with pytest.raises(ValueError, match=said):
        RetrainConfig.from_yaml(text)


def test_load_names_the_file(tmp_path):
    (tmp_path / "r.yaml").write_text("x: 1")
    with pytest.raises(ValueError, match=r"r\.yaml: `x`"):
        RetrainConfig.load(tmp_path / "r.yaml")


@pytest.mark.parametrize(
    "changes",
    [
        {"model": ""}, {"data": None}, {"preset": "best"}, {"role_config": {"shar": 1}}, {"role_config": 3},
        {"rows": 0}, {"steps": True}, {"epochs": 0}, {"batch_size": 1.5}, {"learning_rate": float("nan")},
        {"role_learning_rate": 0}, {"role_learning_rate": {}}, {"role_learning_rate": {"bias": 0}},
        {"warmup": 1}, {"weight_decay": -1}, {"max_length": 2}, {"bad_rows": "skip"},
        {"dtype": "fp8"}, {"lora": 0}, {"gradient_checkpointing": 1}, {"anneal": 2}, {"anneal": "no"}, {"seed": -1},
        {"shares": {"cleen": 1}}, {"shares": {"clean": -1}}, {"shares": {"clean": 0}}, {"tool_share": 1.5},
        {"replies": "mine"}, {"max_new_tokens": 0}, {"save_steps": 0}, {"logging_steps": 0},
        {"dedicated": "last"}, {"held_out": 3}, {"held_out": [""]}, {"held_out": [None]},
    ],
    ids=str,
)  # fmt: skip
def test_config_bad_value_is_named(changes):
    (name,) = changes
    with pytest.raises(ValueError, match=f"`{name}"):
        config(**changes)


def test_config_contradiction_raises():
    with pytest.raises(ValueError, match="`epochs`: expected None with steps=3"):
        config(steps=3, epochs=1)
    with pytest.raises(ValueError, match="`role_config`: expected none with preset='plain'"):
        config(preset="plain", role_config={"share": 0.1})
    with pytest.raises(ValueError, match="`role_config`: expected the roles 'system' and 'user'"):
        config(preset="bias", role_config={"roles": ("boss", "assistant"), "privileged": ("boss",)})
    with pytest.raises(ValueError, match=r"`embedding_roles`: expected some of .*, got 'tool'"):
        config(role_config={"roles": ("system", "user", "assistant", "web"), "privileged": ("system",)})


@pytest.mark.parametrize(
    "changes",
    [
        {"preset": "plain"},
        {"preset": "bias"},
        {"preset": "dedicated", "role_config": {"dedicated_heads": ((0, 1),)}},
    ],
    ids=str,
)
def test_choice_without_heads_to_choose_raises(changes):
    with pytest.raises(ValueError, match="`dedicated`: expected 'first' with"):
        config(dedicated="chosen", **changes)


def test_config_changes_the_preset():
    assert config(preset="share", role_config={"share": 0.1}).roles() == RoleConfig.preset("share", share=0.1)
    assert config(preset="plain").roles() is None


@pytest.mark.parametrize("path", sorted((ROOT / "recipes").glob("*.yaml")), ids=lambda path: path.name)
def test_committed_recipe_loads(path):
    found = RetrainConfig.load(path)
    assert set(found.to_dict()) >= {"model", "seed"}
