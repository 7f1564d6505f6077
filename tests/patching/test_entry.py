"""Roles enter with the tokens: replaced, wrapped or copied modules get them, or raise."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

import rolesafe
from rolesafe import RoleConfig
from rolesafe.mechanisms import RolePart, get_strength
from rolesafe.patching.install import _dtype_and_device
from tests.models import base_model, logits, plain, random_batch, randomise, role_model, tiny_model

FULL = RoleConfig.preset("channel", share=0.3)
SEPARATE = RoleConfig.preset("separate", share=0.3)
families = pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3_text", "opt"])
GREEDY: dict[str, Any] = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}


def expected(model: Any, batch: dict[str, Tensor]) -> Tensor:
    with torch.no_grad():
        return logits(model, batch)


# --------------------------------------------------------------------------------------------- other ways to call it


@pytest.mark.parametrize("config", [RoleConfig(), FULL, SEPARATE], ids=["bias", "channel", "separate"])
@families
def test_inner_model_takes_roles(family: str, config: RoleConfig) -> None:
    model, batch = role_model(family, config), random_batch()
    with torch.no_grad():
        hidden = model(**batch, output_hidden_states=True).hidden_states[-1]
        inner = model.base_model(**batch)[0]
    real = batch["attention_mask"].bool()
    assert torch.equal(inner[real], hidden[real])
    with pytest.raises(ValueError, match="`role_ids`: expected the role of every token"):
        model.base_model(**plain(batch))


@pytest.mark.parametrize("when", ["before", "after"])
@families
def test_instance_forward_gets_roles(family: str, when: str) -> None:
    """As device hooks of accelerate and TRL's chunked losses set it."""
    hooks = pytest.importorskip("accelerate.hooks")
    batch = random_batch()
    model = base_model(family)
    if when == "before":
        hooks.add_hook_to_module(model, hooks.ModelHook())
    randomise(rolesafe.patch(model, FULL))
    if when == "after":
        hooks.add_hook_to_module(model, hooks.ModelHook())
    assert torch.equal(expected(model, batch), expected(role_model(family, FULL), batch))
    assert model.generate(**batch, **GREEDY).shape == (2, 20)
    with pytest.raises(ValueError, match="`role_ids`"):
        model(**plain(batch))
    rolesafe.unpatch(model)
    assert torch.equal(expected(model, plain(batch)), expected(base_model(family), plain(batch)))


def test_generate_unknown_argument_raises() -> None:
    with pytest.raises(ValueError, match="role_idz"):
        role_model("llama").generate(**random_batch(), **GREEDY, role_idz=1)


@pytest.mark.parametrize("config", [RoleConfig(), FULL, SEPARATE], ids=["bias", "channel", "separate"])
def test_data_parallel_replica_takes_part(config: RoleConfig) -> None:
    """`torch.nn.parallel.replicate`, on a CPU: shallow copies of the modules that share hooks and parameters."""
    model, batch = role_model("llama", config), random_batch()
    modules = list(model.modules())
    replicas = {module: module._replicate_for_data_parallel() for module in modules}
    for module, replica in replicas.items():
        for name, child in module._modules.items():
            setattr(replica, name, None if child is None else replicas[child])
        for name, parameter in module._parameters.items():
            setattr(replica, name, parameter)
    assert torch.equal(expected(replicas[model], batch), expected(model, batch))
    with pytest.raises(ValueError, match="`role_ids`"):
        replicas[model](**plain(batch))


@families
def test_copied_model_is_patched(family: str) -> None:
    model, batch = role_model(family, FULL), random_batch()
    twin = copy.deepcopy(model)
    assert torch.equal(expected(twin, batch), expected(model, batch))
    rolesafe.unpatch(model)
    with pytest.raises(ValueError, match="`role_ids`"):
        twin(**plain(batch))


@pytest.mark.parametrize(
    "names", [["rolesafe_heads"], ["rolesafe_embedding"], ["rolesafe_heads", "rolesafe_embedding"]]
)
def test_parts_wrapped_by_peft_take_part(names: list[str]) -> None:
    peft = pytest.importorskip("peft")
    model, batch = role_model("llama", FULL), random_batch()
    before = expected(model, batch)
    wrapped = peft.get_peft_model(
        model, peft.LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=names, task_type="CAUSAL_LM")
    )
    assert torch.equal(expected(wrapped, batch), before)
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if "modules_to_save" in name:
                parameter.mul_(2)
    assert (expected(wrapped, batch) - before).abs().max() > 1e-3
    with wrapped.disable_adapter():
        assert torch.equal(expected(wrapped, batch), before)


@pytest.mark.parametrize("what", ["layer", "attention", "part", "model"])
def test_compiled_submodules_take_part(what: str) -> None:
    model, batch = role_model("llama", FULL), random_batch()
    before = expected(model, batch)
    layer = model.model.layers[1]
    if what == "layer":
        model.model.layers[1] = torch.compile(layer, backend="eager")
    elif what == "attention":
        layer.self_attn = torch.compile(layer.self_attn, backend="eager")
    elif what == "part":
        layer.self_attn.rolesafe_heads = torch.compile(layer.self_attn.rolesafe_heads, backend="eager")
    else:
        model.model = torch.compile(model.model, backend="eager")
    torch.testing.assert_close(expected(model, batch), before, rtol=0, atol=1e-5)
    torch._dynamo.reset()


def test_wrapper_dropping_arguments_raises() -> None:
    class Drops(nn.Module):
        def __init__(self, model: nn.Module) -> None:
            super().__init__()
            self.model = model

        def forward(self, input_ids: Tensor, **kwargs: Any) -> Any:
            return self.model(input_ids)

    with pytest.raises(ValueError, match=r"`role_ids`: expected the role of every token.*rolesafe\.encode"):
        Drops(role_model("llama"))(**random_batch())


def test_jit_trace_raises() -> None:
    class Positional(nn.Module):
        def __init__(self, model: nn.Module) -> None:
            super().__init__()
            self.model = model

        def forward(self, input_ids: Tensor, role_ids: Tensor) -> Tensor:
            logits: Tensor = self.model(input_ids, role_ids=role_ids, use_cache=False).logits
            return logits

    batch = random_batch()
    with pytest.raises(RuntimeError, match=r"`torch\.jit\.trace`: .*torch\.export"):
        torch.jit.trace(Positional(role_model("llama")), (batch["input_ids"], batch["role_ids"]))


# ------------------------------------------------------------------------------------------- layers after the patch


def _append(layers: Any) -> None:
    layers.append(copy.deepcopy(layers[1]))


def _append_plain(layers: Any) -> None:
    layers.append(tiny_model("llama").model.layers[0])


def _remove(layers: Any) -> None:
    del layers[1]


def _replace(layers: Any) -> None:
    layers[1] = tiny_model("llama").model.layers[1]


def _share(layers: Any) -> None:
    layers[1] = layers[0]


def _swap(layers: Any) -> None:
    layers[0], layers[1] = layers[1], layers[0]


@pytest.mark.parametrize("change", [_append, _append_plain, _remove, _replace, _share, _swap])
@pytest.mark.parametrize("config", [RoleConfig(), FULL], ids=["bias", "channel"])
def test_changed_layers_raise(change: Any, config: RoleConfig) -> None:
    model = role_model("llama", config)
    change(model.model.layers)
    model.config.num_hidden_layers = len(model.model.layers)
    with pytest.raises(RuntimeError, match=r"expected the 2 decoder layers that were patched.*rolesafe\.unpatch"):
        model(**random_batch(), use_cache=False)
    rolesafe.unpatch(model)
    model(**plain(random_batch()), use_cache=False)


def test_attention_of_other_layer_raises() -> None:
    model = role_model("llama")
    model.model.layers[1].self_attn = model.model.layers[0].self_attn
    with pytest.raises(RuntimeError, match="1 layers ran without roles"):
        model(**random_batch(), use_cache=False)


@pytest.mark.parametrize("config", [RoleConfig(), FULL], ids=["bias", "channel"])
def test_early_exit_drafts_with_first_layers(config: RoleConfig) -> None:
    model, batch = role_model("llama", config), {name: x[:1] for name, x in random_batch(padding=0).items()}
    greedy = model.generate(**batch, **GREEDY)
    assert torch.equal(model.generate(**batch, **GREEDY, assistant_early_exit=1), greedy)


@pytest.mark.parametrize("config", [RoleConfig(), FULL], ids=["bias", "channel"])
def test_layer_beyond_the_depth_that_runs_without_roles_raises(config: RoleConfig) -> None:
    """GPT-2 runs all of its layers, whatever their number in its configuration."""
    model, batch = role_model("gpt2", config), random_batch()
    batch["use_cache"] = False  # type: ignore[assignment]
    before = expected(model, batch)
    model.config.num_hidden_layers = 1
    assert torch.equal(expected(model, batch), before)
    attention = model.transformer.h[1].attn
    attention.config = copy.deepcopy(attention.config)
    attention.config._attn_implementation = "sdpa"
    with pytest.raises(RuntimeError, match="1 layers ran without roles"):
        expected(model, batch)
    rolesafe.unpatch(model)
    assert not any(layer._forward_pre_hooks for layer in model.transformer.h)


@pytest.mark.parametrize("which", [0, 1, -1])
def test_parts_with_several_strengths_raise(which: int) -> None:
    model = role_model("llama", FULL)
    [part for part in model.modules() if isinstance(part, RolePart)][which].strength = 0.25
    with pytest.raises(RuntimeError, match=r"`strength`: expected one strength of all parts.*\[0.25, 1.0\]"):
        model(**random_batch())
    with pytest.raises(ValueError, match=r"`strength`: expected one strength of all parts.*\[0.25, 1.0\]"):
        get_strength(model)


# ------------------------------------------------------------------------------------------------- dtype and device


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_role_parameters_train_in_half_precision(dtype: torch.dtype) -> None:
    model, batch = rolesafe.patch(tiny_model("llama", dtype=dtype), FULL).train(), random_batch()
    start = {name: p.detach().clone() for name, p in rolesafe.named_role_parameters(model)}
    assert {p.dtype for p in start.values()} == {torch.float32}
    optimizer = torch.optim.AdamW([p for _, p in rolesafe.named_role_parameters(model)], lr=1e-4, weight_decay=0)
    for _ in range(3):
        optimizer.zero_grad()
        model(**batch, labels=batch["input_ids"]).loss.backward()
        optimizer.step()
    for name, parameter in rolesafe.named_role_parameters(model):
        moved = (parameter.detach() - start[name]).abs().max()
        assert moved > 1e-4 or not name.endswith("share"), name
        assert moved > 0, name


@pytest.mark.parametrize("how", ["half", "bfloat16", "to", "to like", "double", "float", "dtype of a device"])
def test_dtype_conversion_keeps_role_parameters_wide(how: str) -> None:
    model = role_model("llama", FULL)
    before = {name: p.detach().clone() for name, p in rolesafe.named_role_parameters(model)}
    convert: dict[str, Any] = {
        "to": lambda: model.to(torch.bfloat16),
        "to like": lambda: model.to(torch.zeros(1, dtype=torch.float16)),
        "dtype of a device": lambda: model.to("cpu", torch.bfloat16),
    }
    convert.get(how, lambda: getattr(model, how)())()
    wide = torch.float64 if how == "double" else torch.float32
    for name, parameter in rolesafe.named_role_parameters(model):
        assert parameter.dtype == wide
        assert torch.equal(parameter.float(), before[name])
    assert model.to("meta").device.type == "meta"
    assert {p.device.type for _, p in rolesafe.named_role_parameters(model)} == {"meta"}
    model.to_empty(device="cpu")
    assert {p.dtype for _, p in rolesafe.named_role_parameters(model)} == {wide}


@pytest.mark.parametrize("kind", ["4-bit", "GPTQ"])
def test_quantised_layer_role_parameters_on_its_device(kind: str) -> None:
    """Integer weights, as parameters or as buffers; "meta" replaces a GPU."""
    model = tiny_model("llama", dtype=torch.bfloat16)
    for layer in model.model.layers:
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            linear = getattr(layer.self_attn, name)
            packed = torch.zeros(linear.weight.numel() // 2, 1, dtype=torch.uint8)
            if kind == "4-bit":
                linear.weight = nn.Parameter(packed, requires_grad=False)
            else:
                del linear.weight
                linear.register_buffer("qweight", packed)
    rolesafe.patch(model.to("meta"), FULL)
    assert {(p.dtype, p.device.type) for _, p in rolesafe.named_role_parameters(model)} == {(torch.float32, "meta")}


def test_module_without_tensors_uses_layer_device() -> None:
    assert _dtype_and_device(nn.Identity(), nn.Linear(1, 1, device="meta"))[1].type == "meta"
    assert _dtype_and_device(nn.Linear(1, 1, dtype=torch.float64))[0] == torch.float64


@pytest.mark.parametrize("alone", [False, True])
def test_offloaded_model_is_patched(tmp_path: Path, alone: bool) -> None:
    pytest.importorskip("accelerate")
    batch, trained = random_batch(), role_model("llama", FULL)
    base_model("llama").save_pretrained(tmp_path / "base")
    where = dict.fromkeys(("model.embed_tokens", "model.layers.0", "model.norm", "model.rotary_emb", "lm_head"), "cpu")
    options: dict[str, Any] = {"device_map": {**where, "model.layers.1": "disk"}, "offload_folder": tmp_path / "disk"}
    if alone:
        rolesafe.save_role_layer(trained, tmp_path / "roles", base_model=str(tmp_path / "base"))
        model = rolesafe.from_pretrained(tmp_path / "roles", **options)
    else:
        base = AutoModelForCausalLM.from_pretrained(tmp_path / "base", **options)
        model = randomise(rolesafe.patch(base, FULL))
    assert {p.device.type for _, p in rolesafe.named_role_parameters(model)} == {"cpu"}
    assert torch.equal(expected(model, batch), expected(trained, batch))
    assert model.generate(**batch, **GREEDY).shape == (2, 20)


def test_patch_sharded_model_raises(tmp_path: Path) -> None:
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'rendezvous'}", rank=0, world_size=1)
    try:
        model, mesh = base_model("llama"), init_device_mesh("cpu", (1,))
        for layer in model.model.layers:
            fully_shard(layer, mesh=mesh)
        with pytest.raises(
            ValueError, match=r"`model`: expected a model that is not sharded.*call rolesafe.patch first"
        ):
            rolesafe.patch(fully_shard(model, mesh=mesh), FULL)
        model = role_model("llama", FULL)
        before = expected(model, random_batch())
        for layer in model.model.layers:
            fully_shard(layer, mesh=mesh)
        assert torch.equal(expected(fully_shard(model, mesh=mesh), random_batch()), before)
    finally:
        dist.destroy_process_group()
