"""A mechanism that does not fit a model says so before anything is changed; and what a report says of each."""

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
        ("llama", RoleConfig(steered_heads=((2, 0),)), "got the pair (2, 0), but the model has 2 layers; expected"),
        ("llama", RoleConfig(steered_heads=((1, 4),)), "got the pair (1, 4), but layer 1 has 4 heads; expected"),
        ("jamba", RoleConfig(steered_heads=((0, 0),)), "got the pair (0, 0), but layer 0 has 0 heads; expected"),
        ("hy_v4", RoleConfig(rotation=1.0), "`rotation`: expected 0.0, got 1.0; the layers of"),
        ("hy_v4", RoleConfig(shift=True), "`shift`: expected False, got True; the layers of"),
        ("hy_v4", RoleConfig(embedding="all"), "`embedding`: expected 'none', got 'all'; the layers of"),
        ("llama", RoleConfig(mass_target=0.2, impl="triton"), "`mass_target`: expected 0.0 with impl='triton'"),
    ],
)  # fmt: skip
def test_message(family: str, config: RoleConfig, message: str) -> None:
    model = tiny_model(family)
    with pytest.raises(ValueError) as error:
        rolesafe.patch(model, config)
    assert message in str(error.value)
    assert not rolesafe.patching.is_patched(model)


def test_an_odd_hidden_size_cannot_be_rotated() -> None:
    model = tiny_model("llama", config=new_config("llama", hidden_size=33, num_attention_heads=3, head_dim=16,
                                                  num_key_value_heads=3))  # fmt: skip
    with pytest.raises(ValueError, match=r"`rotation`: turns pairs .* expected an even hidden size, .* 33"):
        rolesafe.patch(model, RoleConfig(rotation=0.5))
    assert not rolesafe.patching.is_patched(model)


def test_other_heads_can_be_steered_in_layers_of_their_own() -> None:
    rolesafe.patch(tiny_model("jamba"), RoleConfig(steered_heads=((1, 3),), boost=2.0))


# ------------------------------------------------------------------------------------------------------------- reports


def test_inspect_tells_of_every_part(tmp_path: Path) -> None:
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
    assert lines["integrity"] == "privileged queries look at privileged keys only"
    assert report.role_parameters == {
        "role embeddings": 3 * 5 * 64, "shift": 64 * 64 + 64, "bias": 2 * 4 * 25, "reserved share": 2 * 4,
    }  # fmt: skip
    assert report.backends == {"CPU": "sdpa", "CUDA": "sdpa"}
    assert (
        not {"data tokens", "positions", "attention weights", "mass target", "integrity"}
        & dict(inspect_model(str(tmp_path), RoleConfig()).lines()).keys()
    )


def test_presets_are_counted_for_a_model(tmp_path: Path) -> None:
    """By patching it; the formula agrees; what does not fit says why."""
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
    with pytest.raises(ValueError, match=r"`model`: .* has a role layer already; expected a plain model"):
        count_presets(str(tmp_path))
    tiny_model("bloom").save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="`model`: BloomForCausalLM cannot be patched"):
        count_presets(str(tmp_path))
