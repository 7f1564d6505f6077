"""`RoleEmbedding` against two lines of loops."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rolesafe.mechanisms import RoleEmbedding


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.integers(1, 3), st.integers(1, 7), st.integers(1, 9), st.integers(1, 16), st.integers(0, 1000))
def test_embedding_adds_role_vectors(batch: int, length: int, dim: int, num_roles: int, seed: int) -> None:
    torch.manual_seed(seed)
    embedding = RoleEmbedding(num_roles, dim, std=0.5)
    x, roles = torch.randn(batch, length, dim), torch.randint(0, num_roles, (batch, length))
    rows = [[x[b, t] + embedding.weight[roles[b, t]] for t in range(length)] for b in range(batch)]
    assert torch.equal(embedding(x, roles), torch.stack([torch.stack(row) for row in rows]))


def test_at_rest_is_identity() -> None:
    x, roles = torch.randn(2, 5, 8), torch.randint(0, 5, (2, 5))
    assert torch.equal(RoleEmbedding(5, 8)(x, roles), x)


def test_start_and_reset() -> None:
    torch.manual_seed(0)
    embedding = RoleEmbedding(16, 4096, std=0.02)
    assert embedding.weight.std().item() == pytest.approx(0.02, rel=0.02)
    with torch.no_grad():
        embedding.weight.fill_(7.0)
    embedding.reset_parameters()
    assert embedding.weight.std().item() == pytest.approx(0.02, rel=0.02)
    assert not RoleEmbedding(5, 8).weight.any()


def test_embedding_keeps_dtype_of_hidden_states() -> None:
    roles = torch.zeros(1, 3, dtype=torch.int64)
    embedding = RoleEmbedding(5, 8, std=1.0, dtype=torch.bfloat16, device=torch.device("cpu"))
    assert embedding.weight.dtype == torch.bfloat16
    assert embedding(torch.zeros(1, 3, 8), roles).dtype == torch.float32
    assert RoleEmbedding(5, 8)(torch.zeros(1, 3, 8, dtype=torch.bfloat16), roles).dtype == torch.bfloat16
    assert RoleEmbedding(5, 8, device=torch.device("meta")).weight.device.type == "meta"


def test_roles_without_vector_are_not_changed() -> None:
    embedding = RoleEmbedding(5, 8, roles=(2, 4), std=0.5)
    x, roles = torch.randn(1, 5, 8), torch.arange(5)[None]
    with torch.no_grad():
        embedding.weight[0] = torch.nan
    out = embedding(x, roles)
    for role in (0, 1, 3):
        assert torch.equal(out[:, role], x[:, role])
    for role in (2, 4):
        assert torch.equal(out[:, role], x[:, role] + embedding.weight[role])
    out.sum().backward()
    assert embedding.weight.grad is not None
    assert embedding.weight.grad.any(1).tolist() == [False, False, True, False, True]


def test_gradient_counts_tokens_of_role() -> None:
    embedding = RoleEmbedding(3, 4)
    embedding(torch.zeros(1, 5, 4), torch.tensor([[0, 2, 2, 2, 0]])).sum().backward()
    assert torch.equal(embedding.weight.grad, torch.tensor([2.0, 0.0, 3.0]).unsqueeze(1).expand(3, 4))
