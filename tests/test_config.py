"""`RoleConfig`: accepted and rejected values, error messages, JSON round trip."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rolesafe import RoleConfig
from rolesafe.config import EMBEDDINGS, FORMAT_VERSION, IMPLEMENTATIONS
from rolesafe.presets import PRESETS

NAN, INF = float("nan"), float("inf")
NAMES = st.text("abcdefghijklmnopqrstuvwxyz_é", min_size=1, max_size=8).filter(lambda name: name == name.lower())


@st.composite
def configs(draw: Any) -> RoleConfig:
    roles = draw(st.lists(NAMES, min_size=1, max_size=16, unique=True))
    generated = draw(st.sampled_from(roles))
    others = [name for name in roles if name != generated]
    privileged = draw(st.lists(st.sampled_from(others), unique=True)) if others else []
    parts: dict[str, Any] = {}
    learn = draw(st.booleans())
    if privileged:
        parts = {
            "position_gap": draw(st.integers(0, 600)),
            "own_positions": draw(st.booleans()),
            "boost": draw(st.floats(1, 20)),
            "dampen": draw(st.floats(0.01, 1)),
            "mass_target": draw(st.floats(0, 1)),
            "dedicated_heads": draw(st.integers(0, 64) | st.floats(0, 1)),
            "share": (share := draw(st.floats(0, 1))),
            "share_floor": draw(st.floats(0, share)) if learn else 0.0,
            "integrity": draw(st.booleans()),
        }
    layers = draw(st.none() | st.lists(st.integers(0, 99), unique=True, min_size=1, max_size=5).map(tuple))
    pairs = st.tuples(st.integers(0, 99) if layers is None else st.sampled_from(layers), st.integers(0, 31))
    if draw(st.booleans()):
        parts["data_roles"] = tuple(draw(st.lists(st.sampled_from(roles), min_size=1, unique=True)))
        parts |= {"rotation": draw(st.floats(-10, 10)), "shift": draw(st.booleans())}
    embedding = draw(st.sampled_from(EMBEDDINGS))
    if embedding != "none" and draw(st.booleans()):
        parts["embedding_roles"] = tuple(draw(st.lists(st.sampled_from(roles), min_size=1, unique=True)))
    return RoleConfig(
        roles=tuple(roles),
        privileged=tuple(privileged),
        generated=generated,
        embedding=embedding,
        embedding_std=draw(st.floats(0, 10)),
        bias=draw(st.booleans()),
        learn_share=learn,
        layers=layers,
        steered_heads=draw(st.none() | st.lists(pairs, unique=True, min_size=1, max_size=5).map(tuple)),
        impl=draw(st.sampled_from(IMPLEMENTATIONS)),
        **parts,
    )


@settings(max_examples=100, deadline=None, derandomize=True)
@given(configs())
def test_json_round_trip(config: RoleConfig) -> None:
    again = RoleConfig.from_dict(json.loads(json.dumps(config.to_dict(), allow_nan=False)))
    assert again == config
    assert hash(again) == hash(config)
    assert type(again.dedicated_heads) is type(config.dedicated_heads)  # 1 head is not a share of 1.0
    assert [config.roles[i] for i in config.privileged_ids] == [x for x in config.roles if x in config.privileged]
    assert config.roles[config.generated_id] == config.generated


def test_defaults() -> None:
    config = RoleConfig()
    assert config.roles == ("system", "developer", "user", "assistant", "tool")
    assert config.privileged_ids == (0, 1)
    assert config.generated_id == 3
    assert config.to_dict()["format_version"] == FORMAT_VERSION


def test_is_frozen_and_takes_names_only() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        RoleConfig().share = 0.5  # type: ignore[misc]
    with pytest.raises(TypeError):
        RoleConfig(("system", "user"))  # type: ignore[call-arg, misc]


def test_lists_become_tuples() -> None:
    config = RoleConfig(roles=["a", "b"], privileged=["a"], generated="b", layers=[0, 2])  # type: ignore[arg-type]
    assert (config.roles, config.privileged, config.layers) == (("a", "b"), ("a",), (0, 2))


def test_presets() -> None:
    assert RoleConfig.presets() == (
        "bias", "dedicated", "added", "share", "integrity", "embedding", "ise", "air", "aside", "pft", "drip",
        "instaboost", "pasta", "spotlight", "channel", "pretrained", "separate",
    )  # fmt: skip
    assert RoleConfig.preset("bias") == RoleConfig()
    ise = RoleConfig.preset("ise")
    assert (ise.embedding, ise.bias) == ("input", False)
    channel = RoleConfig.preset("channel", share=0.1)
    assert (channel.embedding, channel.bias, channel.integrity, channel.share) == ("layers", True, True, 0.1)
    assert channel.count_dedicated(8) == 4
    assert not RoleConfig.preset("channel", integrity=False).integrity
    assert RoleConfig.preset("separate") == RoleConfig.preset("channel", own_positions=True)
    with pytest.raises(ValueError, match=r"`name`: expected one of \['added', 'air', 'aside', .* got 'best'"):
        RoleConfig.preset("best")


def test_roles_more_than_16_raise() -> None:
    names = [f"role{i}" for i in range(17)]
    config = RoleConfig(roles=tuple(names[:16]), privileged=("role0",), generated="role15")
    assert config.generated_id == 15
    with pytest.raises(ValueError, match="`roles`: expected 1 to 16 names, got 17"):
        RoleConfig(roles=tuple(names), privileged=("role0",), generated="role15")


BAD: list[tuple[dict[str, Any], str]] = [
    ({"roles": ()}, "`roles`: expected 1 to 16 names, got 0"),
    ({"roles": "system"}, "`roles`: expected a sequence, got 'system'"),
    ({"roles": 3}, "`roles`: expected a sequence, got 3"),
    ({"roles": None}, "`roles`: expected a sequence, got None"),
    ({"roles": ("system", "User", "assistant")}, "`roles`: expected lower-case names, got 'User'"),
    ({"roles": ("system", "", "assistant")}, "`roles`: expected lower-case names, got ''"),
    ({"roles": ("system", 1, "assistant")}, "`roles`: expected lower-case names, got 1"),
    ({"roles": ("system", "user", "user")}, "`roles`: expected distinct names"),
    ({"privileged": ("root",)}, "'tool'), got 'root'. Declare it in `roles`"),
    ({"privileged": "system"}, "`privileged`: expected a sequence, got 'system'"),
    ({"privileged": None}, "`privileged`: expected a sequence, got None"),
    ({"privileged": ("system", "system")}, "`privileged`: expected distinct names"),
    ({"generated": "model"}, "'tool'), got 'model'"),
    ({"generated": "system"}, "`generated`: expected an unprivileged role, got 'system'"),
    ({"embedding": "output"}, "`embedding`: expected one of ('none', 'input', 'layers', 'all'), got"),
    ({"embedding_std": -0.1}, "`embedding_std`: expected a finite number >= 0, got -0.1"),
    ({"embedding_std": INF}, "`embedding_std`: expected a finite number >= 0, got inf"),
    ({"embedding_std": NAN}, "`embedding_std`: expected a finite number >= 0, got nan"),
    ({"embedding_std": "0"}, "`embedding_std`: expected a finite number >= 0, got '0'"),
    ({"impl": "flash"}, "`impl`: expected one of ('auto', 'reference', 'sdpa', 'triton'), got 'flash'"),
    ({"bias": 1}, "`bias`: expected True or False, got 1"),
    ({"learn_share": None}, "`learn_share`: expected True or False, got None"),
    ({"integrity": "yes"}, "`integrity`: expected True or False, got 'yes'"),
    ({"share": 1.01}, "`share`: expected a number in [0, 1], got 1.01"),
    ({"share": -0.01}, "`share`: expected a number in [0, 1], got -0.01"),
    ({"share": NAN}, "`share`: expected a number in [0, 1], got nan"),
    ({"share": True}, "`share`: expected a number in [0, 1], got True"),
    ({"share_floor": NAN}, "`share_floor`: expected a number in [0, 1], got nan"),
    ({"share_floor": -0.1}, "`share_floor`: expected a number in [0, 1], got -0.1"),
    ({"share_floor": True}, "`share_floor`: expected a number in [0, 1], got True"),
    ({"share_floor": 0.3}, "`share`: expected at least share_floor=0.3, got 0.0. Raise the initial share"),
    ({"share": 0.3, "share_floor": 0.3, "learn_share": False}, "`share_floor`: expected 0 with learn_share=False"),
    ({"dedicated_heads": -1}, "`dedicated_heads`: expected a share of the heads in [0, 1] (float) or"),
    ({"dedicated_heads": 1.5}, "got 1.5"),
    ({"dedicated_heads": NAN}, "got nan"),
    ({"dedicated_heads": True}, "got True"),
    ({"dedicated_heads": ()}, "`dedicated_heads`: expected at least one pair (layer, head), or 0 for none, got ()"),
    ({"dedicated_heads": ((0, 1, 2),)}, "`dedicated_heads`: expected pairs (layer, head) of indices >= 0"),
    ({"dedicated_heads": ((0, 1), (0, 1))}, "`dedicated_heads`: expected distinct pairs"),
    ({"dedicated_heads": ((2, 0),), "layers": (0, 1)}, "`dedicated_heads`: expected layers among `layers` (0, 1)"),
    ({"dedicated_heads": ((0, 1),), "steered_heads": ((0, 2),)}, "`steered_heads`: expected None with listed"),
    ({"dedicated_heads": ((0, 1),), "privileged": ()}, "expected at least one role with `dedicated_heads`"),
    ({"dedicated_heads": "all"}, "`dedicated_heads`: expected a share of the heads in [0, 1] (float) or"),
    ({"layers": (-1,)}, "`layers`: expected layer indices >= 0, got (-1,)"),
    ({"layers": (0, 0)}, "`layers`: expected distinct layer indices, got (0, 0)"),
    ({"layers": (0.5,)}, "`layers`: expected layer indices >= 0, got (0.5,)"),
    ({"layers": (True,)}, "`layers`: expected layer indices >= 0, got (True,)"),
    ({"layers": 3}, "`layers`: expected a sequence, got 3"),
    ({"privileged": (), "share": 0.1}, "`privileged`: expected at least one role with `share`, got ()"),
    (
        {"privileged": (), "position_gap": 1, "boost": 2.0},
        "expected at least one role with `position_gap`, `boost`, got ()",
    ),
    ({"privileged": (), "own_positions": True}, "expected at least one role with `own_positions`"),
    ({"privileged": (), "dampen": 0.5, "mass_target": 0.2}, "expected at least one role with `mass_target`, `dampen`"),
    ({"rotation": INF}, "`rotation`: expected a finite angle in radians, got inf"),
    ({"rotation": "90"}, "`rotation`: expected a finite angle in radians, got '90'"),
    ({"rotation": True}, "`rotation`: expected a finite angle in radians, got True"),
    ({"shift": 1}, "`shift`: expected True or False, got 1"),
    ({"own_positions": 0}, "`own_positions`: expected True or False, got 0"),
    ({"position_gap": -1}, "`position_gap`: expected a whole number of positions >= 0, got -1"),
    ({"position_gap": 0.5}, "`position_gap`: expected a whole number of positions >= 0, got 0.5"),
    ({"position_gap": True}, "`position_gap`: expected a whole number of positions >= 0, got True"),
    ({"boost": 0.5}, "`boost`: expected a finite number >= 1, got 0.5"),
    ({"boost": INF}, "`boost`: expected a finite number >= 1, got inf"),
    ({"boost": NAN}, "`boost`: expected a finite number >= 1, got nan"),
    ({"dampen": 0.0}, "`dampen`: expected a number in (0, 1], got 0.0"),
    ({"dampen": 1.5}, "`dampen`: expected a number in (0, 1], got 1.5"),
    ({"mass_target": -0.1}, "`mass_target`: expected a number in [0, 1], got -0.1"),
    ({"mass_target": 1.1}, "`mass_target`: expected a number in [0, 1], got 1.1"),
    ({"data_roles": "user"}, "`data_roles`: expected a sequence, got 'user'"),
    ({"data_roles": ("web",)}, "'tool'), got 'web'"),
    ({"data_roles": ("user", "user")}, "`data_roles`: expected distinct names"),
    ({"embedding_roles": "tool", "embedding": "input"}, "`embedding_roles`: expected a sequence, got 'tool'"),
    ({"embedding_roles": ("web",), "embedding": "input"}, "'tool'), got 'web'"),
    ({"embedding_roles": ("tool", "tool"), "embedding": "input"}, "`embedding_roles`: expected distinct names"),
    ({"embedding_roles": ("tool",)}, "got ('tool',) with embedding='none'"),
    ({"embedding_roles": (), "embedding": "layers"}, "`embedding_roles`: expected None, or some roles"),
    ({"data_roles": (), "shift": True}, "`data_roles`: expected at least one role"),
    (
        {"roles": ("system", "assistant"), "privileged": ("system",), "rotation": 1.0},
        "`data_roles`: expected at least one role",
    ),
    ({"steered_heads": 3}, "`steered_heads`: expected a sequence, got 3"),
    ({"steered_heads": ()}, "`steered_heads`: expected at least one pair (layer, head), or None for all, got ()"),
    ({"steered_heads": (3,)}, "`steered_heads`: expected pairs (layer, head) of indices >= 0, got 3"),
    ({"steered_heads": ((0, 1, 2),)}, "`steered_heads`: expected pairs (layer, head) of indices >= 0, got (0, 1, 2)"),
    ({"steered_heads": ((0, -1),)}, "`steered_heads`: expected pairs (layer, head) of indices >= 0, got (0, -1)"),
    ({"steered_heads": ((0, 1), (0, 1))}, "`steered_heads`: expected distinct pairs"),
    ({"steered_heads": ((2, 0),), "layers": (0, 1)}, "`steered_heads`: expected layers among `layers` (0, 1), got 2"),
    ({"privileged": (), "dedicated_heads": 1}, "`privileged`: expected at least one role"),
    ({"privileged": (), "integrity": True}, "`privileged`: expected at least one role"),
]


@pytest.mark.parametrize("changes, message", BAD, ids=[str(changes) for changes, _ in BAD])
def test_bad_value_raises(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as error:
        RoleConfig(**changes)
    assert message in str(error.value)


def test_embedding_roles_are_sorted_ids() -> None:
    assert RoleConfig(embedding="input").embedding_ids is None
    assert RoleConfig(embedding="input", embedding_roles=("tool", "user")).embedding_ids == (2, 4)


def test_data_roles_exclude_privileged_and_generated() -> None:
    assert RoleConfig().data_ids == (2, 4)
    assert RoleConfig(data_roles=("tool", "assistant")).data_ids == (3, 4)
    assert RoleConfig(privileged=("system",)).data_ids == (1, 2, 4)


FORMULA = {"L": 5, "d": 48, "H": 8, "R": 5}


@pytest.mark.parametrize("name", PRESETS)
def test_preset_formula_equals_count_parameters(name: str) -> None:
    expected = eval(PRESETS[name].parameters, {}, FORMULA)
    assert RoleConfig.preset(name).count_parameters(layers=5, hidden=48, heads=8) == expected


def test_count_parameters_of_some_layers() -> None:
    config = RoleConfig(layers=(0, 3), share=0.1, dedicated_heads=2)
    assert config.count_parameters(layers=5, hidden=48, heads=6) == 2 * (6 * 25 + 6)
    assert RoleConfig(share=0.1, dedicated_heads=1.0, bias=False).count_parameters(layers=5, hidden=8, heads=6) == 0


def test_presets_are_described() -> None:
    for name, preset in PRESETS.items():
        assert preset.adds and preset.guarantee and preset.parameters, name  # noqa: PT018
        assert not preset.adds.endswith("."), name
    published = {name for name, preset in PRESETS.items() if preset.paper}
    assert published == {"integrity", "ise", "air", "aside", "pft", "drip", "instaboost", "pasta", "spotlight"}
    assert {name for name in PRESETS if not PRESETS[name].trained} == {"instaboost", "pasta", "spotlight"}


def test_from_dict_format_1_loads() -> None:
    """Parts that were added later are off."""
    old = {
        "format_version": 1, "roles": ["system", "developer", "user", "assistant", "tool"],
        "privileged": ["system", "developer"], "generated": "assistant", "embedding": "layers", "embedding_std": 0.0,
        "bias": True, "dedicated_heads": 0.5, "share": 0.5, "learn_share": True, "integrity": True, "layers": None,
        "impl": "auto",
    }  # fmt: skip
    assert RoleConfig.from_dict(old) == RoleConfig.preset("channel")


def test_dedicated_heads_above_heads_raise() -> None:
    assert RoleConfig(dedicated_heads=8).count_dedicated(8) == 8
    with pytest.raises(ValueError, match=r"`dedicated_heads`: expected at most the 8 heads .* got 9"):
        RoleConfig(dedicated_heads=9).count_dedicated(8)


@pytest.mark.parametrize("version", [FORMAT_VERSION + 1, "2", 1.5, None])
def test_from_dict_newer_format_raises(version: object) -> None:
    with pytest.raises(ValueError, match=r"`format_version`: .* Upgrade rolesafe"):
        RoleConfig.from_dict({**RoleConfig().to_dict(), "format_version": version})


def test_from_dict_unknown_keys_raise() -> None:
    with pytest.raises(ValueError, match=r"`values`: expected keys .* got \['firewall', 'wall'\]"):
        RoleConfig.from_dict({**RoleConfig().to_dict(), "wall": 1, "firewall": True})


def test_from_dict_missing_keys_are_defaults() -> None:
    assert RoleConfig.from_dict({"share": 0.5}) == RoleConfig(share=0.5)


def test_layers_empty_raises():
    """An empty tuple would disable every part."""
    with pytest.raises(ValueError, match=r"`layers`: expected at least one layer index, .* got \(\)"):
        RoleConfig(layers=())
