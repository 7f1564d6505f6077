"""Changes after the patch keep the role layer or raise."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel, StaticCache

import rolesafe
from rolesafe import RoleConfig
from rolesafe.patching.attention import register
from tests.models import base_model, logits, plain, random_batch, role_model, with_cache

families = pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3_text", "gpt_oss"])
FULL = RoleConfig.preset("channel", share=0.3)


@pytest.fixture(autouse=True)
def _no_compiled_code_from_before() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def close(x: Tensor, y: Tensor) -> None:
    torch.testing.assert_close(x, y, rtol=0, atol=1e-5)


# --------------------------------------------------------------------------------------- attention switched elsewhere


@pytest.mark.parametrize("name", ["sdpa", "eager"])
@pytest.mark.parametrize("where", ["model", "inner model", "configuration"])
@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3_text"])
def test_other_attention_after_patch_raises(family: str, where: str, name: str, trained: bool) -> None:
    model = role_model(family, trained=trained)
    if where == "configuration":
        model.config._attn_implementation = name
    else:
        (model if where == "model" else model.base_model).set_attn_implementation(name)
    with pytest.raises(RuntimeError, match=r"ran without roles.*changed after the patch"):
        model(**random_batch())


def test_other_attention_in_compiled_code_raises() -> None:
    """An untrained model; the next test has a trained one. Around an error each function is compiled: seconds."""
    model = role_model("llama", trained=False, layers=1)
    model.set_attn_implementation("sdpa")
    with pytest.raises(RuntimeError, match=r"ran without roles.*changed after the patch"):
        torch.compile(model, backend="eager")(**random_batch())


def test_other_attention_after_compiling_raises() -> None:
    model, batch = role_model("llama", layers=1), random_batch()
    compiled = torch.compile(model, backend="eager")
    with torch.no_grad():
        compiled(**batch)
        model.set_attn_implementation("sdpa")
        with pytest.raises(RuntimeError, match=r"ran without roles.*changed after the patch"):
            compiled(**batch)


@families
def test_other_attention_in_one_layer_raises(family: str) -> None:
    model = role_model(family)
    layer = [m for m in model.modules() if hasattr(m, "rolesafe_heads")][-1]
    layer.config = copy.deepcopy(layer.config)
    layer.config._attn_implementation = "eager"
    with pytest.raises(RuntimeError, match="1 layers ran without roles"):
        model(**random_batch())


@families
def test_attention_name_without_patch_raises(family: str) -> None:
    register()
    model = base_model(family)
    model.set_attn_implementation("rolesafe")
    with pytest.raises(RuntimeError, match=r"no role layer.*rolesafe\.patch"):
        model(**plain(random_batch()))


def test_plain_checkpoint_with_attention_name_raises(tmp_path: Path) -> None:
    register()
    base_model("llama").save_pretrained(tmp_path)
    model = AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="rolesafe")
    with pytest.raises(RuntimeError, match="no role layer"):
        model(**plain(random_batch()))


# ---------------------------------------------------------------------------------------------- parts that are removed


@families
def test_removed_role_module_raises(family: str) -> None:
    model = role_model(family, FULL)
    del next(m for m in model.modules() if hasattr(m, "rolesafe_heads"))._modules["rolesafe_heads"]
    with pytest.raises(RuntimeError, match="no role layer"):
        model(**random_batch())


@pytest.mark.parametrize("config", [FULL, RoleConfig.preset("ise")], ids=["channel", "ise"])
@families
def test_removed_hook_raises(family: str, config: RoleConfig) -> None:
    model = role_model(family, config)
    layer = next(m for m in model.modules() if hasattr(m, "rolesafe_embedding"))
    layer._forward_pre_hooks.clear()
    with pytest.raises(RuntimeError, match="1 layers ran without roles"):
        model(**random_batch())


@families
def test_class_reset_by_hand_raises(family: str) -> None:
    for config in (FULL, RoleConfig()):
        model = role_model(family, config)
        with pytest.raises(ValueError, match="`role_ids` did not reach"):
            model.rolesafe_base.forward(model, **plain(random_batch()))
        model.__class__ = model.rolesafe_base
        with pytest.raises(ValueError, match="`role_ids` did not reach"):
            model(**plain(random_batch()))


@families
def test_state_dict_between_plain_and_patched_raises(family: str) -> None:
    model, base = role_model(family, FULL), base_model(family)
    with pytest.raises(RuntimeError, match="Unexpected key"):
        base.load_state_dict(model.state_dict())
    with pytest.raises(RuntimeError, match="Missing key"):
        model.load_state_dict(base.state_dict())
    other = role_model(family, FULL, trained=False)
    other.load_state_dict(model.state_dict())
    with torch.no_grad():
        assert torch.equal(logits(other, random_batch()), logits(model, random_batch()))


@families
def test_model_from_patched_config_requires_roles(family: str) -> None:
    model = AutoModelForCausalLM.from_config(role_model(family).config)
    with pytest.raises((RuntimeError, ValueError), match="role"):
        model(**plain(random_batch()))


@families
def test_pickling_raises(family: str) -> None:
    model = role_model(family)
    with pytest.raises(pickle.PicklingError, match="RoleAware"):
        pickle.dumps(model)
    with pytest.raises((pickle.PicklingError, AttributeError), match="RoleAware"):
        torch.save(model, io.BytesIO())


# -------------------------------------------------------------------------------------------------------- conversions


@pytest.mark.parametrize("how", ["bfloat16", "to", "half"])
@families
def test_dtype_conversions_keep_roles(family: str, how: str) -> None:
    model, batch = role_model(family, FULL), random_batch()
    model = model.to(torch.bfloat16) if how == "to" else getattr(model, how)()
    assert model.dtype == (torch.float16 if how == "half" else torch.bfloat16)
    assert {p.dtype for _, p in rolesafe.named_role_parameters(model)} == {torch.float32}
    other = {**batch, "role_ids": (batch["role_ids"] + 1) % 5}
    with torch.no_grad():
        x, y = logits(model, batch), logits(model, other)
    assert x.isfinite().all()
    assert (x - y).abs().max() > 1e-2


@families
def test_resized_embeddings_keep_roles(family: str) -> None:
    model, batch = role_model(family, FULL), random_batch()
    with torch.no_grad():
        expected = logits(model, batch)
        model.resize_token_embeddings(120)
        assert rolesafe.patching.is_patched(model)
        close(logits(model, batch)[:, :97], expected)


# ----------------------------------------------------------------------------------------------------------- wrappers


class _Wrapper(nn.Module):
    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, **kwargs: Tensor) -> object:
        return self.model(**kwargs)


@families
def test_named_role_parameters_through_wrapper(family: str) -> None:
    model = role_model(family, FULL)
    wrapped = dict(rolesafe.named_role_parameters(_Wrapper(model)))
    assert list(wrapped) == [f"model.{name}" for name, _ in rolesafe.named_role_parameters(model)]
    with pytest.raises(ValueError, match="`role_ids`"):
        _Wrapper(model)(**plain(random_batch()))


def test_distributed_data_parallel(tmp_path: Path) -> None:
    import torch.distributed as dist

    if not dist.is_available():
        pytest.skip("this PyTorch has no torch.distributed")
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'rendezvous'}", rank=0, world_size=1)
    try:
        model, batch = role_model("llama", FULL), random_batch()
        expected = logits(model, batch)
        wrapped = nn.parallel.DistributedDataParallel(model)
        output = wrapped(**batch).logits
        assert torch.equal(output[batch["attention_mask"].bool()], expected)
        output.sum().backward()
        assert all(p.grad is not None for _, p in rolesafe.named_role_parameters(wrapped))
        with pytest.raises(ValueError, match="`role_ids`"):
            wrapped(**plain(batch))
    finally:
        dist.destroy_process_group()


@pytest.mark.parametrize("config", [FULL, RoleConfig()], ids=["channel", "bias"])
@families
def test_offloaded_by_accelerate(family: str, config: RoleConfig) -> None:
    """Hooks move offloaded parameters to the device, role parameters too."""
    accelerate = pytest.importorskip("accelerate")
    model, batch = role_model(family, config), random_batch()
    with torch.no_grad():
        expected = logits(model, batch)
        accelerate.cpu_offload(model, execution_device=torch.device("cpu"))
        assert {p.device.type for _, p in rolesafe.named_role_parameters(model)} == {"meta"}
        close(logits(model, batch), expected)


# ----------------------------------------------------------------------------------------------------------- compiled


# every pair of values once: what is traced does not depend on `fullgraph`
@pytest.mark.parametrize(
    ("family", "config", "fullgraph"),
    [
        pytest.param("llama", FULL, True, id="llama-channel-True"),
        pytest.param("llama", RoleConfig(), False, id="llama-bias-False"),
        pytest.param("gemma3_text", FULL, False, id="gemma3_text-channel-False"),
        pytest.param("gemma3_text", RoleConfig(), True, id="gemma3_text-bias-True"),
    ],
)
def test_compiled(family: str, config: RoleConfig, fullgraph: bool) -> None:
    model, batch = role_model(family, config), random_batch()
    other = {**batch, "role_ids": (batch["role_ids"] + 1) % 5}
    real = batch["attention_mask"].bool()
    with torch.no_grad():
        expected = [logits(model, x) for x in (batch, other)]
        compiled = torch.compile(model, backend="eager", fullgraph=fullgraph)
        for x, y in zip((batch, other), expected, strict=True):
            close(compiled(**x, use_cache=False).logits[real], y)


@pytest.mark.parametrize("shift", [-5, 3])
def test_compiled_code_checks_role_ids(shift: int) -> None:
    model, batch = role_model("llama", layers=1), random_batch()
    batch["role_ids"] = batch["role_ids"] + shift
    with torch.no_grad(), pytest.raises(RuntimeError, match=r"`role_ids`: expected ids in \[0, 5\)"):
        torch.compile(model, backend="eager")(**batch)
    with pytest.raises(ValueError, match="`role_ids`: expected the role of every token"):
        torch.compile(model, backend="eager")(**plain(batch))


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_static_cache_compiles_once(family: str) -> None:
    """`generate` pads role ids to the length of the cache, so all steps have the same shapes."""
    model, batch = role_model(family, FULL), random_batch(length=8)
    seen: list[tuple[int, ...]] = []
    prepare = model.prepare_inputs_for_generation

    def spy(*args: object, **kwargs: object) -> object:
        inputs = prepare(*args, **kwargs)
        seen.append(tuple(inputs["role_ids"].shape))
        return inputs

    model.prepare_inputs_for_generation = spy  # type: ignore[method-assign]
    model.generate(
        **batch, max_new_tokens=6, do_sample=False, eos_token_id=None, pad_token_id=0, cache_implementation="static"
    )
    assert len(seen) == 6
    assert len(set(seen)) == 1


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_compiled_static_cache_decoding(family: str) -> None:
    model, batch = role_model(family, FULL), random_batch(length=12, padding=0)
    ids = batch["input_ids"]
    roles = nn.functional.pad(batch["role_ids"], (0, 4), value=3)
    with torch.no_grad():
        full = model(ids, role_ids=batch["role_ids"], use_cache=False).logits
        cache = StaticCache(config=model.config, max_cache_len=16)
        model(ids[:, :9], role_ids=roles, **with_cache(cache))
        step = torch.compile(model, backend="eager", fullgraph=True)
        for i in (9, 10, 11):
            got = step(ids[:, i : i + 1], role_ids=roles, **with_cache(cache)).logits
            close(got[:, 0], full[:, i])
