"""Combinations of mask, channel, table and shape: `sdpa` is `reference` in fp64. One call each, no random choice.

A third of all combinations, in which all combinations of six of the eight factors occur.

Legend: B batch, H query heads, T queries, S keys, R roles.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from rolesafe import role_attention
from tests.attention.problems import third

B, H, G, S, D, R = 2, 4, 2, 7, 8, 3
MASKS = ("none", "padding", "lengths", "1 1", "B 1", "1 H", "B H", "B H and lengths")
REFERENCE: dict[tuple[str, str], dict[str, Tensor]] = {}
"""Outputs of the reference by mask and order: the ways of `sdpa` are compared with the same ones."""
ORDERS: tuple[dict[str, Any], ...] = ({"causal": True}, {"causal": False}, {"causal": True, "window": 3})


def masked(kind: str, length: int, make: torch.Generator) -> dict[str, Any]:
    """Arguments of a mask of this kind; no row sees nothing, but rows without a privileged key do occur."""
    lengths = {"lengths": torch.tensor([S, S - 2])}
    if kind == "none":
        return {}
    if kind == "lengths":
        return lengths
    if kind == "padding":
        return {"attention_mask": torch.tensor([[0, 0, 1, 1, 1, 1, 1], [1] * S])}
    shape = {"1": 1, "B": B, "H": H}
    rows, heads = (shape[x] for x in kind.split()[:2])
    mask = torch.rand(rows, heads, length, S, generator=make) < 0.6
    mask[..., 2] = True
    return {"attention_mask": mask, **(lengths if kind.endswith("lengths") else {})}


@pytest.mark.parametrize("order", ORDERS, ids=lambda x: "+".join(f"{k}={v}" for k, v in x.items()))
@pytest.mark.parametrize("kind", MASKS)
def test_sdpa_equals_reference_on_grid(kind: str, order: dict[str, Any]) -> None:
    make = torch.Generator().manual_seed(0)
    normal = [torch.randn(*shape, generator=make, dtype=torch.float64) for shape in ((B, H, S, D), *[(B, G, S, D)] * 2)]
    roles = torch.tensor([[0, 1, 2, 2, 1, 2, 0], [2, 0, 2, 1, 2, 0, 2]])
    table = torch.randn(H, R, R, generator=make, dtype=torch.float64)
    hiding = table.masked_fill(torch.rand(H, R, R, generator=make) < 0.3, float("-inf"))
    share = torch.tensor([0.0, 0.3, 1.0, 0.7], dtype=torch.float64)
    parts = third(
        MASKS.index(kind) + ORDERS.index(order),
        (1, 3, S),  # T
        (None, table, hiding),
        (None, share),
        (0, 1, 3, H),  # dedicated
        (False, True),  # integrity
        (0.0, 0.6),  # mass target
    )
    known = REFERENCE.setdefault((kind, str(order)), {})
    for length, bias, reserved, dedicated, integrity, target in parts:
        q, k, v = normal[0][:, :, S - length :], *normal[1:]
        options = {
            **masked(kind, length, make),
            **order,
            "bias": bias,
            "share": reserved,
            "dedicated": dedicated,
            "integrity": integrity,
            "mass_target": target,
            "privileged": (0,),
        }
        given = q, k, v, roles[:, S - length :], roles
        what = f"{length=} {bias is None=} {bias is hiding=} {reserved is None=} {dedicated=} {integrity=} {target=}"
        if what not in known:
            known[what] = role_attention(*given, impl="reference", **options)
        found = role_attention(*given, impl="sdpa", **options)
        torch.testing.assert_close(found, known[what], rtol=1e-9, atol=1e-9, msg=lambda m, w=what: f"{w}: {m}")
