"""Invalid calls raise an error that names the argument, the expected and the given value."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from rolesafe import role_attention
from rolesafe.attention import resolve_impl

NAN, INF = float("nan"), float("inf")


def call(**changes: Any) -> torch.Tensor:
    """B=2, H=4, G=2, T=3, S=5, D=8."""
    arguments: dict[str, Any] = {
        "q": torch.randn(2, 4, 3, 8),
        "k": torch.randn(2, 2, 5, 8),
        "v": torch.randn(2, 2, 5, 8),
        "q_roles": torch.zeros(2, 3, dtype=torch.int64),
        "k_roles": torch.zeros(2, 5, dtype=torch.int64),
        **changes,
    }
    return role_attention(**arguments)


def test_valid_call_is_computed() -> None:
    assert call(bias=torch.zeros(4, 5, 5), share=torch.zeros(4)).shape == (2, 4, 3, 8)
    assert call(q_roles=torch.zeros(2, 3, dtype=torch.uint8)).shape == (2, 4, 3, 8)
    assert call(v=torch.randn(2, 2, 5, 3)).shape == (2, 4, 3, 3)


def test_mass_target_with_triton_raises() -> None:
    assert resolve_impl("auto", mass_target=True, device=torch.device("cuda"), dim=64) == "sdpa"
    assert resolve_impl("auto", mass_target=True, softcap=True) == "reference"
    with pytest.raises(ValueError, match=r"`mass_target`: expected 0.0 with impl='triton'"):
        call(mass_target=0.2, impl="triton")
    with pytest.raises(ValueError, match=r"`mass_target`: expected a number in \[0, 1\], got 1.5"):
        call(mass_target=1.5)


BAD: list[tuple[dict[str, Any], str, str, str]] = [
    ({"q": torch.randn(4, 3, 8)}, "q", "4 dimensions", "(4, 3, 8)"),
    ({"q": torch.zeros(2, 4, 3, 8, dtype=torch.int64)}, "q", "floating", "torch.int64"),
    ({"k": torch.randn(2, 5, 8)}, "k", "4 dimensions", "(2, 5, 8)"),
    ({"k": torch.randn(2, 2, 5, 8).double()}, "k", "torch.float32", "torch.float64"),
    ({"v": torch.randn(2, 2, 5, 8).half()}, "v", "torch.float32", "torch.float16"),
    ({"v": torch.randn(2, 2, 5, 8, device="meta")}, "v", "cpu", "meta"),
    ({"k": torch.randn(1, 2, 5, 8)}, "k", "(2, G, S, 8)", "(1, 2, 5, 8)"),
    ({"k": torch.randn(2, 2, 5, 7)}, "k", "(2, G, S, 8)", "(2, 2, 5, 7)"),
    ({"v": torch.randn(2, 2, 6, 8)}, "v", "(2, 2, 5, 'Dv')", "(2, 2, 6, 8)"),
    ({"k": torch.randn(2, 3, 5, 8), "v": torch.randn(2, 3, 5, 8)}, "k", "divides 4", "got 3"),
    ({"q_roles": torch.zeros(2, 4, dtype=torch.int64)}, "q_roles", "(2, 3)", "(2, 4)"),
    ({"k_roles": torch.zeros(2, 3, dtype=torch.int64)}, "k_roles", "(2, 5)", "(2, 3)"),
    ({"k_roles": torch.zeros(2, 5)}, "k_roles", "integer", "torch.float32"),
    ({"k_roles": torch.zeros(2, 5, dtype=torch.bool)}, "k_roles", "integer", "torch.bool"),
    ({"q_roles": torch.zeros(2, 3, dtype=torch.int64, device="meta")}, "q_roles", "device cpu", "meta"),
    ({"q_roles": torch.full((2, 3), 16)}, "q_roles", "[0, 16)", "16 to 16"),
    ({"k_roles": torch.full((2, 5), -1)}, "k_roles", "[0, 16)", "-1 to -1"),
    ({"k_roles": torch.full((2, 5), 5), "bias": torch.zeros(4, 5, 5)}, "k_roles", "[0, 5)", "5 to 5"),
    ({"bias": torch.zeros(3, 5, 5)}, "bias", "(H=4, R, R)", "(3, 5, 5)"),
    ({"bias": torch.zeros(4, 5, 6)}, "bias", "(H=4, R, R)", "(4, 5, 6)"),
    ({"bias": torch.zeros(4, 17, 17)}, "bias", "R <= 16", "(4, 17, 17)"),
    ({"bias": torch.zeros(4, 5, 5, device="meta")}, "bias", "device cpu", "meta"),
    ({"bias": torch.full((4, 5, 5), NAN)}, "bias", "finite entries or -inf", "NaN or +inf"),
    ({"bias": torch.full((4, 5, 5), INF)}, "bias", "finite entries or -inf", "NaN or +inf"),
    ({"share": torch.zeros(3)}, "share", "(H=4,)", "(3,)"),
    ({"share": torch.full((4,), 1.5)}, "share", "[0, 1]", "1.5"),
    ({"share": torch.full((4,), -0.5)}, "share", "[0, 1]", "-0.5"),
    ({"share": torch.full((4,), NAN)}, "share", "[0, 1]", "nan"),
    ({"sinks": torch.zeros(4, 1)}, "sinks", "(H=4,)", "(4, 1)"),
    ({"privileged": (0, 16)}, "privileged", "[0, 16)", "got 16"),
    ({"privileged": (-1,)}, "privileged", "[0, 16)", "got -1"),
    ({"privileged": (5,), "bias": torch.zeros(4, 5, 5)}, "privileged", "[0, 5)", "got 5"),
    ({"dedicated": 5}, "dedicated", "0 to 4", "got 5"),
    ({"dedicated": -1}, "dedicated", "0 to 4", "got -1"),
    ({"window": 0}, "window", "positive", "got 0"),
    ({"window": 4, "causal": False}, "window", "causal=True", "causal=False"),
    ({"dropout": 1.0}, "dropout", "[0, 1)", "1.0"),
    ({"dropout": NAN}, "dropout", "[0, 1)", "nan"),
    ({"softcap": 0.0}, "softcap", "positive", "0.0"),
    ({"attention_mask": torch.ones(2, 3)}, "attention_mask", "(2, 5)", "(2, 3)"),
    ({"attention_mask": torch.ones(2, 1, 3, 5)}, "attention_mask", "bool mask", "torch.float32"),
    ({"attention_mask": torch.ones(2, 3, 3, 5).bool()}, "attention_mask", "(2 | 1, 4 | 1, 3, 5)", "(2, 3, 3, 5)"),
    ({"impl": "flash"}, "impl", "'auto', 'reference', 'sdpa', 'triton'", "'flash'"),
    ({"impl": "sdpa", "softcap": 30.0}, "impl", "'reference'", "`softcap`"),
    ({"impl": "sdpa", "sinks": torch.zeros(4)}, "impl", "'reference'", "`sinks`"),
]


@pytest.mark.parametrize("changes, argument, expected, got", BAD, ids=[f"{b[1]}-{b[3]}" for b in BAD])
def test_error_names_argument(changes: dict[str, Any], argument: str, expected: str, got: str) -> None:
    with pytest.raises(ValueError, match=f"^`{argument}`") as error:
        call(**changes)
    assert expected in str(error.value)
    assert got in str(error.value)


def test_missing_triton_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rolesafe.attention.backends.HAS_TRITON", False)
    with pytest.raises(RuntimeError, match="`impl`"):
        call(impl="triton")
    with pytest.raises(RuntimeError, match="`impl`"):
        resolve_impl("triton", softcap=True)
