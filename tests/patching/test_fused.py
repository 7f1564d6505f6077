"""Patched models as on a GPU: padding masks, and the fused kernel (in Triton's interpreter on a CPU)."""

from __future__ import annotations

import importlib
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor
from transformers.masking_utils import causal_mask_function, sliding_window_causal_mask_function

import rolesafe
from rolesafe import RoleConfig
from rolesafe.patching import masks
from rolesafe.patching.families import FAMILIES, STREAMS
from tests.models import (
    base_model,
    cached_logits,
    causal_lm_families,
    logits,
    random_batch,
    randomise,
    tiny_model,
)

KNOWN = sorted(FAMILIES & set(causal_lm_families()))

KERNEL_FAMILIES = ("llama", "gemma2", "gpt_oss", "gpt2")
"""One of each kind: plain; score cap and windows; sinks; fused projections and no rotary positions."""

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture
def compact(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Make masks as on a GPU."""
    monkeypatch.setattr(masks, "COMPACT_DEVICES", ("cpu", "cuda"))
    return


def fused_device() -> str:
    """Return the device of the fused kernel: the GPU, or a CPU with the interpreter."""
    importlib.import_module("tests.kernels.quick").quicken()
    return "cpu" if importlib.import_module("rolesafe_kernels.launch").INTERPRET else "cuda"


def moved(batch: dict[str, Tensor], device: str) -> dict[str, Tensor]:
    return {name: value.to(device) for name, value in batch.items()}


@pytest.mark.parametrize("family", KNOWN)
def test_compact_mask_equals_whole_mask(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    config = RoleConfig.preset("channel", integrity=False, embedding="none" if family in STREAMS else "layers")
    model = randomise(rolesafe.patch(tiny_model(family), config))
    batch = random_batch()
    with torch.no_grad():
        whole = logits(model, batch)
        monkeypatch.setattr(masks, "COMPACT_DEVICES", ("cpu",))
        alone = logits(model, batch)
    torch.testing.assert_close(alone, whole, rtol=1e-4, atol=1e-5)


@pytest.mark.usefixtures("compact")
def test_mask_is_padding_if_causal_else_whole() -> None:
    padding = torch.tensor([[0, 1, 1, 1, 1], [1, 1, 1, 1, 1]]).bool()

    def made(q_length: int, kv_length: int, q_offset: int = 0, function: object = causal_mask_function) -> object:
        return masks.role_mask(2, q_length, kv_length, q_offset, 0, function, padding, device="cpu")  # type: ignore[arg-type]

    def shape(mask: object) -> tuple[int, ...]:
        assert isinstance(mask, Tensor)
        assert mask.dtype == torch.bool
        return tuple(mask.shape)

    assert torch.equal(made(5, 5), padding)  # type: ignore[arg-type]
    assert shape(made(2, 5, 3)) == (2, 5)
    assert shape(made(1, 5, 4)) == (2, 1, 1, 5)  # one query: what it sees is not a matter of order
    assert shape(made(5, 8)) == (2, 1, 5, 8)  # a static cache with room behind the tokens
    assert shape(made(5, 5, 0, sliding_window_causal_mask_function(2))) == (2, 1, 5, 5)
    assert masks.role_mask(2, 5, 5, device="cpu") is None
    assert shape(masks.role_mask(2, 2, 5, 3, device="cpu")) == (2, 5)


@pytest.mark.usefixtures("compact")
@pytest.mark.parametrize("family", KERNEL_FAMILIES)
def test_fused_kernel_in_model_equals_reference(family: str) -> None:
    """Logits and every gradient."""
    pytest.importorskip("triton")
    device = fused_device()
    found = {}
    for impl in ("reference", "triton"):
        config = RoleConfig.preset("channel", impl=impl)
        model = randomise(rolesafe.patch(base_model(family), config))
        model, batch = model.to(device), moved(random_batch(), device)
        out = logits(model, batch)
        out.square().mean().backward()
        gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        found[impl] = {"logits": out.detach(), **gradients}
    assert found["reference"].keys() == found["triton"].keys()
    assert any("rolesafe" in name for name in found["triton"])
    for name, expected in found["reference"].items():
        got = found["triton"][name]
        torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.usefixtures("compact")
def test_fused_kernel_with_cache_equals_one_call() -> None:
    """gpt_oss has sinks, and layers with and without a window."""
    pytest.importorskip("triton")
    device = fused_device()
    model = randomise(rolesafe.patch(base_model("gpt_oss"), RoleConfig.preset("channel", impl="triton")))
    model, batch = model.to(device), moved(random_batch(length=10), device)
    with torch.no_grad():
        whole, steps = logits(model, batch), cached_logits(model, batch, chunks=(7, 1, 2))
    torch.testing.assert_close(steps, whole, rtol=1e-3, atol=1e-4)
