"""`RoleHeads`: parameters of a layer, gradient of the share, steering."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch

from rolesafe.config import RoleConfig
from rolesafe.mechanisms import RoleHeads


def test_at_rest() -> None:
    heads = RoleHeads(RoleConfig(), 8)
    assert heads.bias is not None
    assert heads.bias.shape == (8, 5, 5)
    assert not heads.bias.any()
    assert heads.share is heads.reserved_share() is None
    assert heads.changes_scores_only


@pytest.mark.parametrize(
    "options", [{"share": 0.1}, {"dedicated_heads": 1}, {"dedicated_heads": 0.5}, {"integrity": True}], ids=str
)
def test_changes_scores_only_by_part(options: dict[str, Any]) -> None:
    assert not RoleHeads(RoleConfig(**options), 8).changes_scores_only
    off = RoleHeads(RoleConfig(**options), 8, active=False)
    assert off.changes_scores_only
    assert (off.dedicated, off.integrity, off.bias, off.share) == (0, False, None, None)
    assert not list(off.parameters())


@pytest.mark.parametrize(
    "asked, heads, count",
    [(0, 8, 0), (3, 8, 3), (8, 8, 8), (0.5, 8, 4), (0.0, 8, 0), (1.0, 8, 8), (1, 8, 1), (0.3, 9, 3)],
)
def test_number_of_dedicated_heads(asked: float | int, heads: int, count: int) -> None:
    assert RoleHeads(RoleConfig(dedicated_heads=asked), heads).dedicated == count


def test_dedicated_heads_above_heads_raise() -> None:
    with pytest.raises(ValueError, match=r"`dedicated_heads`: expected at most the 8 heads .* got 9"):
        RoleHeads(RoleConfig(dedicated_heads=9), 8)


def test_dedicated_layer_has_no_share() -> None:
    assert RoleHeads(RoleConfig(share=0.5, dedicated_heads=1.0), 8).share is None


def test_share_starts_at_config_value() -> None:
    heads = RoleHeads(RoleConfig(share=0.25), 4)
    assert heads.share is not None
    assert heads.share.tolist() == [0.25] * 4
    assert heads.share.requires_grad
    fixed = RoleHeads(RoleConfig(share=0.25, learn_share=False), 4).share
    assert fixed is not None
    assert not fixed.requires_grad
    with torch.no_grad():
        heads.share.fill_(0.9)
    heads.reset_parameters()
    assert heads.share.tolist() == [0.25] * 4


def test_share_is_clamped_without_gradient_clamp() -> None:
    heads = RoleHeads(RoleConfig(share=0.5), 4)
    assert heads.share is not None
    with torch.no_grad():
        heads.share.copy_(torch.tensor([-0.5, 0.0, 0.7, 1.5]))
    share = heads.reserved_share()
    assert share is not None
    torch.testing.assert_close(share, torch.tensor([0.0, 0.0, 0.7, 1.0]), rtol=0, atol=0)
    weights = torch.tensor([1.0, 2.0, 3.0, 4.0])
    (share * weights).sum().backward()
    assert torch.equal(heads.share.grad, weights)


def test_share_outside_range_returns() -> None:
    """Gradient descent towards 0.5 from 1.4, through the clamp."""
    heads = RoleHeads(RoleConfig(share=1.0), 1)
    assert heads.share is not None
    with torch.no_grad():
        heads.share.fill_(1.4)
    optimizer = torch.optim.SGD(heads.parameters(), lr=0.2)
    for _ in range(60):
        optimizer.zero_grad()
        share = heads.reserved_share()
        assert share is not None
        (share - 0.5).square().sum().backward()
        optimizer.step()
    assert heads.share.item() == pytest.approx(0.5, abs=1e-3)


def test_share_is_learned_above_floor_only() -> None:
    heads = RoleHeads(RoleConfig(share=0.5, share_floor=0.3), 4)
    assert heads.share is not None
    with torch.no_grad():
        heads.share.copy_(torch.tensor([-0.5, 0.3, 0.7, 1.5]))
    for sign, gradient in ((1.0, [0.0, 0.0, 1.0, 1.0]), (-1.0, [-1.0, -1.0, -1.0, -1.0])):
        heads.share.grad = None
        share = heads.reserved_share()
        assert share is not None
        torch.testing.assert_close(share, torch.tensor([0.3, 0.3, 0.7, 1.0]), rtol=0, atol=0)
        (sign * share).sum().backward()
        assert heads.share.grad is not None
        assert heads.share.grad.tolist() == gradient


def test_share_returns_from_floor_at_once() -> None:
    """400 steps towards less than the floor do not delay the way back."""
    heads = RoleHeads(RoleConfig(share=0.3, share_floor=0.3), 1)
    assert heads.share is not None
    optimizer = torch.optim.Adam(heads.parameters(), lr=0.01)
    found = []
    for target in [0.0] * 400 + [1.0] * 30:
        optimizer.zero_grad()
        share = heads.reserved_share()
        assert share is not None
        (share - target).square().sum().backward()
        optimizer.step()
        found.append(share.item())
    assert found[:400] == [found[0]] * 400
    assert found[-1] > 0.45


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_dtype_and_device(dtype: torch.dtype) -> None:
    heads = RoleHeads(RoleConfig(share=0.5), 4, dtype=dtype, device=torch.device("cpu"))
    assert {x.dtype for x in heads.parameters()} == {dtype}
    meta = RoleHeads(RoleConfig(share=0.5), 4, device=torch.device("meta"))
    assert {x.device.type for x in meta.parameters()} == {"meta"}
    assert {name for name, _ in meta.named_parameters()} == {"bias", "share"}


# ------------------------------------------------------------------------------------------------------------ steering


def test_steering_is_log_of_factors_on_chosen_heads() -> None:
    config = RoleConfig(bias=False, boost=4.0, dampen=0.5, steered_heads=((1, 0), (1, 3), (2, 1)))
    table, share = RoleHeads(config, 4, layer=1)()
    assert share is None
    assert table is not None
    expected = torch.zeros(4, 5, 5)
    for head in (0, 3):
        for query in range(5):
            for key in range(5):
                expected[head, query, key] = math.log(4.0) if key < 2 else math.log(0.5)
    torch.testing.assert_close(table, expected, rtol=0, atol=1e-7)
    assert RoleHeads(config, 4, layer=0)() == (None, None)
    assert RoleHeads(config, 4, layer=1, active=False)() == (None, None)
    assert not list(RoleHeads(config, 4, layer=1).parameters())


def test_steering_stays_in_fp32() -> None:
    heads = RoleHeads(RoleConfig(boost=3.0), 2, dtype=torch.bfloat16)
    table, _ = heads()
    assert table is not None
    assert table.dtype == torch.float32
    assert table[0, 0, 0].item() == pytest.approx(math.log(3.0), abs=1e-7)
    table.sum().backward()
    assert heads.bias is not None
    assert heads.bias.grad is not None


def test_dedicated_heads_are_not_steered() -> None:
    """They have one channel only, where the same constant for all keys has no effect."""
    assert RoleHeads(RoleConfig(boost=3.0, dedicated_heads=2), 4).steered == (2, 3)


def test_steering_survives_copy_and_device_change() -> None:
    heads = RoleHeads(RoleConfig(boost=3.0, bias=False), 2)
    with torch.inference_mode():
        heads()
    again = copy.deepcopy(heads)()[0]
    assert again is not None
    assert not again.is_inference()
    meta = heads(torch.device("meta"))[0]
    assert meta is not None
    assert meta.is_meta


def test_heads_return_copies_of_parameters() -> None:
    """Offloading and `fully_shard` free the parameter after the call."""
    heads = RoleHeads(RoleConfig(share=0.3), 2)
    for table, parameter in zip(heads(), (heads.bias, heads.share), strict=True):
        assert table.untyped_storage().data_ptr() != parameter.untyped_storage().data_ptr()
        assert table.requires_grad
