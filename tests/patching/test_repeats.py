"""Decoding with the fused kernel: layers that differ in tensors alone repeat one call, every other one is computed."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import DynamicCache

import rolesafe
from rolesafe import RoleConfig
from rolesafe.mechanisms import set_strength
from rolesafe.patching import masks
from rolesafe.patching.observe import observing
from tests.models import CACHE, VOCAB, new_config, randomise, tiny_model

pytest.importorskip("triton")
launch = pytest.importorskip("rolesafe_kernels.launch")
pytestmark = [
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.skipif(not launch.INTERPRET, reason="the interpreter runs kernels on CPU tensors"),
]

DEPTH, LENGTH = 3, 8
KINDS = ["sliding_attention", "full_attention", "sliding_attention"]


@pytest.fixture(autouse=True)
def _as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.kernels.quick import quicken

    quicken()
    monkeypatch.setattr(masks, "COMPACT_DEVICES", ("cpu", "cuda"))


class Counts:
    """Number of repeated and of whole calls, of lists of keys and of roles of queries that were built."""

    def __init__(self) -> None:
        self.repeated = self.whole = self.keys = self.queries = 0


@pytest.fixture
def counts(monkeypatch: pytest.MonkeyPatch) -> Iterator[Counts]:
    from rolesafe_kernels import api, plan

    import rolesafe.attention.triton as backend

    found = Counts()
    usual, whole, build, bits = plan.Repeat.__call__, backend.role_attention, api.build_blocks, api.build_bits

    def repeat(self: Any, *tensors: Any) -> Any:
        out = usual(self, *tensors)
        found.repeated += out is not None
        return out

    def counted(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            setattr(found, name, getattr(found, name) + 1)
            return function(*args, **kwargs)

        return call

    monkeypatch.setattr(plan.Repeat, "__call__", repeat)
    monkeypatch.setattr(backend, "role_attention", counted("whole", whole))
    monkeypatch.setattr(api, "build_blocks", counted("keys", build))
    monkeypatch.setattr(api, "build_bits", counted("queries", bits))
    return found


def deep_model(family: str = "llama", impl: str = "triton", name: str = "channel", **changes: Any) -> Any:
    more = {"layer_types": KINDS, "sliding_window": 3} if family == "gpt_oss" else {}
    base = tiny_model(family, config=new_config(family, num_hidden_layers=DEPTH, **more), attn="eager")
    return randomise(rolesafe.patch(base, RoleConfig.preset(name, impl=impl, **changes)))


def steps(model: Any, sizes: tuple[int, ...], seed: int = 0, padding: int = 0) -> Iterator[Tensor]:
    """Decode up to LENGTH tokens in pieces of `sizes`; the logits of each."""
    make = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, VOCAB, (1, LENGTH), generator=make)
    roles = torch.randint(0, 5, (1, LENGTH), generator=make)
    mask = torch.ones_like(ids)
    mask[0, :padding] = 0
    cache, at = DynamicCache(config=model.config), 0
    for size in sizes:
        upto = at + size
        given = {"input_ids": ids[:, at:upto], "role_ids": roles[:, :upto], "attention_mask": mask[:, :upto]}
        with torch.no_grad():
            logits: Tensor = model(**given, **{CACHE: cache}, use_cache=True).logits
        yield logits
        at = upto


@pytest.mark.parametrize("family", ["llama", "gpt_oss"])
@pytest.mark.parametrize("padding", [0, 2])
def test_roles_of_each_kind_are_built_once(family: str, padding: int, counts: Counts) -> None:
    """At every length of the cache, with sliding and full layers by turns: one list of keys for each kind."""
    kinds = 1 + (family == "gpt_oss")
    found = steps(deep_model(family), (4, 1, 2, 1), padding=padding)
    next(found)
    for _ in range(3):
        counts.keys = counts.queries = 0
        next(found)
        assert (counts.keys, counts.queries) == (kinds, 1)


@pytest.mark.parametrize("family", ["llama", "gpt_oss"])
def test_layers_of_a_kind_repeat_one_call(family: str, counts: Counts) -> None:
    kinds = 1 + (family == "gpt_oss")
    found = steps(deep_model(family), (4, 1, 1))
    next(found)
    for _ in range(2):
        counts.repeated = counts.whole = 0
        next(found)
        assert (counts.whole, counts.repeated) == (kinds, DEPTH - kinds)


CHANGED: dict[str, dict[str, Any]] = {
    "channel": {},
    "layers": {"layers": (0, 2), "integrity": False},
    "other heads by layer": {"dedicated_heads": ((0, 1), (2, 0)), "share": 0.4},
    "added": {"added_heads": 1, "layers": (1,), "integrity": False, "dedicated_heads": 0},
    "share": {"name": "share"},
    "steered": {"name": "instaboost", "steered_heads": ((0, 1), (2, 2))},
}


@pytest.mark.parametrize("changes", CHANGED.values(), ids=CHANGED)
def test_repeated_layers_equal_reference(changes: dict[str, Any], counts: Counts) -> None:
    """Growing caches, padding, several new tokens, layers of other settings."""
    family = "llama" if changes else "gpt_oss"
    sizes = (4, 1, 2)
    expected = steps(deep_model(family, "reference", **changes), sizes, padding=2)
    for own, right in zip(steps(deep_model(family, **changes), sizes, padding=2), expected, strict=True):
        torch.testing.assert_close(own[:, -1], right[:, -1], rtol=1e-3, atol=1e-4)
    assert counts.repeated


@pytest.mark.parametrize("strength", [0.0, 0.5])
@pytest.mark.parametrize("name", ["share", "channel"])
def test_strength_below_one_equals_reference(name: str, strength: float) -> None:
    models = [deep_model(impl=impl, name=name) for impl in ("reference", "triton")]
    for model in models:
        set_strength(model, strength)
    for right, own in zip(*(steps(model, (4, 1, 1)) for model in models), strict=True):
        torch.testing.assert_close(own, right, rtol=1e-3, atol=1e-4)


def test_roles_that_change_between_forward_passes() -> None:
    """The same shapes with other roles: nothing of the pass before."""
    model, reference = deep_model(), deep_model(impl="reference")
    for seed in range(2):
        for own, right in zip(steps(model, (4, 1), seed), steps(reference, (4, 1), seed), strict=True):
            torch.testing.assert_close(own, right, rtol=1e-3, atol=1e-4)


def replaced(name: str, change: Callable[[Tensor], Tensor]) -> Callable[[nn.Module], None]:
    def apply(heads: nn.Module) -> None:
        heads._parameters[name] = nn.Parameter(change(getattr(heads, name).data), requires_grad=False)

    return apply


BROKEN: list[tuple[Callable[[Any], Any], str]] = [
    (replaced("bias", lambda x: x[:, :3]), r"`bias`: expected shape \(4, R, R\)"),
    (replaced("bias", lambda x: x[:2]), r"`bias`: expected shape \(4, R, R\)"),
    (replaced("share", lambda x: x[:1]), r"`share`: expected shape \(4,\)"),
    (lambda heads: setattr(heads, "heads", 3), "has 4 heads, its role layer 3"),
    (lambda heads: setattr(heads, "dedicated", 9), "`dedicated`: expected 0 to 4"),
    (lambda heads: setattr(heads, "strength", 0.5), "expected one strength of all parts"),
]


@pytest.mark.parametrize("breaks, message", BROKEN, ids=range(len(BROKEN)))
def test_a_later_layer_that_is_broken_raises(breaks: Callable[[Any], Any], message: str) -> None:
    """In the last layer, where the layers before it could be repeated."""
    model = deep_model()
    found = steps(model, (4, 1, 1))
    next(found), next(found)
    breaks(model.model.layers[-1].self_attn.rolesafe_heads)
    with pytest.raises((ValueError, RuntimeError), match=message):
        next(found)


def test_a_later_layer_of_another_dtype_equals_reference(counts: Counts) -> None:
    """A table that the kernel has to convert: its layer is computed whole, without an error."""
    models = [deep_model(impl=impl) for impl in ("reference", "triton")]
    for model in models:
        replaced("bias", lambda x: x.double())(model.model.layers[2].self_attn.rolesafe_heads)
    for right, own in zip(*(steps(model, (4, 1)) for model in models), strict=True):
        counts_of, counts.repeated = counts.repeated, 0
        torch.testing.assert_close(own, right, rtol=1e-3, atol=1e-4)
    assert counts_of == DEPTH - 2


def changed_in_place(model: Any) -> None:
    for name, parameter in rolesafe.named_role_parameters(model):
        if not name.endswith("weight"):
            parameter.data.mul_(0.5)


def hooked(model: Any) -> None:
    heads = model.model.layers[-1].self_attn.rolesafe_heads
    heads.register_forward_hook(lambda module, args, out: (out[0] * 0.5, out[1]))


def hooked_before(model: Any) -> None:
    heads = model.model.layers[-1].self_attn.rolesafe_heads
    heads.register_forward_pre_hook(lambda module, args: module.bias.data.neg_())


def replaced_forward(model: Any) -> None:
    heads = model.model.layers[-1].self_attn.rolesafe_heads
    usual = heads.forward
    heads.forward = lambda *args: (usual(*args)[0] * 0.5, usual(*args)[1])


def wrapped(model: Any) -> None:
    class Wrapper(nn.Module):
        """As PEFT's of modules that it trains: attributes are those of the module within."""

        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def __getattr__(self, name: str) -> Any:
            try:
                return super().__getattr__(name)
            except AttributeError:
                return getattr(super().__getattr__("inner"), name)

        def forward(self, *args: Any) -> Any:
            bias, share = self.inner(*args)
            return bias * 0.5, share

    attention = model.model.layers[-1].self_attn
    attention.rolesafe_heads = Wrapper(attention.rolesafe_heads)


@pytest.mark.parametrize("change", [changed_in_place, hooked, hooked_before, replaced_forward, wrapped])
def test_changes_between_steps_reach_layers_that_repeat(change: Callable[[Any], None], counts: Counts) -> None:
    """New values of parameters, and all that runs around `forward` of a layer's heads, once in every step."""
    models = [deep_model(impl=impl) for impl in ("reference", "triton")]
    expected, found = (steps(model, (4, 1, 1, 1)) for model in models)
    for i in range(4):
        if i == 2:
            before = counts.repeated
            for model in models:
                change(model)
        torch.testing.assert_close(next(found), next(expected), rtol=1e-3, atol=1e-4)
    assert counts.repeated == before + 2 * (DEPTH - 1)


def test_layer_that_loses_its_roles_raises() -> None:
    model = deep_model()
    found = steps(model, (4, 1, 1))
    next(found), next(found)
    config = copy.copy(model.config)
    config._attn_implementation = "sdpa"
    model.model.layers[-1].self_attn.config = config
    with pytest.raises(RuntimeError, match="1 layers ran without roles"):
        next(found)


def test_observed_layers_are_computed_whole(counts: Counts) -> None:
    model, seen = deep_model(), list[object]()
    with observing(model, lambda module, problem: seen.append(module)):
        list(steps(model, (4, 1)))
    assert counts.repeated == 0
    assert len(seen) == 2 * DEPTH


def test_layers_under_autocast_are_computed_whole(counts: Counts) -> None:
    """Autocast of one layer changes its tokens, not those of the layer whose call it would repeat."""
    model = deep_model()
    layer = model.model.layers[-1].self_attn
    usual, seen = layer.forward, list[int]()

    def forward(*args: Any, **kwargs: Any) -> Any:
        seen.append(counts.repeated)
        with torch.autocast("cpu", dtype=torch.float16):
            out = usual(*args, **kwargs)
        seen.append(counts.repeated)
        return out[0].float(), out[1]

    layer.forward = forward
    list(steps(model, (4, 1)))
    one = DEPTH - 2
    assert seen == [one, one, 2 * one, 2 * one]


def test_gradients_are_computed_whole(counts: Counts) -> None:
    model = deep_model()
    roles = torch.randint(0, 5, (1, 3))
    model(input_ids=torch.randint(3, VOCAB, (1, 3)), role_ids=roles, use_cache=False).logits.sum().backward()
    assert counts.repeated == 0
    assert all(p.grad is not None for name, p in rolesafe.named_role_parameters(model) if name.endswith("bias"))
