"""Inputs of calls; shapes, work and bytes of the grids."""

from __future__ import annotations

import pytest
import torch

from benchmarks.throughput.shapes import (
    LENGTHS,
    TOKENS,
    backward_flops,
    cache_bytes,
    decode_shapes,
    forward_flops,
    gate_shape,
    pair_bytes,
    square_shapes,
)
from benchmarks.throughput.steps import BEYOND_L2, MOST_CACHES, count_caches
from tools.inputs import ASSISTANT, ROLES, SYSTEM, Features, Shape, chat_roles, make_inputs

CPU = torch.device("cpu")


@pytest.mark.parametrize("length", [1024, 4096, 32_768])
def test_chat_roles_have_the_shares_of_a_chat(length: int) -> None:
    roles = chat_roles(8, length)
    assert roles.shape == (8, length)
    assert roles.dtype == torch.int64
    assert set(roles.unique().tolist()) == {0, 2, 3, 4}
    shares = (roles == SYSTEM).double().mean(1)
    assert shares.mean().item() == pytest.approx(0.05, abs=0.006)
    assert ((shares > 0.038) & (shares < 0.062)).all()
    assert shares.unique().numel() > 1
    for row in roles:
        starts = (row[1:] != row[:-1]).nonzero()[:, 0] + 1
        assert 6 <= len(starts) <= 12
        assert (starts % 2 == 1).all(), "a run starts with a block"


def test_chat_roles_rows_differ_and_seeds_repeat() -> None:
    roles = chat_roles(4, 2048, seed=3)
    assert len({tuple(row) for row in roles.tolist()}) == 4
    assert torch.equal(roles, chat_roles(4, 2048, seed=3))
    assert not torch.equal(roles, chat_roles(4, 2048, seed=4))


@pytest.mark.parametrize("length", [1, 2, 7, 20])
def test_chat_roles_short_rows_are_valid(length: int) -> None:
    roles = chat_roles(3, length)
    assert ((roles >= 0) & (roles < ROLES)).all()


def test_flops_and_bytes_of_a_shape() -> None:
    shape = Shape(2, 32, 8, 4096, 4096, 128)
    assert forward_flops(shape) == 4 * 2 * 32 * 4096**2 * 128 / 2
    assert backward_flops(shape) == 2.5 * forward_flops(shape)
    assert cache_bytes(shape) == 2 * 2 * 8 * 4096 * 128 * 2
    assert pair_bytes(shape) == 2 * 32 * 4096**2 * 2


def test_grids_start_with_urgent_shapes() -> None:
    shapes = square_shapes((128, 64), LENGTHS)
    assert len(shapes) == 12
    assert all(shape.batch * shape.queries == TOKENS and shape.square for shape in shapes)
    assert [(s.dim, s.queries) for s in shapes[:2]] == [(128, 4096), (128, 16_384)]
    assert {(s.queries, s.batch, s.keys) for s in decode_shapes()} == {
        (t, b, s) for t in (1, 4) for b in (1, 8, 32) for s in (1024, 4096, 16_384, 32_768)
    }


def test_make_inputs_has_a_models_layout() -> None:
    x = make_inputs(Shape(2, 4, 2, 64, 64, 16), torch.bfloat16, CPU, gradients=True)
    assert x.q.shape == x.grad.shape == (2, 4, 64, 16)
    assert x.k.shape == x.v.shape == (2, 2, 64, 16)
    assert x.q.transpose(1, 2).is_contiguous()
    assert x.q_roles is x.k_roles
    assert x.bias.dtype == torch.float32
    assert list(x.leaves(Features(bias=True, share=True))) == ["q", "k", "v", "bias", "share"]
    assert all(leaf.is_leaf and leaf.requires_grad for leaf in x.leaves(Features(bias=True, share=True)).values())


def test_new_cache_differs_in_keys_and_values() -> None:
    first = make_inputs(Shape(2, 4, 2, 4, 50, 16), torch.float16, CPU)
    second = first.new_cache(seed=1)
    assert first.q is second.q
    assert not torch.equal(first.k, second.k)
    assert (second.k.shape, second.k.stride()) == (first.k.shape, first.k.stride())
    assert first.q_roles.shape == (2, 4)
    assert (first.q_roles == ASSISTANT).all()
    assert torch.equal(first.k_roles[:, -4:], first.q_roles)


def test_count_caches_exceeds_l2() -> None:
    for shape in decode_shapes():
        count = count_caches(shape)
        assert 1 <= count <= MOST_CACHES
        assert count == MOST_CACHES or count * cache_bytes(shape) >= BEYOND_L2
        assert count == 1 or (count - 1) * cache_bytes(shape) < BEYOND_L2


def test_gate_shape_keeps_what_is_compiled() -> None:
    for shape in (*square_shapes((128, 64), LENGTHS), *decode_shapes()):
        small = gate_shape(shape)
        assert (small.heads, small.groups, small.dim) == (shape.heads, shape.groups, shape.dim)
        assert small.square == shape.square
        assert small.square or (small.batch, small.queries) == (shape.batch, shape.queries)
        assert small.keys % 32 == 16, "a multiple of 16, and of no block"
        assert small.keys <= shape.keys
