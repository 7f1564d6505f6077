"""Mechanisms that do not fit a model raise before anything is changed; reports of `inspect`."""

from __future__ import annotations

from pathlib import Path

import pytest

import rolesafe
from rolesafe import RoleConfig
from rolesafe.patching.inspect import count_presets, inspect_model
from rolesafe.presets import PRESETS
from tests.models import new_config, tiny_model


@pytest.mark.parametrize(
    "family, config, message",
    [
        ("llama", RoleConfig(steered_heads=((2, 0),)), "expected a layer below 2, got the pair (2, 0)"),
        ("llama", RoleConfig(steered_heads=((1, 4),)), "expected a head below 4 in layer 1, got the pair (1, 4)"),
        ("jamba", RoleConfig(steered_heads=((0, 0),)), "expected a head below 0 in layer 0, got the pair (0, 0)"),
        ("hy_v4", RoleConfig(rotation=1.0), "`rotation`: expected 0.0, got 1.0"),
        ("hy_v4", RoleConfig(shift=True), "`shift`: expected False, got True"),
        ("hy_v4", RoleConfig(embedding="all"), "`embedding`: expected 'none', got 'all'"),
        ("llama", RoleConfig(mass_target=0.2, impl="triton"), "`mass_target`: expected 0.0 with impl='triton'"),
    ],
)  # fmt: skip
def test_unfitting_mechanism_raises(family: str, config: RoleConfig, message: str) -> None:
    model = tiny_model(family)
    with pytest.raises(ValueError) as error:
        rolesafe.patch(model, config)
    assert message in str(error.value)
    assert not rolesafe.patching.is_patched(model)


def test_rotation_of_odd_hidden_size_raises() -> None:
    model = tiny_model("llama", config=new_config("llama", hidden_size=33, num_attention_heads=3, head_dim=16,
                                                  num_key_value_heads=3))  # fmt: skip
    with pytest.raises(ValueError, match=r"`rotation`: expected .* even hidden size.* got 33"):
        rolesafe.patch(model, RoleConfig(rotation=0.5))
    assert not rolesafe.patching.is_patched(model)


def test_steered_heads_per_layer_are_accepted() -> None:
    rolesafe.patch(tiny_model("jamba"), RoleConfig(steered_heads=((1, 3),), boost=2.0))


# ------------------------------------------------------------------------------------------------------------- reports


def test_inspect_lists_every_part(tmp_path: Path) -> None:
    tiny_model("llama").save_pretrained(tmp_path)
    config = RoleConfig(
        embedding="all", rotation=1.5707963, shift=True, position_gap=7, own_positions=True, boost=3.0, dampen=0.5,
        steered_heads=((0, 1), (1, 1)), mass_target=0.2, integrity=True, share=0.5,
    )  # fmt: skip
    report = inspect_model(str(tmp_path), config)
    lines = dict(report.lines())
    assert lines["data tokens"] == "rotated by 90 degrees, shifted (user, tool)"
    assert lines["positions"] == "counted per channel, others 7 later"
    assert lines["attention weights"] == "privileged keys x 3, other keys x 0.5 (2 heads)"
    assert lines["mass target"] == "0.2"
    assert lines["integrity"] == "privileged queries see privileged keys only"
    assert report.role_parameters == {
        "role embeddings": 3 * 5 * 64, "shift": 64 * 64 + 64, "bias": 2 * 4 * 25, "reserved share": 2 * 4,
    }  # fmt: skip
    assert report.backends == {"CPU": "sdpa", "CUDA": "sdpa"}
    assert (
        not {"data tokens", "positions", "attention weights", "mass target", "integrity"}
        & dict(inspect_model(str(tmp_path), RoleConfig()).lines()).keys()
    )


def test_count_presets_equals_formula(tmp_path: Path) -> None:
    """Counted by patching; presets that do not fit give the reason."""
    tiny_model("llama").save_pretrained(tmp_path)
    kind, counts = count_presets(str(tmp_path))
    assert kind == "LlamaForCausalLM"
    assert list(counts) == list(PRESETS)
    for name, count in counts.items():
        if name == "pft":
            assert "`position_gap`: expected less than the 128 positions" in str(count)
        else:
            assert count == RoleConfig.preset(name).count_parameters(layers=2, hidden=64, heads=4), name
    rolesafe.patch(tiny_model("llama"), RoleConfig()).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"`model`: expected a plain model, got .* has a role layer"):
        count_presets(str(tmp_path))
    tiny_model("bloom").save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="`model`: BloomForCausalLM cannot be patched"):
        count_presets(str(tmp_path))
