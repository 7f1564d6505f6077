"""`DataTransform`: rotation and shift of some tokens, against loops."""

from __future__ import annotations

import math

import pytest
import torch

from rolesafe.mechanisms import DataTransform, set_strength
from rolesafe.mechanisms.data import rotate


@pytest.mark.parametrize("angle", [0.0, 0.4, math.pi / 2, -3.0])
def test_rotation_turns_neighbouring_pairs(angle: float) -> None:
    x = torch.randn(2, 3, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected = torch.empty_like(x)
    for i in range(4):
        turned = torch.view_as_complex(x[..., 2 * i : 2 * i + 2].contiguous()) * complex(
            math.cos(angle), math.sin(angle)
        )
        expected[..., 2 * i], expected[..., 2 * i + 1] = turned.real, turned.imag
    torch.testing.assert_close(rotate(x, angle), expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(rotate(x, angle).norm(dim=-1), x.norm(dim=-1))


def test_transform_changes_only_its_roles() -> None:
    part = DataTransform((2, 4), 6, rotation=math.pi / 2, shift=True)
    make = torch.Generator().manual_seed(0)
    with torch.no_grad():
        part.shift_weight.normal_(generator=make)
        part.shift_bias.normal_(generator=make)
    x, roles = torch.randn(2, 7, 6, generator=make), torch.randint(0, 5, (2, 7), generator=make)
    out = part(x, roles)
    for b in range(2):
        for t in range(7):
            if int(roles[b, t]) in (2, 4):
                turned = torch.stack([torch.stack([-v[1], v[0]]) for v in x[b, t].view(3, 2)]).flatten()
                torch.testing.assert_close(out[b, t], turned + part.shift_weight @ turned + part.shift_bias)
            else:
                assert torch.equal(out[b, t], x[b, t])


def test_strength_scales_angle_and_shift() -> None:
    x, roles = torch.randn(1, 4, 6, generator=torch.Generator().manual_seed(0)), torch.full((1, 4), 2)
    part = DataTransform((2,), 6, rotation=0.8, shift=True)
    with torch.no_grad():
        part.shift_bias.fill_(2.0)
    set_strength(part, 0.25)
    torch.testing.assert_close(part(x, roles), rotate(x, 0.2) + 0.5)
    set_strength(part, 0.0)
    assert part(x, roles) is x


def test_at_rest_is_identity() -> None:
    x, roles = torch.randn(1, 4, 6), torch.full((1, 4), 2)
    assert torch.equal(DataTransform((2,), 6, shift=True)(x, roles), x)
    assert sum(p.numel() for p in DataTransform((2,), 6, shift=True).parameters()) == 42
    assert not list(DataTransform((2,), 6, rotation=1.0).parameters())


def test_dtype_and_device() -> None:
    part = DataTransform((2,), 6, rotation=1.0, shift=True, dtype=torch.bfloat16)
    assert part(torch.zeros(1, 3, 6, dtype=torch.bfloat16), torch.full((1, 3), 2)).dtype == torch.bfloat16
    assert part(torch.zeros(1, 3, 6), torch.full((1, 3), 2)).dtype == torch.float32
    meta = DataTransform((2,), 6, shift=True, device=torch.device("meta"))
    assert {p.device.type for p in meta.parameters()} == {"meta"}


def test_rotation_of_odd_dimension_raises() -> None:
    with pytest.raises(ValueError, match=r"`rotation`: expected an even hidden size .* got 7"):
        DataTransform((2,), 7, rotation=0.1)
    DataTransform((2,), 7, shift=True)
