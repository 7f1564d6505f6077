"""Saving and loading: exact, and never without the role layer."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, PreTrainedModel

import rolesafe
from rolesafe import RoleConfig
from rolesafe.patching import is_patched
from tests.models import base_model, plain, random_batch, randomise, role_model

FULL = RoleConfig.preset("channel", share=0.25)
SEVERAL = ["llama", "gpt2", "gemma3_text", "gpt_oss", "mixtral", "opt", "phi3", "gpt_neox"]


def output(model: PreTrainedModel, batch: dict[str, Tensor] | None = None) -> Tensor:
    with torch.no_grad():
        return model(**(batch or random_batch())).logits


@pytest.fixture
def sealed(tmp_path: Path) -> Path:
    """Return a directory with a saved patched llama."""
    role_model("llama", FULL).save_pretrained(tmp_path / "sealed")
    return tmp_path / "sealed"


@pytest.fixture
def role_layer(tmp_path: Path) -> Path:
    """Return a directory with the role layer of a llama; its base is in `tmp_path / "base"`."""
    base_model("llama").save_pretrained(tmp_path / "base")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    rolesafe.save_role_layer(randomise(rolesafe.patch(model, FULL)), tmp_path / "roles")
    return tmp_path / "roles"


# ------------------------------------------------------------------------------------------------------- round trips


@pytest.mark.parametrize("config", [RoleConfig(), FULL, RoleConfig(layers=(1,), embedding="input")])
@pytest.mark.parametrize("family", SEVERAL)
def test_round_trip_is_exact(family: str, config: RoleConfig, tmp_path: Path) -> None:
    model = role_model(family, config)
    model.save_pretrained(tmp_path)
    loaded = rolesafe.from_pretrained(tmp_path)
    assert type(loaded) is type(model)
    assert loaded.rolesafe_config == config
    assert not loaded.training
    assert torch.equal(output(loaded), output(model))
    assert loaded.state_dict().keys() == model.state_dict().keys()
    again = tmp_path / "again"
    loaded.save_pretrained(again)
    assert torch.equal(output(rolesafe.from_pretrained(str(again))), output(model))
    assert (again / "config.json").read_text() == (tmp_path / "config.json").read_text()


@pytest.mark.parametrize("family", ["bamba", "gemma3n_text", "lfm2", "minimax", "nemotron_h"])
def test_round_trip_config_with_infinities(family: str, tmp_path: Path) -> None:
    model = role_model(family, RoleConfig(share=0.25))
    model.save_pretrained(tmp_path)
    assert torch.equal(output(rolesafe.from_pretrained(tmp_path)), output(model))


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_from_pretrained_eager_base_uses_reference(family: str, tmp_path: Path) -> None:
    model = role_model(family, attn="eager", trained=False)
    model.save_pretrained(tmp_path)
    loaded = rolesafe.from_pretrained(tmp_path, attn_implementation="eager")
    assert loaded.rolesafe_layers.impl == "reference"
    assert torch.equal(output(loaded), output(model))


@pytest.mark.parametrize("family", ["llama", "mixtral"])
def test_shards(family: str, tmp_path: Path) -> None:
    model = role_model(family, FULL)
    model.save_pretrained(tmp_path, max_shard_size="50KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    assert torch.equal(output(rolesafe.from_pretrained(tmp_path)), output(model))


@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_oss"])
def test_loading_in_bfloat16(family: str, tmp_path: Path) -> None:
    model = role_model(family, FULL)
    model.save_pretrained(tmp_path)
    loaded = rolesafe.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert {p.dtype for _, p in rolesafe.named_role_parameters(loaded)} == {torch.float32}
    assert loaded.dtype == torch.bfloat16
    for (name, ours), (_, theirs) in zip(
        rolesafe.named_role_parameters(loaded), rolesafe.named_role_parameters(model), strict=True
    ):
        assert torch.equal(ours, theirs), name


def test_no_pickle_is_written(sealed: Path, role_layer: Path) -> None:
    for directory in (sealed, role_layer):
        assert {file.suffix for file in directory.iterdir()} <= {".json", ".safetensors"}


def test_from_pretrained_with_subfolder(tmp_path: Path) -> None:
    model = role_model("llama", FULL)
    model.save_pretrained(tmp_path / "inner")
    assert torch.equal(output(rolesafe.from_pretrained(tmp_path, subfolder="inner")), output(model))


def test_unpatched_save_loads_plain(tmp_path: Path) -> None:
    model = rolesafe.unpatch(role_model("llama", FULL))
    model.save_pretrained(tmp_path)
    assert "rolesafe" not in (tmp_path / "config.json").read_text()
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert not is_patched(loaded)
    batch = plain(random_batch())
    assert torch.equal(output(loaded, batch), output(base_model("llama"), batch))


def test_loaded_model_unpatches_and_trains(sealed: Path) -> None:
    loaded = rolesafe.from_pretrained(sealed)
    batch = random_batch()
    loaded.train()(**batch, labels=batch["input_ids"]).loss.backward()
    assert all(p.grad is not None and p.grad.any() for _, p in rolesafe.named_role_parameters(loaded))
    bare = rolesafe.unpatch(loaded).eval()
    assert bare.config._attn_implementation == "sdpa"
    assert torch.equal(output(bare, plain(batch)), output(base_model("llama"), plain(batch)))


# ------------------------------------------------------------------------------------------------- never without roles


SEALED = "model type `rolesafe`|This checkpoint has a role layer. Load it with rolesafe.from_pretrained"


def plain_loaders(family: str) -> dict[str, Callable[[Path], Any]]:
    base = type(base_model(family))
    return {
        "AutoModelForCausalLM": lambda path: AutoModelForCausalLM.from_pretrained(path),
        "AutoModelForCausalLM, ignoring sizes": lambda path: AutoModelForCausalLM.from_pretrained(
            path, ignore_mismatched_sizes=True
        ),
        "AutoModel": lambda path: AutoModel.from_pretrained(path),
        "AutoConfig": lambda path: AutoConfig.from_pretrained(path),
        "pipeline": lambda path: transformers.pipeline("text-generation", str(path)),
        "the class": lambda path: base.from_pretrained(path),
        "the class, ignoring sizes": lambda path: base.from_pretrained(path, ignore_mismatched_sizes=True),
        "the inner class": lambda path: type(base_model(family).base_model).from_pretrained(path),
        "the configuration and its class": lambda path: base(base.config_class.from_pretrained(path)),
    }


@pytest.mark.parametrize("loader", plain_loaders("llama"))
@pytest.mark.parametrize("family", SEVERAL)
def test_plain_loaders_raise(family: str, loader: str, tmp_path: Path) -> None:
    role_model(family, FULL).save_pretrained(tmp_path)
    with pytest.raises(Exception, match=SEALED):
        plain_loaders(family)[loader](tmp_path)


@pytest.mark.parametrize("loader", plain_loaders("llama"))
def test_same_loaders_load_plain_checkpoint(loader: str, tmp_path: Path) -> None:
    """Control for the tests above. A pipeline also needs a tokenizer, which is missing."""
    base_model("llama").save_pretrained(tmp_path)
    if loader == "pipeline":
        with pytest.raises(Exception, match="tokenizer"):
            plain_loaders("llama")[loader](tmp_path)
    else:
        assert plain_loaders("llama")[loader](tmp_path) is not None


def test_plain_loader_after_patched_one_is_plain(sealed: Path) -> None:
    rolesafe.from_pretrained(sealed)
    for load in plain_loaders("llama").values():
        with pytest.raises(Exception, match=SEALED):
            load(sealed)


@pytest.mark.parametrize("lost", ["rolesafe_heads.bias", "rolesafe_heads.share", "rolesafe_embedding.weight"])
def test_missing_role_tensors_raise(sealed: Path, lost: str) -> None:
    file = sealed / "model.safetensors"
    tensors = load_file(file)
    names = [name for name in tensors if name.endswith(lost)]
    assert len(names) == 2
    del tensors[names[-1]]
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"`path`: the names, types or shapes of its weights .*verify=False"):
        rolesafe.from_pretrained(sealed)
    with pytest.raises(ValueError, match=r"`path`: role parameters are missing.*" + lost):
        rolesafe.from_pretrained(sealed, verify=False)


def edit(file: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    values = json.loads(file.read_text())
    change(values)
    file.write_text(json.dumps(values))


EDITS: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "unknown key": (lambda c: c["rolesafe"].update(moat=True), "moat"),
    "newer role configuration": (lambda c: c["rolesafe"].update(format_version=99), "newer rolesafe"),
    "newer format": (lambda c: c.update(format_version=99), "newer rolesafe"),
    "bad value": (lambda c: c["rolesafe"].update(share=2.0), "`share`"),
}


@pytest.mark.parametrize("what", EDITS)
def test_unknown_config_format_raises(sealed: Path, role_layer: Path, what: str) -> None:
    change, message = EDITS[what]
    for directory, name in ((sealed, "config.json"), (role_layer, "role_config.json")):
        edit(directory / name, change)
        with pytest.raises(ValueError, match=message):
            rolesafe.from_pretrained(directory)


def test_other_class_in_config_raises(sealed: Path) -> None:
    edit(sealed / "config.json", lambda c: c["base_config"].update(architectures=["NoSuchForCausalLM"]))
    with pytest.raises(ValueError, match=r"`path`: config.json .*differs from its digest in rolesafe_seal.json"):
        rolesafe.from_pretrained(sealed)
    with pytest.raises(ValueError, match="NoSuchForCausalLM"):
        rolesafe.from_pretrained(sealed, verify=False)


def test_plain_checkpoint_raises(tmp_path: Path) -> None:
    base_model("llama").save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"plain 'llama' model.*rolesafe\.patch\("):
        rolesafe.from_pretrained(tmp_path)
    (tmp_path / "nothing").mkdir()
    with pytest.raises(ValueError, match=r"no config\.json"):
        rolesafe.from_pretrained(tmp_path / "nothing")


def test_remote_code_raises(sealed: Path) -> None:
    with pytest.raises(ValueError, match="`trust_remote_code`"):
        rolesafe.from_pretrained(sealed, trust_remote_code=True)


def test_push_to_hub_on_save_raises(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="`push_to_hub`"):
        role_model("llama").save_pretrained(tmp_path, push_to_hub=True)
    assert not list(tmp_path.iterdir())


# --------------------------------------------------------------------------------------------------- a role layer alone


@pytest.mark.parametrize("family", SEVERAL)
def test_role_layer_alone_loads_with_base(family: str, tmp_path: Path) -> None:
    base_model(family).save_pretrained(tmp_path / "base")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    randomise(rolesafe.patch(model, FULL))
    rolesafe.save_role_layer(model, tmp_path / "roles")
    files = {file.name: file.stat().st_size for file in (tmp_path / "roles").iterdir()}
    assert set(files) == {"role_layer.safetensors", "role_config.json"}
    numbers = sum(p.numel() for _, p in rolesafe.named_role_parameters(model))
    assert 4 * numbers <= files["role_layer.safetensors"] < 4 * numbers + 2000
    expected = output(model)
    assert torch.equal(output(rolesafe.from_pretrained(tmp_path / "roles")), expected)
    for base in (tmp_path / "base", str(tmp_path / "base"), base_model(family)):
        assert torch.equal(output(rolesafe.from_pretrained(tmp_path / "roles", base_model=base)), expected)


def test_save_role_layer_without_base_name_raises(tmp_path: Path) -> None:
    model = role_model("llama", FULL)
    with pytest.raises(ValueError, match="`base_model`"):
        rolesafe.save_role_layer(model, tmp_path)
    rolesafe.save_role_layer(model, tmp_path, base_model="some/where")
    assert json.loads((tmp_path / "role_config.json").read_text())["base_model_name_or_path"] == "some/where"
    with pytest.raises(ValueError, match="patched by rolesafe"):
        rolesafe.save_role_layer(base_model("llama"), tmp_path)


def test_role_layer_with_wrong_base_raises(role_layer: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="`base_model`: expected a 'llama' model, got 'gpt2'"):
        rolesafe.from_pretrained(role_layer, base_model=base_model("gpt2"))
    model = base_model("llama")
    wider = copy.deepcopy(model.config)
    wider.num_hidden_layers = 3
    wider.layer_types = None
    with pytest.raises(ValueError, match="does not fit the base model"):
        rolesafe.from_pretrained(role_layer, base_model=type(model)(wider))
    wider = copy.deepcopy(model.config)
    wider.hidden_size = 32
    with pytest.raises(ValueError, match="has shape"):
        rolesafe.from_pretrained(role_layer, base_model=type(model)(wider))
    with pytest.raises(ValueError, match="another configuration"):
        rolesafe.from_pretrained(role_layer, base_model=role_model("llama", RoleConfig()))


def test_base_model_with_whole_checkpoint_raises(sealed: Path) -> None:
    with pytest.raises(ValueError, match="`base_model`: expected None for a whole model"):
        rolesafe.from_pretrained(sealed, base_model=base_model("llama"))


@pytest.mark.parametrize("change", ["lost", "added"])
def test_role_layer_with_other_tensors_raises(role_layer: Path, change: str) -> None:
    file = role_layer / "role_layer.safetensors"
    tensors = load_file(file)
    if change == "lost":
        tensors.pop(next(iter(tensors)))
    else:
        tensors["model.layers.7.self_attn.rolesafe_heads.bias"] = torch.zeros(4, 5, 5)
    save_file(tensors, file)
    with pytest.raises(ValueError, match="do not belong together"):
        rolesafe.from_pretrained(role_layer)
    with pytest.raises(ValueError, match="does not fit the base model"):
        rolesafe.from_pretrained(role_layer, verify=False)


def test_role_layer_loads_in_bfloat16(role_layer: Path) -> None:
    loaded = rolesafe.from_pretrained(role_layer, dtype=torch.bfloat16)
    assert {p.dtype for _, p in rolesafe.named_role_parameters(loaded)} == {torch.float32}
    assert {p.dtype for name, p in loaded.named_parameters() if "rolesafe" not in name} == {torch.bfloat16}
    assert torch.isfinite(output(loaded)).all()
