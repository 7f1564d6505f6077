"""Every saver seals a patched model or raises; every loader loads all of it or raises."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from huggingface_hub.errors import StrictDataclassError
from torch import nn
from transformers import AutoModel, AutoModelForCausalLM, LlamaForCausalLM, PreTrainedModel

import rolesafe
from rolesafe import RoleConfig
from rolesafe.patching.seal import is_sealed_shape
from tests.models import base_model, plain, random_batch, randomise, role_model

FULL = RoleConfig.preset("channel", share=0.25)


def accelerate_save(model: PreTrainedModel, directory: Path) -> None:
    accelerate = pytest.importorskip("accelerate")
    accelerate.Accelerator(cpu=True).save_model(model, directory)


def accelerate_save_offloaded(model: PreTrainedModel, directory: Path) -> None:
    accelerate = pytest.importorskip("accelerate")
    offloaded = accelerate.cpu_offload(model, execution_device=torch.device("cpu"))
    accelerate.Accelerator(cpu=True).save_model(offloaded, directory)


def save_wrapped(model: PreTrainedModel, directory: Path) -> None:
    """Save as the Trainer does for a model in an unknown wrapper."""
    wrapper = nn.Module()
    wrapper.add_module("inner", model)
    states = {name.removeprefix("inner."): tensor for name, tensor in wrapper.state_dict().items()}
    safetensors.torch.save_file(states, directory / "model.safetensors", metadata={"format": "pt"})


WAYS: dict[str, Callable[[Any, Path], Any]] = {
    "save_pretrained": lambda model, path: model.save_pretrained(path),
    "inner save_pretrained": lambda model, path: model.base_model.save_pretrained(path),
    "accelerator.save_model": accelerate_save,
    "accelerator.save_model, offloaded": accelerate_save_offloaded,
    "safetensors.save_model": lambda model, path: safetensors.torch.save_model(
        model, str(path / "model.safetensors"), metadata={"format": "pt"}
    ),
    "state dict in a file": lambda model, path: safetensors.torch.save_file(
        model.state_dict(), path / "model.safetensors", metadata={"format": "pt"}
    ),
    "state dict in a pickle": lambda model, path: torch.save(model.state_dict(), path / "pytorch_model.bin"),
    "inner state dict": lambda model, path: safetensors.torch.save_file(
        model.base_model.state_dict(), path / "model.safetensors", metadata={"format": "pt"}
    ),
    "wrapper": save_wrapped,
}


@pytest.mark.parametrize("config", ["own", "of the base"])
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("family", ["llama", "gpt2", "olmo"])
def test_plain_loader_raises_for_every_saver(family: str, way: str, config: str, tmp_path: Path) -> None:
    model = role_model(family, FULL)
    WAYS[way](model, tmp_path)
    if config == "own":
        model.config.save_pretrained(tmp_path)
    else:
        base_model(family).config.save_pretrained(tmp_path)
    kind, inner = type(base_model(family)), type(base_model(family).base_model)
    for loader in (AutoModelForCausalLM, AutoModel, kind, inner):
        with pytest.raises((OSError, RuntimeError, ValueError, TypeError, StrictDataclassError)):
            loader.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match="`path`"):
        rolesafe.from_pretrained(tmp_path)


@pytest.mark.parametrize("way", ["accelerator.save_model", "safetensors.save_model", "state dict in a file"])
def test_other_savers_load_with_verify_off(way: str, tmp_path: Path) -> None:
    model = role_model("llama", FULL)
    WAYS[way](model, tmp_path)
    model.config.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"expected `strength`.*strength=1.0"):
        rolesafe.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"found no rolesafe_seal.json.*verify=False"):
        rolesafe.from_pretrained(tmp_path, strength=1.0)
    loaded = rolesafe.from_pretrained(tmp_path, verify=False, strength=1.0)
    with torch.no_grad():
        assert torch.equal(loaded(**random_batch()).logits, model(**random_batch()).logits)


def test_own_config_does_not_load_plain(tmp_path: Path) -> None:
    role_model("llama", FULL).save_pretrained(tmp_path)
    mine = base_model("llama").config
    with pytest.raises(RuntimeError, match="ignore_mismatched_sizes"):
        AutoModelForCausalLM.from_pretrained(tmp_path, config=mine)
    forced = AutoModelForCausalLM.from_pretrained(tmp_path, config=mine, ignore_mismatched_sizes=True)
    assert type(forced) is LlamaForCausalLM  # what the README says under Limits


def test_state_dict_into_plain_model_raises() -> None:
    states = role_model("llama", FULL).state_dict()
    with pytest.raises(RuntimeError, match="size mismatch"):
        base_model("llama").load_state_dict(states, strict=False)
    assert sum(is_sealed_shape(tuple(tensor.shape)) for tensor in states.values()) == 1


def test_base_state_dict_into_patched_model_raises() -> None:
    with pytest.raises(RuntimeError, match="holds the base model and no role layer"):
        role_model("llama", FULL).load_state_dict(base_model("llama").state_dict(), strict=False)


@pytest.mark.parametrize("inner", [False, True])
def test_state_dict_into_patched_model_loads(inner: bool) -> None:
    source, target = role_model("llama", FULL), role_model("llama", FULL, trained=False)
    if inner:
        target.base_model.load_state_dict(source.base_model.state_dict())
    else:
        target.load_state_dict(source.state_dict())
    with torch.no_grad():
        assert torch.equal(target(**random_batch()).logits, source(**random_batch()).logits)


def test_state_dict_after_unpatch_is_plain() -> None:
    states = rolesafe.unpatch(role_model("llama", FULL)).state_dict()
    base_model("llama").load_state_dict(states)
    assert not any(is_sealed_shape(tuple(tensor.shape)) for tensor in states.values())


def test_unpatch_restores_config_class(tmp_path: Path) -> None:
    base = base_model("llama")
    model = rolesafe.unpatch(role_model("llama", FULL))
    assert type(model.config) is type(base.config)
    assert model.config.to_json_string() == base.config.to_json_string()


def test_patched_config_round_trip(tmp_path: Path) -> None:
    model = role_model("llama", FULL)
    model.config.save_pretrained(tmp_path)
    assert type(model.config).from_pretrained(tmp_path).vocab_size == model.config.vocab_size


def test_save_removes_earlier_weights(tmp_path: Path) -> None:
    first, second = role_model("llama", FULL), randomise(role_model("llama", FULL), seed=1)
    for model, options in ((first, {}), (second, {"max_shard_size": "60KB"}), (first, {})):
        model.save_pretrained(tmp_path, **options)
        with torch.no_grad():
            logits = rolesafe.from_pretrained(tmp_path)(**random_batch()).logits
            assert torch.equal(logits, model(**random_batch()).logits)


# ------------------------------------------------------------------------------------------------ several in one folder


def test_second_checkpoint_in_folder_raises(tmp_path: Path) -> None:
    base_model("llama").save_pretrained(tmp_path / "base")
    model = rolesafe.patch(AutoModelForCausalLM.from_pretrained(tmp_path / "base"), FULL)
    rolesafe.save_role_layer(model, tmp_path / "alone")
    with pytest.raises(ValueError, match=r"`save_directory`: .*holds role_config.json"):
        model.save_pretrained(tmp_path / "alone")
    model.save_pretrained(tmp_path / "whole")
    with pytest.raises(ValueError, match=r"`directory`: expected a folder without a model"):
        rolesafe.save_role_layer(model, tmp_path / "whole")
    for name in ("adapter_config.json", "adapter_model.safetensors", "pytorch_model.bin"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).write_text("{}")
        with pytest.raises(ValueError, match=f"`save_directory`: .*holds {name}"):
            model.save_pretrained(tmp_path / name)


@pytest.mark.parametrize("planted", ["role_config.json", "adapter_config.json"])
def test_planted_file_with_checkpoint_raises(planted: str, tmp_path: Path) -> None:
    base_model("llama").save_pretrained(tmp_path / "base")
    model = rolesafe.patch(AutoModelForCausalLM.from_pretrained(tmp_path / "base"), FULL)
    rolesafe.save_role_layer(model, tmp_path / "alone")
    model.save_pretrained(tmp_path / "whole")
    if planted == "role_config.json":
        shutil.copy(tmp_path / "alone" / planted, tmp_path / "whole")
    else:
        (tmp_path / "whole" / planted).write_text("{}")
    with pytest.raises(ValueError, match="expected one checkpoint"):
        rolesafe.from_pretrained(tmp_path / "whole")


# ------------------------------------------------------------------------------------------------------- refused ways


class MyLlama(LlamaForCausalLM):
    """Class outside of transformers."""


def test_save_unknown_class_raises(tmp_path: Path) -> None:
    model = rolesafe.patch(MyLlama(base_model("llama").config), FULL)
    with pytest.raises(ValueError, match=r"`model`: expected a LlamaForCausalLM .*MyLlama.*save_role_layer"):
        model.save_pretrained(tmp_path)
    rolesafe.save_role_layer(randomise(model), tmp_path, base_model="mine")
    loaded = rolesafe.from_pretrained(tmp_path, base_model=MyLlama(base_model("llama").config))
    for (_, ours), (_, theirs) in zip(
        rolesafe.named_role_parameters(loaded), rolesafe.named_role_parameters(model), strict=True
    ):
        assert torch.equal(ours, theirs)


def test_transformers_adapters_raise(tmp_path: Path) -> None:
    model = role_model("llama", FULL)
    for method in (model.add_adapter, model.load_adapter):
        with pytest.raises(RuntimeError, match=r"peft.get_peft_model"):
            method("anything")


def test_patched_class_from_pretrained_raises(tmp_path: Path) -> None:
    base_model("llama").save_pretrained(tmp_path)
    with pytest.raises(TypeError, match=r"rolesafe.from_pretrained"):
        type(role_model("llama")).from_pretrained(tmp_path)


@pytest.mark.parametrize(
    "name, value",
    [("config", None), ("state_dict", {}), ("key_mapping", {}), ("gguf_file", "x"), ("nonsense", 1),
     ("use_safetensors", False)],
)  # fmt: skip
def test_unsupported_argument_raises(name: str, value: Any, tmp_path: Path) -> None:
    role_model("llama", FULL).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=f"`{name}`: expected"):
        rolesafe.from_pretrained(tmp_path, **{name: value})


def test_save_without_role_parameters_raises(tmp_path: Path) -> None:
    model = role_model("llama", FULL)
    states = {name: tensor for name, tensor in model.state_dict().items() if "rolesafe_" not in name}
    with pytest.raises(ValueError, match="`state_dict`: expected all role parameters"):
        model.save_pretrained(tmp_path, state_dict=states)
    with pytest.raises(ValueError, match="`path`"):
        rolesafe.from_pretrained(tmp_path)


def test_gathered_state_dict_is_sealed_on_saving(tmp_path: Path) -> None:
    model = role_model("llama", FULL)
    model.save_pretrained(tmp_path, state_dict={name: p.detach() for name, p in model.named_parameters()})
    saved = safetensors.torch.load_file(tmp_path / "model.safetensors")
    assert any(is_sealed_shape(tuple(tensor.shape)) for tensor in saved.values())
    with torch.no_grad():
        assert torch.equal(rolesafe.from_pretrained(tmp_path)(**random_batch()).logits, model(**random_batch()).logits)


# ------------------------------------------------------------------------------------------------------- after a patch


def test_constant_share_stays_constant(tmp_path: Path) -> None:
    config = RoleConfig.preset("channel", share=0.3, learn_share=False)
    model = rolesafe.patch(base_model("llama"), config)
    model.save_pretrained(tmp_path)
    loaded = rolesafe.from_pretrained(tmp_path).train()
    shares = [p for name, p in rolesafe.named_role_parameters(loaded) if name.endswith("share")]
    assert shares
    assert not any(p.requires_grad for p in shares)
    for share in shares:
        share.requires_grad_(True)  # as wrappers do for all they save
    batch = random_batch()
    loaded(**batch, labels=batch["input_ids"]).loss.backward()
    assert all(share.grad is None for share in shares)


def test_unpatched_model_rejects_roles() -> None:
    model, batch = rolesafe.unpatch(role_model("llama", FULL)), random_batch()
    with pytest.raises(ValueError, match=r"`role_ids`: expected None.*rolesafe.unpatch"):
        model(**batch)
    model(**plain(batch))
    rolesafe.patch(model, FULL)(**batch)


def test_patch_wrapped_model_raises() -> None:
    model = base_model("llama")
    model.model = nn.DataParallel(model.model)
    with pytest.raises(ValueError, match=r"`model`: .*not sharded or wrapped yet, found DataParallel"):
        rolesafe.patch(model, FULL)


@pytest.fixture
def one_process(tmp_path: Path) -> Iterator[None]:
    """Start a process group of this process alone."""
    dist = torch.distributed
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'group'}", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.skipif(not torch.distributed.is_available(), reason="a torch without distributed")
def test_patch_sharded_raises_and_sharded_patch_saves(one_process: None, tmp_path: Path) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh("cpu", (1,))
    late = base_model("llama")
    fully_shard(late.model.layers[0], mesh=mesh)
    with pytest.raises(ValueError, match=r"`model`: .*not sharded or wrapped yet.*rolesafe.patch first"):
        rolesafe.patch(late, FULL)
    model = role_model("llama", FULL)
    expected = model(**random_batch()).logits.detach()
    for layer in model.model.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    model.load_state_dict(model.state_dict())
    full = {name: tensor.full_tensor() for name, tensor in model.state_dict().items()}
    model.save_pretrained(tmp_path / "saved", state_dict=full)
    with torch.no_grad():
        assert torch.equal(rolesafe.from_pretrained(tmp_path / "saved")(**random_batch()).logits, expected)


# ------------------------------------------------------------------------------------------------------------ bases


@pytest.fixture
def alone(tmp_path: Path) -> Path:
    base_model("llama").save_pretrained(tmp_path / "base")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    rolesafe.save_role_layer(randomise(rolesafe.patch(model, FULL)), tmp_path / "alone")
    return tmp_path / "alone"


def test_pickled_base_raises(alone: Path, tmp_path: Path) -> None:
    (tmp_path / "base" / "model.safetensors").unlink()
    torch.save(base_model("llama").state_dict(), tmp_path / "base" / "pytorch_model.bin")
    with pytest.raises(ValueError, match="pickle runs code"):
        rolesafe.from_pretrained(alone)


@pytest.mark.parametrize("change", ["missing", "left over"])
def test_incomplete_base_raises(alone: Path, tmp_path: Path, change: str) -> None:
    file = tmp_path / "base" / "model.safetensors"
    tensors = safetensors.torch.load_file(file)
    if change == "missing":
        del tensors["model.layers.1.mlp.up_proj.weight"]
    else:
        tensors["model.layers.1.mlp.extra.weight"] = torch.zeros(2)
    safetensors.torch.save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=f"are {change}: model.layers.1.mlp"):
        rolesafe.from_pretrained(alone)


@pytest.mark.parametrize("key", ["attn_implementation", "_attn_implementation"])
def test_hub_attention_in_config_raises(alone: Path, tmp_path: Path, key: str) -> None:
    file = tmp_path / "base" / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), key: "org/kernel"}))
    with pytest.raises(ValueError, match=r"expected one of .*got 'org/kernel'"):
        rolesafe.from_pretrained(alone)


@pytest.mark.parametrize("name", ["org/kernel", "org/kernel@main:f", {"text_config": "org/kernel"}])
def test_hub_attention_argument_raises(alone: Path, name: Any) -> None:
    with pytest.raises(ValueError, match=r"`attn_implementation`: expected one of"):
        rolesafe.from_pretrained(alone, attn_implementation=name)
