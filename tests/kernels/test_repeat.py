"""Decode calls that other layers repeat: the results of whole calls, and no call of another form."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
import torch
from rolesafe_kernels import Repeat, RoleLayout, plan, replay
from rolesafe_kernels import role_attention as fused
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from tests.kernels.space import QUIET

pytestmark = [QUIET, pytest.mark.usefixtures("_no_plans")]
NAMES = ("q", "k", "v", "bias", "share", "sinks")


@pytest.fixture
def _no_plans() -> None:
    replay.PLANS.clear()


def tokens(seed: int = 0, keys: int = 20) -> dict[str, Tensor | None]:
    make = torch.Generator().manual_seed(seed)
    sizes = {"q": (1, 2, 1, 16), "k": (1, 1, keys, 16), "v": (1, 1, keys, 8), "bias": (2, 3, 3)}
    x: dict[str, Tensor | None] = {name: torch.randn(*size, generator=make) for name, size in sizes.items()}
    return {**x, "share": torch.rand(2, generator=make), "sinks": None}


def roles(keys: int = 20) -> dict[str, Tensor]:
    k_roles = torch.randint(0, 3, (1, keys), generator=torch.Generator().manual_seed(0))
    return {"q_roles": k_roles[:, -1:].clone(), "k_roles": k_roles}


def repeat_of(**options: Any) -> Repeat:
    """Return the repetition of a call with the tokens of seed 0."""
    found: list[Repeat] = []
    fused(**tokens(), **roles(), **options, repeats=found)
    (one,) = found
    return one


def repeated(one: Repeat, x: dict[str, Tensor | None]) -> Tensor | None:
    with torch.no_grad():
        found = one(*(x[name] for name in NAMES))  # type: ignore[arg-type]
    return None if found is None else found.transpose(1, 2)


HIDDEN = torch.zeros(1, 20, dtype=torch.bool)
OPTIONS: list[dict[str, Any]] = [
    {},
    {"dedicated": 1, "integrity": True},
    {"window": 5, "softcap": 2.0},
    {"key_mask": HIDDEN.clone().index_fill(1, torch.arange(3, 9), True)},
    {"mask": HIDDEN.clone().index_fill(1, torch.arange(3, 9), True)[:, None, None]},
]


@pytest.mark.parametrize("options", OPTIONS, ids=["plain", "channel", "window", "key mask", "mask"])
def test_repeat_equals_whole_call(options: dict[str, Any]) -> None:
    one = repeat_of(**options)
    for seed in range(3):
        x = tokens(seed)
        found = repeated(one, x)
        assert found is not None
        with replay.bypassed():
            assert torch.equal(found, fused(**x, **roles(), **options))  # type: ignore[arg-type]


def test_repeated_rows_that_see_nothing_are_zero() -> None:
    one = repeat_of()
    found = repeated(one, {**tokens(1), "bias": torch.full((2, 3, 3), -torch.inf)})
    assert found is not None
    assert not found.any()
    hidden = repeated(repeat_of(key_mask=HIDDEN), tokens(1))
    assert hidden is not None
    assert not hidden.any()


def moved(x: Tensor) -> Tensor:
    """Return a copy that starts off the alignment."""
    return torch.empty(x.numel() + 1)[1:].view(x.shape).copy_(x)


def strided(x: Tensor) -> Tensor:
    return x.transpose(-1, -2).contiguous().transpose(-1, -2)


class Subclass(Tensor):
    """A tensor that is none of PyTorch's own."""


CHANGES: list[tuple[str, Callable[[Tensor], Any]]] = [
    ("q", lambda x: x.expand(2, -1, -1, -1)),
    ("q", lambda x: x.half()),
    ("k", lambda x: x[:, :, :19]),
    ("k", strided),
    ("k", moved),
    ("v", lambda x: x.to("meta")),
    ("v", lambda x: x.as_subclass(Subclass)),
    ("bias", lambda x: None),
    ("bias", lambda x: x[:, :2, :2]),
    ("bias", lambda x: x.double()),
    ("bias", strided),
    ("share", lambda x: None),
    ("share", lambda x: x.half()),
    ("sinks", lambda x: torch.zeros(2)),
]


@pytest.mark.parametrize("name, change", CHANGES, ids=[f"{name}-{i}" for i, (name, _) in enumerate(CHANGES)])
def test_other_form_is_not_repeated(name: str, change: Callable[[Any], Any]) -> None:
    one, x = repeat_of(), tokens(1)
    assert repeated(one, {**x, name: change(x[name])}) is None
    assert repeated(one, x) is not None


def test_repeat_only_in_plain_eager_code() -> None:
    """Gradients, modes of dispatch, transforms, other launch tables."""
    one, x = repeat_of(), tokens(1)
    given = [x[name] for name in NAMES]
    assert one(*given) is None, "gradients are on"  # type: ignore[arg-type]
    with torch.no_grad():
        with TorchDispatchMode():
            assert one(*given) is None  # type: ignore[arg-type]
        with replay.bypassed():
            assert one(*given) is None  # type: ignore[arg-type]
        seen: list[object] = []
        torch.vmap(lambda q: (seen.append(one(q, *given[1:])), q)[1])(torch.stack([x["q"]]))  # type: ignore[arg-type, list-item]
        assert seen == [None]
        assert one(*given) is not None  # type: ignore[arg-type]


@pytest.mark.parametrize("change", [{"bias": tokens()["bias"].double()}, {"q": tokens()["q"].expand(1, 2, 100, 16)}])  # type: ignore[union-attr]
def test_calls_that_cannot_be_repeated_leave_none(change: dict[str, Tensor]) -> None:
    """A table that kernels do not read as it is, and more queries than decode takes."""
    found: list[Repeat] = []
    x = {**tokens(keys=100), **roles(100), **change}
    x["q_roles"] = x["k_roles"][:, -x["q"].shape[2] :].clone()  # type: ignore[union-attr, index]
    fused(**x, repeats=found)  # type: ignore[arg-type]
    assert not found


def test_layouts_share_the_roles_of_queries() -> None:
    both = roles()
    shared: dict[Any, Any] = {}
    first = RoleLayout(**both, queries=shared)
    second = RoleLayout(both["q_roles"], both["k_roles"][:, 5:], queries=shared)
    assert first.roles_of_queries(32) is second.roles_of_queries(32)
    assert first.of_block("queries", 32) is second.of_block("queries", 32)
    assert first.of_block("keys", 32) is not second.of_block("keys", 32)
    assert torch.equal(first.roles_of_queries(32), both["q_roles"].to(torch.int8))
    outside = RoleLayout(torch.tensor([[-1, 3, 16, 15]]), both["k_roles"]).roles_of_queries(32)
    assert outside.tolist() == [[16, 3, 16, 15]]


def test_repeated_outputs_live_on() -> None:
    """Layers share the memory of the parts of the split keys, and no output."""
    found: list[Repeat] = []
    outputs = [fused(**tokens(), **roles(), repeats=found)]  # type: ignore[arg-type]
    before = [outputs[0].clone()]
    for seed in range(1, 4):
        output = repeated(found[0], tokens(seed))
        assert output is not None
        outputs.append(output)
        before.append(output.clone())
    assert len({x.data_ptr() for x in outputs}) == 4
    assert all(map(torch.equal, outputs, before))


@pytest.mark.parametrize("at_first", [False, True])
def test_parts_are_shared_on_one_stream_alone(at_first: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Launches on other streams, and those that a CUDA graph keeps, are not ordered with those of other layers."""
    state = {"stream": 1, "captured": at_first}
    written: list[tuple[int, int]] = []

    class Kernel:
        function, packed_metadata = 1, ()

        def run(self, *given: Any) -> None:
            assert given[3] == state["stream"]
            *_, part, out = given
            written.append((part.data_ptr(), out.data_ptr()))

    monkeypatch.setattr(plan, "is_captured", lambda x: state["captured"])
    monkeypatch.setattr(replay.driver, "_active", SimpleNamespace(get_current_stream=lambda _: state["stream"]))
    x, given = tokens(), [tokens(1)[name] for name in NAMES]
    fresh = (((1, 2, 1, 8), (16, 8, 16, 1), torch.float32), ((64,), (1,), torch.float32))
    program = replay.Program(fresh, [], (replay.Step(Kernel(), (1, 1, 1), lambda pool: pool[11:9:-1]),), 10, True)
    pool = program.pool([*(x[name] for name in "qkv"), *[None] * 3, *given[3:], None], torch.device("cpu"))
    one = Repeat(program, pool, (*(x[name] for name in "qkv"), *given[3:]))
    usual, kept, alive = pool[11].data_ptr(), [], []
    for stream, captured in ((1, False), (2, False), (1, True), (1, False)):
        state.update(stream=stream, captured=captured)
        with torch.no_grad():
            alive.append(one(*given))  # type: ignore[arg-type]
        assert written[-1][1] == alive[-1].data_ptr()
        assert alive[-1].shape == (1, 1, 2, 8)
        kept.append(written[-1][0] == usual)
    assert kept == [not at_first, False, False, not at_first]
    assert len({out for _, out in written}) == 4


def test_launches_that_are_watched_go_through_triton() -> None:
    """Hooks of a profiler see the launches of a kept program; without them its kernels are run directly."""
    seen: list[str] = []

    class Kernel:
        function, packed_metadata = 1, ()

        def run(self, *_: object) -> None:
            seen.append("direct")

        def __getitem__(self, grid: object) -> Callable[..., None]:
            return lambda *_: seen.append("by triton")

    hooks = replay.knobs.runtime.launch_enter_hook
    stub = SimpleNamespace(get_current_stream=lambda _: 0)
    program = replay.Program((), [1], (replay.Step(Kernel(), (1, 1, 1), lambda pool: (pool[0],)),), 0, True)
    pool = [torch.zeros(1), 1]
    with mock.patch.object(replay.driver, "_active", stub):
        stream = program.stream(torch.device("cpu"))
        program(pool, stream)
        hooks.add(print)
        try:
            program(pool, stream)
        finally:
            hooks.remove(print)
        program(pool, stream)
    assert seen == ["direct", "by triton", "direct"]
