"""Integrity: edits of other text keep privileged states bit-exact, the shape of the batch up to rounding."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from rolesafe import RoleConfig
from tests.models import VOCAB, random_batch, role_model

CONFIG = RoleConfig.preset("separate", share=0.3)


def states(model: torch.nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """Return the last hidden states of the privileged tokens of row 1, in order."""
    with torch.no_grad():
        hidden = model(**batch, output_hidden_states=True, use_cache=False).hidden_states[-1][1]
    kept: Tensor = hidden[(batch["role_ids"][1] < 2) & batch["attention_mask"][1].bool()]
    return kept


@pytest.mark.parametrize("family", ["llama", "gemma3_text"])
def test_integrity_other_text_keeps_states_bit_exact(family: str) -> None:
    model, batch = role_model(family, CONFIG), random_batch()
    before = states(model, batch)
    for seed in range(3):
        other = {name: value.clone() for name, value in batch.items()}
        noise = torch.randint(3, VOCAB, (2, 14), generator=torch.Generator().manual_seed(seed))
        other["input_ids"] = torch.where(batch["role_ids"] < 2, batch["input_ids"], noise)
        assert torch.equal(states(model, other), before)


@pytest.mark.parametrize("change", ["neighbour's padding", "fewer rows", "longer row"])
def test_integrity_batch_shape_changes_only_rounding(change: str) -> None:
    model, batch = role_model("llama", CONFIG), random_batch()
    before = states(model, batch)
    if change == "neighbour's padding":
        batch["attention_mask"][0, :8] = 0
    elif change == "fewer rows":
        batch = {name: value[[1, 1, 1]] for name, value in batch.items()}
    else:
        more = {"input_ids": 7, "attention_mask": 1, "role_ids": 2}
        batch = {name: torch.nn.functional.pad(x, (0, 5), value=more[name]) for name, x in batch.items()}
    torch.testing.assert_close(states(model, batch), before, rtol=0, atol=1e-5)
