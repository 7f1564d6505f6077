"""One-key edits of every JSON file of a checkpoint: an error with the place, or no change."""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

import rolesafe
from rolesafe import RoleConfig
from tests.models import base_model, random_batch, randomise, role_model

CONFIG = RoleConfig.preset("channel", share=0.25)
VALUES: tuple[Any, ...] = (
    None, True, 0, -1, 3, 10**9, 10**30, 0.5, -1.5, 1e300, "", "x", "org/kernel", [], [1], ["x"], [[]], {}, {"x": 1},
)  # fmt: skip
SECONDS = 10.0
"""A load that hangs takes longer; a loaded machine does not make an error take this long."""


def paths(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Iterate over the paths of the values of a JSON object."""
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
        yield (*path, key)
        if isinstance(inner, (dict, list)):
            yield from paths(inner, (*path, key))


def edits(about: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Iterate over edits: each key removed, set to each of `VALUES`, an unknown key added to each object."""
    for path in paths(about):
        for value in (..., *VALUES):
            changed = copy.deepcopy(about)
            holder: Any = changed
            for key in path[:-1]:
                holder = holder[key]
            if value is ...:
                del holder[path[-1]]
            elif type(holder[path[-1]]) is type(value) and holder[path[-1]] == value:
                continue
            else:
                holder[path[-1]] = value
            yield f"{'.'.join(map(str, path))}={'(removed)' if value is ... else repr(value)}", changed
    for path in [(), *(p for p in paths(about) if p)]:
        changed = copy.deepcopy(about)
        holder = changed
        for key in path:
            holder = holder[key]
        if isinstance(holder, dict):
            holder["moat"] = 1
            yield f"{'.'.join(map(str, path))}.moat added", changed


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("whole")
    role_model("llama", CONFIG).save_pretrained(directory, max_shard_size="60KB")
    return directory


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    base, directory = tmp_path_factory.mktemp("base"), tmp_path_factory.mktemp("alone")
    base_model("llama").save_pretrained(base)
    model = AutoModelForCausalLM.from_pretrained(base)
    rolesafe.save_role_layer(randomise(rolesafe.patch(model, CONFIG)), directory)
    return directory


def outcome(directory: Path, expected: torch.Tensor, verify: bool = True) -> str:
    """`"error"` or `"same"`; anything else fails the test."""
    started = time.process_time()  # of this process alone, whatever else the machine does
    try:
        model = rolesafe.from_pretrained(directory, verify=verify)
    except ValueError as error:
        message = str(error)
    else:
        with torch.no_grad():
            return "same" if torch.equal(model(**random_batch()).logits, expected) else "other"
    assert time.process_time() - started < SECONDS
    assert message.startswith("`"), message
    return "error"


def fuzz(directory: Path, name: str, *, every: int = 1, verify: bool = True) -> dict[str, list[str]]:
    file = directory / name
    text = file.read_text()
    with torch.no_grad():
        expected = rolesafe.from_pretrained(directory)(**random_batch()).logits
    found: dict[str, list[str]] = {"error": [], "same": [], "other": []}
    try:
        for what, changed in list(edits(json.loads(text)))[::every]:
            file.write_text(json.dumps(changed))
            found[outcome(directory, expected, verify)].append(what)
    finally:
        file.write_text(text)
    return found


@pytest.mark.parametrize(
    "name", ["config.json", "generation_config.json", "rolesafe_seal.json", "model.safetensors.index.json"]
)
def test_edited_checkpoint_raises_or_is_equal(whole: Path, name: str) -> None:
    found = fuzz(whole, name, every=5 if name == "model.safetensors.index.json" else 1)
    assert not found["other"]
    harmless = [what for what in found["same"] if name != "model.safetensors.index.json" or "weight_map" in what]
    assert not harmless
    assert len(found["error"]) > 50


def test_edited_role_config_raises(alone: Path) -> None:
    found = fuzz(alone, "role_config.json")
    assert not found["same"]
    assert not found["other"]
    assert len(found["error"]) > 400


@pytest.mark.parametrize("kind", ["whole", "alone"])
def test_edited_unverified_loads_or_raises(kind: str, request: pytest.FixtureRequest) -> None:
    directory = request.getfixturevalue(kind)
    name = "config.json" if kind == "whole" else "role_config.json"
    assert fuzz(directory, name, every=11, verify=False)["error"]


def test_edited_base_config_raises(alone: Path) -> None:
    base = Path(json.loads((alone / "role_config.json").read_text())["base_model_name_or_path"])
    file, text = base / "config.json", (base / "config.json").read_text()
    try:
        for _, changed in list(edits(json.loads(text)))[::11]:
            file.write_text(json.dumps(changed))
            outcome(alone, torch.zeros(1))
    finally:
        file.write_text(text)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", '{"a": 1', "\xff\x00", "[" * 100_000, '{"x": 1' + "0" * 9999 + "}"]
)
@pytest.mark.parametrize("name", ["config.json", "rolesafe_seal.json", "model.safetensors.index.json"])
def test_invalid_json_raises(whole: Path, name: str, text: str) -> None:
    file, before = whole / name, (whole / name).read_bytes()
    try:
        file.write_bytes(text.encode("latin-1"))
        with pytest.raises(ValueError, match=r"`path`: .*"):
            rolesafe.from_pretrained(whole)
    finally:
        file.write_bytes(before)
