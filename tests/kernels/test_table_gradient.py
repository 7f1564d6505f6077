"""Error of the table's gradient."""

from __future__ import annotations

import torch
from rolesafe_kernels import role_attention

HEADS, GROUPS, DIM = 4, 2, 32


def test_table_gradient_error_is_output_rounding() -> None:
    """Of one role only, every row's score gradients add up to 0. The kernel takes delta from the output as it is
    stored, so they add up to do . (o - stored o), and the table's entry is the sum of that over rows."""
    make = torch.Generator().manual_seed(0)
    q, k, v, grad = (
        torch.randn(2, heads, 2, DIM, generator=make).half().requires_grad_()
        for heads in (HEADS, GROUPS, GROUPS, HEADS)
    )
    roles, bias = torch.zeros(2, 2, dtype=torch.long), torch.zeros(HEADS, 5, 5, requires_grad=True)
    out = role_attention(q, k, v, roles, roles, bias=bias)
    (found,) = torch.autograd.grad(out, [bias], grad.detach())
    wide = [x.detach().double().repeat_interleave(HEADS // x.shape[1], 1) for x in (q, k, v)]
    scores = wide[0] @ wide[1].mT * DIM**-0.5
    exact = scores.masked_fill(torch.ones(2, 2, dtype=torch.bool).triu(1), -torch.inf).softmax(-1) @ wide[2]
    expected = (grad.detach().double() * (exact - out.detach().double())).sum((0, 2, 3))  # (H,)
    assert expected.abs().max() > 1e-4
    torch.testing.assert_close(found[:, 0, 0].double(), expected, rtol=0.02, atol=1e-5)
    assert not found.flatten(1)[:, 1:].any()
