"""Invalid calls raise an error that names the argument."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rolesafe_kernels import RoleLayout
from rolesafe_kernels import role_attention as fused

from rolesafe import role_attention
from rolesafe.attention import resolve_impl
from tests.kernels.space import QUIET, examples

pytestmark = QUIET

ROOT = Path(__file__).resolve().parents[2]
B, H, G, T, S, D, DV = 2, 4, 2, 3, 5, 8, 6
META = torch.device("meta")


def valid(batch: int = B, heads: int = H, groups: int = G) -> dict[str, Any]:
    """Arguments of both interfaces."""
    make = torch.Generator().manual_seed(0)
    return {
        "q": torch.randn(batch, heads, T, D, generator=make),
        "k": torch.randn(batch, groups, S, D, generator=make),
        "v": torch.randn(batch, groups, S, DV, generator=make),
        "q_roles": torch.randint(0, 5, (batch, T), generator=make),
        "k_roles": torch.randint(0, 5, (batch, S), generator=make),
        "bias": torch.randn(heads, 5, 5, generator=make),
        "share": torch.rand(heads, generator=make),
        "sinks": torch.randn(heads, generator=make),
    }


def test_valid_call_is_computed() -> None:
    assert role_attention(**valid(), impl="triton").shape == (B, H, T, DV)
    assert fused(**valid()).shape == (B, H, T, DV)
    assert resolve_impl("triton") == "triton"
    assert resolve_impl("triton", device=torch.device("cpu"), dtype=torch.float16, dim=64) == "triton"
    assert resolve_impl("auto", device=torch.device("cpu"), dtype=torch.float16, dim=64) == "sdpa"


def tokens(**changes: Any) -> dict[str, Any]:
    """q, k, v changed alike: a dtype, a head dim or a device."""
    dim = changes.pop("dim", D)
    return {
        "q": torch.zeros(B, H, T, dim, **changes),
        "k": torch.zeros(B, G, S, dim, **changes),
        "v": torch.zeros(B, G, S, dim, **changes),
    }


BOTH: list[tuple[dict[str, Any], str, str, str]] = [
    ({"q": torch.zeros(H, T, D)}, "q", "4 dimensions", "(4, 3, 8)"),
    ({"k": torch.zeros(B, G, S, D).half()}, "k", "torch.float32", "torch.float16"),
    ({"v": torch.zeros(B, G, S, D, device=META)}, "v", "cpu", "meta"),
    ({"k": torch.zeros(B, G, S, D + 1)}, "k", "(2, G, S, 8)", "(2, 2, 5, 9)"),
    ({"v": torch.zeros(B, G, S + 1, DV)}, "v", "(2, 2, 5, ", "(2, 2, 6, 6)"),
    ({"k": torch.zeros(B, 3, S, D), "v": torch.zeros(B, 3, S, DV)}, "k", "divides", "got 3"),
    ({"q_roles": torch.zeros(B, T + 1, dtype=torch.int64)}, "q_roles", "(2, 3)", "(2, 4)"),
    ({"k_roles": torch.zeros(B, T, dtype=torch.int64)}, "k_roles", "(2, 5)", "(2, 3)"),
    ({"k_roles": torch.zeros(B, S)}, "k_roles", "integer", "torch.float32"),
    ({"q_roles": torch.zeros(B, T, dtype=torch.bool)}, "q_roles", "integer", "torch.bool"),
    ({"q_roles": torch.zeros(B, T, dtype=torch.int64, device=META)}, "q_roles", "cpu", "meta"),
    ({"k_roles": torch.zeros(B, S, dtype=torch.int64, device=META)}, "k_roles", "cpu", "meta"),
    ({"bias": torch.zeros(H, 17, 17)}, "bias", "R <= 16", "(4, 17, 17)"),
    ({"bias": torch.zeros(H - 1, 5, 5)}, "bias", "R, R)", "(3, 5, 5)"),
    ({"bias": torch.zeros(H, 5, 5, device=META)}, "bias", "cpu", "meta"),
    ({"share": torch.zeros(H + 1)}, "share", "4", "(5,)"),
    ({"share": torch.zeros(H, device=META)}, "share", "cpu", "meta"),
    ({"sinks": torch.zeros(H, 1)}, "sinks", "4", "(4, 1)"),
    ({"scale": -1.0}, "scale", "positive", "-1.0"),
    ({"scale": 0.0}, "scale", "positive", "0.0"),
    ({"scale": float("nan")}, "scale", "positive", "nan"),
    ({"window": 3, "causal": False}, "window", "causal=True", "causal=False"),
    ({"window": 0}, "window", "positive", "got 0"),
    ({"softcap": -2.0}, "softcap", "positive", "-2.0"),
    ({"softcap": float("nan")}, "softcap", "positive", "nan"),
    ({"privileged": (0, 16)}, "privileged", "[0, ", "16"),
    ({"privileged": (-1,)}, "privileged", "[0, ", "-1"),
    ({"dedicated": H + 1}, "dedicated", "0 to 4", "got 5"),
    ({"dedicated": -1}, "dedicated", "0 to 4", "got -1"),
]

FRONT: list[tuple[dict[str, Any], str, str, str]] = [
    (tokens(dtype=torch.bfloat16), "impl", "float32, or a GPU", "bfloat16"),
    (tokens(dtype=torch.float64), "impl", "impl='sdpa'", "torch.float64"),
    (tokens(dim=257), "impl", "impl='sdpa'", "257"),
    ({"dropout": 0.1}, "dropout", "impl='sdpa'", "expected 0.0"),
    ({"q_roles": torch.full((B, T), 5)}, "q_roles", "[0, 5)", "5 to 5"),
    ({"k_roles": torch.full((B, S), -1)}, "k_roles", "[0, 5)", "-1 to -1"),
    ({"share": torch.full((H,), 1.5)}, "share", "[0, 1]", "1.5"),
    ({"bias": torch.full((H, 5, 5), float("nan"))}, "bias", "finite entries or -inf", "NaN"),
    ({"attention_mask": torch.ones(B, 1, T, S)}, "attention_mask", "bool mask", "torch.float32"),
    ({"attention_mask": torch.ones(B, T)}, "attention_mask", "(2, 5)", "(2, 3)"),
    ({"attention_mask": torch.ones(B, S, device=META)}, "attention_mask", "cpu", "meta"),
    ({"attention_mask": torch.ones(B, 1, T, S, device=META).bool()}, "attention_mask", "cpu", "meta"),
]

ALONE: list[tuple[dict[str, Any], str, str, str]] = [
    (tokens(dtype=torch.bfloat16), "q", "float32, or a GPU", "bfloat16"),
    (tokens(dtype=torch.float64), "q", "impl='sdpa'", "torch.float64"),
    (tokens(dtype=torch.int32), "q", "torch.float32", "torch.int32"),
    (tokens(dim=257), "q", "up to 256", "257"),
    (tokens(dim=0), "v", "DV > 0", "(2, 2, 5, 0)"),
    ({"q_roles": None}, "q_roles", "of queries and keys, or of neither", "None"),
    ({"k_roles": None}, "k_roles", "of queries and keys, or of neither", "None"),
    ({"q_roles": None, "k_roles": None}, "q_roles", "role ids", "None"),
    ({"mask": torch.ones(B, 1, T, S)}, "mask", "bool", "torch.float32"),
    ({"mask": torch.ones(B, 3, T, S).bool()}, "mask", "4 | 1", "(2, 3, 3, 5)"),
    ({"mask": torch.ones(B, 1, T, S, device=META).bool()}, "mask", "cpu", "meta"),
    ({"key_mask": torch.ones(B, T)}, "key_mask", "(2, 5)", "(2, 3)"),
    ({"key_mask": torch.ones(B, S, device=META)}, "key_mask", "cpu", "meta"),
]


def check(call: Any, changes: dict[str, Any], argument: str, expected: str, got: str) -> None:
    with pytest.raises(ValueError, match=f"^`{argument}`: ") as error:
        call(**{**valid(), **changes})
    assert expected in str(error.value)
    assert got in str(error.value)


def names(table: list[tuple[dict[str, Any], str, str, str]]) -> list[str]:
    return [f"{argument}-{got}" for _, argument, _, got in table]


@pytest.mark.parametrize("changes, argument, expected, got", BOTH + FRONT, ids=names(BOTH + FRONT))
def test_front_end_error_names_argument(changes: dict[str, Any], argument: str, expected: str, got: str) -> None:
    check(lambda **x: role_attention(**x, impl="triton"), changes, argument, expected, got)


@pytest.mark.parametrize("changes, argument, expected, got", BOTH + ALONE, ids=names(BOTH + ALONE))
def test_kernel_error_names_argument(changes: dict[str, Any], argument: str, expected: str, got: str) -> None:
    check(fused, changes, argument, expected, got)


PARTS: list[dict[str, Any]] = [
    {"bias": torch.zeros(H, 5, 5)},
    {"share": torch.zeros(H)},
    {"dedicated": 1},
    {"key_mask": torch.ones(B, S)},
    {"integrity": True},
]


@pytest.mark.parametrize("part", PARTS, ids=[next(iter(part)) for part in PARTS])
def test_role_parts_without_roles_raise(part: dict[str, Any]) -> None:
    plain = {name: valid()[name] for name in "qkv"}
    assert fused(**plain).shape == (B, H, T, DV)
    with pytest.raises(ValueError, match=r"^`q_roles`: expected role ids, got None"):
        fused(**plain, **part)


def test_one_query_mask_on_other_device_raises() -> None:
    call = valid()
    call["q"], call["q_roles"] = call["q"][:, :, :1], call["q_roles"][:, :1]
    for shape in ((B, S), (B, 1, 1, S)):
        with pytest.raises(ValueError, match=r"^`attention_mask`: .*cpu.*meta"):
            role_attention(**call, attention_mask=torch.ones(shape, device=META).bool(), impl="triton")


def test_cpu_without_interpreter_names_device() -> None:
    code = (
        "import torch\n"
        "from rolesafe import role_attention\n"
        "q = torch.zeros(1, 1, 2, 8)\n"
        "roles = torch.zeros(1, 2, dtype=torch.int64)\n"
        "try:\n"
        "    role_attention(q, q, q, roles, roles, impl='triton')\n"
        "except ValueError as error:\n"
        "    print(error)\n"
        "print(role_attention(q, q, q, roles, roles).shape)\n"
    )
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(ROOT / "kernels"), environment.get("PYTHONPATH", "")])
    run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    raised, shape = run.stdout.splitlines()
    assert re.match(r"`impl`: 'triton' does not support this call: expected tensors on a CUDA device, got cpu", raised)
    assert "'sdpa'" in raised
    assert shape == "torch.Size([1, 1, 2, 8])"


NO_ROLE = (-1, -(2**40), 16, 17, 127, 200, 255, 256, 2**31, 2**32, 2**40)


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_invalid_role_ids_are_hidden(bias: bool, train: bool) -> None:
    """Output and gradients are those of a call with these keys masked and these rows 0."""
    make = torch.Generator().manual_seed(0)
    length = 24
    q, k, v = (torch.randn(1, h, length, 16, generator=make) for h in (2, 1, 1))
    roles = torch.randint(0, 3, (1, length), generator=make)
    none = torch.zeros(1, length, dtype=torch.bool)
    none[0, 2 : 2 + len(NO_ROLE)] = True
    strange = roles.clone()
    strange[none] = torch.tensor(NO_ROLE)
    table = torch.randn(2, 3, 3, generator=make) if bias else None
    found = []
    for ids, mask in ((strange, None), (roles, ~none)):
        leaves = [x.clone().requires_grad_(train) for x in (q, k, v)]
        out = fused(*leaves, ids, ids, bias=table, share=torch.tensor([0.3, 1.0]), key_mask=mask)
        out = out if mask is None else out * ~none[:, None, :, None]
        found.append([out, *(torch.autograd.grad(out.square().sum(), leaves) if train else ())])
    assert (found[0][0][:, :, none[0]] == 0).all()
    for got, expected in zip(*found, strict=True):
        assert torch.equal(got, expected)


@pytest.mark.parametrize("kind", [torch.int8, torch.uint8, torch.int16, torch.int32], ids=str)
def test_role_ids_of_every_integer_type(kind: torch.dtype) -> None:
    call = valid()
    expected = fused(**call)
    for name in ("q_roles", "k_roles"):
        call[name] = call[name].to(kind)
    assert torch.equal(fused(**call), expected)
    call["k_roles"] = torch.full_like(call["k_roles"], 255 if kind == torch.uint8 else -1)
    assert (fused(**call) == 0).all()


def test_roles_beyond_the_table_are_hidden() -> None:
    call = {**valid(), "sinks": None}
    keys = call["k_roles"].clamp(max=3)
    keys[:, 2:] = 4
    small = call["bias"][:, :4, :4]
    queries = call["q_roles"].clamp(max=3)
    got = fused(**{**call, "k_roles": keys, "q_roles": queries, "bias": small})
    hidden = torch.arange(S).expand(B, S) < 2
    expected = fused(**{**call, "k_roles": keys.clamp(max=3), "q_roles": queries, "bias": small}, key_mask=hidden)
    torch.testing.assert_close(got, expected)
    assert (fused(**{**call, "q_roles": torch.full_like(queries, 4), "bias": small}) == 0).all()


def test_layout_of_other_tensors_raises() -> None:
    call = valid()
    roles = (call["q_roles"], call["k_roles"])
    assert fused(**call, layout=RoleLayout(*roles)).isfinite().all()
    mask = torch.ones(B, S, dtype=torch.bool)
    others = (RoleLayout(*roles, (0,)), RoleLayout(*roles, (0, 1), mask), RoleLayout(roles[0].clone(), roles[1]))
    for layout in others:
        with pytest.raises(ValueError, match=r"^`layout`: expected the layout of"):
            fused(**call, layout=layout)


@pytest.mark.parametrize("change", ["batch", "size", "dtype", "stride"])
def test_ranges_of_wrong_shape_raise(change: str) -> None:
    call = {**valid(), "q_roles": None, "k_roles": None, "bias": None, "share": None}
    ranges = torch.zeros(B, 2, T, dtype=torch.int32)
    bad = {
        "batch": ranges[:1], "size": ranges[:, :, 1:], "dtype": ranges.long(),
        "stride": torch.zeros(B, T, 2, dtype=torch.int32).transpose(1, 2),
    }  # fmt: skip
    with pytest.raises(ValueError, match=r"^`ranges`: expected dense int32"):
        fused(**call, ranges=(bad[change], torch.zeros(B, 2, S, dtype=torch.int32)))


def test_layout_of_other_roles_raises() -> None:
    call = valid()
    layout = RoleLayout(call["q_roles"][:, :-1], call["k_roles"][:, :-1])
    with pytest.raises(ValueError, match=r"^`layout`: "):
        fused(**call, layout=layout)


SIZES = st.sampled_from([0, 1, 2, 3, 5])
IDS = st.sampled_from([*NO_ROLE, 0, 1, 4, 5, 15])
DTYPES = (torch.float16, torch.float64, torch.bfloat16, torch.int8, torch.int64, torch.bool, torch.complex64)
NUMBERS: dict[str, list[Any]] = {
    "scale": [-1.0, 0.0, float("nan"), float("inf"), 1e-3],
    "window": [-1, 0, 1, 2, 2**31, 2**40],
    "softcap": [-1.0, 0.0, float("nan"), 5.0, float("inf")],
    "dedicated": [-1, 0, 1, 2, 3],
    "privileged": [(), (0, 0), (15,), (16,), (-1,), (0, 1, 2, 3, 4)],
    "integrity": [True],
    "causal": [False],
}
MUTATIONS = ("shape", "dtype", "device", "none", "ids", "number", "number", "mask", "lengths", "cu_seqlens")


def reshaped(draw: Any, x: torch.Tensor) -> torch.Tensor:
    """`x` with one dimension more, less, longer or shorter."""
    change = draw(st.sampled_from(["more", "less", "other size", "longer"]))
    if change == "more" or not x.ndim:
        return x[None]
    axis = draw(st.integers(0, x.ndim - 1))
    shape = list(x.shape)
    if change == "less":
        del shape[axis]
    else:
        shape[axis] = draw(SIZES) if change == "other size" else shape[axis] + 1
    return torch.ones(shape, dtype=x.dtype, device=x.device)


@st.composite
def mutated(draw: Any, front: bool) -> dict[str, Any]:
    """Valid arguments, B=1, H=2, G=1, with one to three changes."""
    call = valid(1, 2, 1)
    for kind in draw(st.lists(st.sampled_from(MUTATIONS), min_size=1, max_size=3)):
        name = draw(st.sampled_from([name for name, x in call.items() if isinstance(x, torch.Tensor)]))
        if kind == "shape":
            call[name] = reshaped(draw, call[name])
        elif kind == "dtype":
            call[name] = call[name].to(draw(st.sampled_from(DTYPES)))
        elif kind == "device":
            call[name] = call[name].to(META)
        elif kind == "none" and name in ("q_roles", "k_roles", "bias", "share", "sinks"):
            call[name] = call[name] if front and name.endswith("roles") else None
        elif kind == "ids":
            name, size = draw(st.sampled_from([("q_roles", T), ("k_roles", S)]))
            call[name] = torch.tensor([draw(st.lists(IDS, min_size=size, max_size=size))])
        elif kind == "number":
            option = draw(st.sampled_from(sorted(NUMBERS)))
            call[option] = draw(st.sampled_from(NUMBERS[option]))
        elif kind == "mask":
            option = "attention_mask" if front else draw(st.sampled_from(["mask", "key_mask"]))
            shape = draw(st.sampled_from([(1, S), (1, T), (1, 1, T, S), (1, 2, T, S), (1, 2, 1, S), (S,), (), (1, 0)]))
            mask = torch.rand(shape, generator=torch.Generator().manual_seed(draw(st.integers(0, 9)))).round()
            call[option] = mask.to(draw(st.sampled_from([torch.bool, torch.bool, torch.int64, torch.float32])))
        elif front and kind in ("lengths", "cu_seqlens"):
            numbers = draw(st.lists(st.sampled_from([-1, 0, 2, 3, 5, 6, 2**40]), max_size=3))
            call[kind] = torch.tensor(numbers, dtype=draw(st.sampled_from([torch.int64, torch.int64, torch.float32])))
    return call


def survives(call: Any, arguments: dict[str, Any]) -> None:
    """Assert that a call raises a known error or gives a finite result of the right shape."""
    message = ""
    out = None
    try:
        out = call(**arguments)
    except (ValueError, RuntimeError) as error:
        message = f"{type(error).__name__}: {error}"
    if out is None:
        assert re.match(r"(Value|Runtime)Error: `\w+`: ", message), message
    else:
        assert out.shape == (*arguments["q"].shape[:3], arguments["v"].shape[3])
        assert torch.isfinite(out).all()


@examples(40)
@given(mutated(front=True))
def test_random_call_raises_or_is_computed(arguments: dict[str, Any]) -> None:
    survives(lambda **x: role_attention(**x, impl="triton"), arguments)


@examples(15)
@given(mutated(front=False))
def test_random_kernel_call_raises_or_is_computed(arguments: dict[str, Any]) -> None:
    survives(fused, arguments)
