"""Checkpoints with contradicting configuration and weights raise."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import rolesafe
from rolesafe import RoleConfig
from tests.models import role_model


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    role_model("llama", RoleConfig.preset("channel")).save_pretrained(tmp_path / "saved")
    return tmp_path / "saved"


def change_config(directory: Path, **changes: object) -> None:
    path = directory / "config.json"
    about = json.loads(path.read_text())
    about["rolesafe"].update(changes)
    path.write_text(json.dumps(about))


@pytest.mark.parametrize("changes", [{"embedding": "none"}, {"share": 0.0}, {"bias": False}, {"layers": [0]}])
def test_unmentioned_role_parameters_raise(saved, changes):
    if "layers" in changes:
        changes = {**changes, "integrity": False}
    change_config(saved, **changes)
    with pytest.raises(ValueError, match=r"hold role parameters that its config.json does not mention.*rolesafe_"):
        rolesafe.from_pretrained(saved, verify=False)


@pytest.mark.parametrize("option", ["ignore_mismatched_sizes", "output_loading_info"])
def test_unsafe_options_raise(saved, option):
    with pytest.raises(ValueError, match=f"`{option}`: expected False, got True"):
        rolesafe.from_pretrained(saved, **{option: True})


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_parameter_with_nan_or_infinity_raises(saved, number):
    file = saved / "model.safetensors"
    tensors = load_file(file)
    name = next(name for name in tensors if name.endswith("rolesafe_heads.bias"))
    tensors[name][0, 0, 0] = number
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"rolesafe_heads.bias in .* holds NaN or infinite numbers"):
        rolesafe.from_pretrained(saved, verify=False)


def test_bias_with_minus_infinity_loads(saved):
    file = saved / "model.safetensors"
    tensors = load_file(file)
    name = next(name for name in tensors if name.endswith("rolesafe_heads.bias"))
    tensors[name][0, 2, 4] = -torch.inf
    save_file(tensors, file, metadata={"format": "pt"})
    assert (
        dict(rolesafe.named_role_parameters(rolesafe.from_pretrained(saved, verify=False)))[name][0, 2, 4] == -torch.inf
    )


def test_role_layer_on_sealed_base_raises(saved, tmp_path):
    model = rolesafe.from_pretrained(saved)
    with pytest.raises(ValueError, match=r"`base_model`: expected a plain base model, got .*which has a role layer"):
        rolesafe.save_role_layer(model, tmp_path / "alone")
