"""Padding on a CPU: the mask of pairs is the base model's, role-aware attention reads the padding it was made from."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from rolesafe import RoleConfig
from rolesafe.attention import stretches
from rolesafe.patching.masks import padding_of, role_mask
from tests.models import role_model

LENGTH = 40


def batch(left: int, right: int) -> dict[str, torch.Tensor]:
    """Return two rows: a whole one, and one with padding on either side."""
    make = torch.Generator().manual_seed(0)
    mask = torch.ones(2, LENGTH, dtype=torch.int64)
    mask[1, :left] = 0
    mask[1, LENGTH - right :] = 0
    roles = torch.tensor([0, 2, 3, 2]).repeat_interleave(LENGTH // 4).expand(2, LENGTH)
    ids = torch.randint(5, 50, (2, LENGTH), generator=make)
    return {"input_ids": ids, "attention_mask": mask, "role_ids": roles}


@pytest.mark.parametrize("sides", [(7, 0), (0, 9)], ids=["left", "right"])
def test_padded_rows_are_computed_in_pieces(sides: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    """A padded row has the logits of the row alone, in pieces, folded, and with its mask of pairs."""
    model = role_model("llama", RoleConfig.preset("channel"))
    masks: list[Any] = []
    attend = torch.nn.functional.scaled_dot_product_attention

    def watched(*args: Any, **kwargs: Any) -> torch.Tensor:
        masks.append(args[3] if len(args) > 3 else None)
        return attend(*args, **kwargs)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", watched)
    x = batch(*sides)
    real = x["attention_mask"][1].bool()
    position = (real.long().cumsum(0) - 1).clamp(min=0)
    x["position_ids"] = torch.stack([torch.arange(LENGTH), position])
    alone = {"input_ids": x["input_ids"][1:, real], "role_ids": x["role_ids"][1:, real]}
    with torch.no_grad():
        expected = model(**alone).logits[0]
        masks.clear()
        monkeypatch.setattr(stretches, "LEAST_AREA", 0)
        pieces = model(**x).logits[1, real]
        assert not masks  # no call of the base, and none with a mask
        monkeypatch.setattr(stretches, "LEAST_AREA", 2**62)
        folded = model(**x).logits[1, real]
        monkeypatch.setattr("rolesafe.patching.attention.padding_of", lambda mask: None)
        pairs = model(**x).logits[1, real]
    for logits in (pieces, folded, pairs):
        torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)


def test_padding_of_a_changed_or_copied_mask_is_none() -> None:
    padding = torch.ones(2, 8, dtype=torch.bool)
    padding[0, :2] = False
    mask = role_mask(2, 8, 8, attention_mask=padding)
    assert mask is not None
    assert torch.equal(padding_of(mask), padding)  # type: ignore[arg-type]
    assert padding_of(mask.clone()) is None
    mask[:, :, 3:, 0] = False
    assert padding_of(mask) is None


def test_padding_of_other_orders_is_none() -> None:
    padding = torch.ones(1, 8, dtype=torch.bool)
    padding[0, :2] = False
    window = role_mask(1, 8, 8, attention_mask=padding, mask_function=lambda b, h, q, k: (k <= q) & (k > q - 3))
    assert window is not None
    assert padding_of(window) is None
    static = role_mask(1, 4, 8, attention_mask=padding)  # more keys than tokens so far
    assert static is not None
    assert padding_of(static) is None
    continued = role_mask(1, 4, 8, 4, attention_mask=padding)
    assert continued is not None
    assert torch.equal(padding_of(continued), padding)  # type: ignore[arg-type]
    with torch.inference_mode():
        inference = role_mask(1, 8, 8, attention_mask=padding)
    assert inference is not None
    assert padding_of(inference) is None
