"""torch.compile and torch.export of patched models: the number of graphs of the base."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import CompileConfig, PreTrainedModel

import rolesafe
from rolesafe import RoleConfig
from rolesafe.mechanisms import set_strength
from tests.models import random_batch, role_model

DEEP = ("channel", "separate")
"""Presets compiled with two layers, for what a layer leaves to the next. A layer takes a second, so others have one."""
MECHANISMS = ["bias", "share", "dedicated", "integrity", "embedding", "aside", "drip", "spotlight", "pasta", "channel"]
NEW = 6


def model_of(name: str) -> PreTrainedModel:
    changes = {"embedding_roles": ("tool",)} if name == "embedding" else {}
    return role_model("llama", RoleConfig.preset(name, **changes), layers=2 if name in DEEP else 1)


@pytest.fixture(autouse=True)
def _no_compiled_code_from_before() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def counting(graphs: list[Any]) -> Callable[..., Any]:
    """Return a backend that collects graphs and runs them eagerly. A function: `generate` copies its configuration."""

    def backend(graph: Any, inputs: Any, **kwargs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    return backend


@pytest.mark.parametrize("name", [*MECHANISMS, "separate"])
def test_static_cache_decoding_has_one_graph(name: str) -> None:
    model, batch = model_of(name), random_batch(length=8, padding=0)
    options = {"max_new_tokens": NEW, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    expected = model.generate(**batch, **options)
    graphs: list[Any] = []
    compiled = CompileConfig(backend=counting(graphs), fullgraph=True, mode=None)
    compiled._compile_all_devices = True
    got = model.generate(**batch, **options, cache_implementation="static", compile_config=compiled)
    assert torch.equal(got, expected)
    assert len(graphs) == 1


def test_share_below_full_strength_has_one_graph() -> None:
    """In a layer with a share and no other part, the strength scales the share in one call."""
    config = RoleConfig(bias=False, share=0.4, share_floor=0.4)
    model, batch, graphs = role_model("llama", config), random_batch(padding=0), list[Any]()
    set_strength(model, 0.5)
    with torch.no_grad():
        expected = model(**batch, use_cache=False).logits
        got = torch.compile(model, backend=counting(graphs), fullgraph=True)(**batch, use_cache=False).logits
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-5)
    assert len(graphs) == 1


# one of each kind: a graph takes seconds
@pytest.mark.parametrize("name", ["bias", "channel", "integrity", "drip", "spotlight"])
def test_lengths_share_one_graph(name: str) -> None:
    model, graphs = model_of(name), list[Any]()
    compiled = torch.compile(model, backend=counting(graphs), fullgraph=True, dynamic=True)
    with torch.no_grad():
        for length in (10, 11, 14, 23):
            batch = random_batch(length=length, padding=0)
            del batch["attention_mask"]
            got = compiled(**batch, use_cache=False).logits
            torch.testing.assert_close(got, model(**batch, use_cache=False).logits, rtol=0, atol=1e-5)
    assert len(graphs) == 1


@pytest.mark.parametrize("name", ["bias", "channel"])
def test_export_accepts_any_length(name: str) -> None:
    model = model_of(name)

    def inputs(length: int) -> dict[str, Tensor]:
        batch = random_batch(length=length, padding=0)
        return {name: batch[name] for name in ("input_ids", "role_ids")}

    length = torch.export.Dim("length", min=4, max=64)
    shapes = {"input_ids": {1: length}, "role_ids": {1: length}, "use_cache": None}
    exported = torch.export.export(
        model, (), {**inputs(12), "use_cache": False}, dynamic_shapes=shapes, strict=False
    ).module()
    for size in (5, 12, 40):
        with torch.no_grad():
            got, expected = (m(**inputs(size), use_cache=False).logits for m in (exported, model))
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-5)
    assert rolesafe.patching.is_patched(model)
    with pytest.raises(ValueError, match="role_ids"):
        exported(input_ids=inputs(12)["input_ids"], use_cache=False)
