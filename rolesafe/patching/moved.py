"""Listed dedicated heads: an exact exchange of heads that moves them to the front of their layer.

The backends expect dedicated heads to be the first of a layer. Attention does not depend on the order of its heads, so
the rows of the projections to queries, keys and values are exchanged, and the columns of the output projection. Heads
stay with their keys: whole groups move, and heads move within a group. Only the sum of the output projection is
computed in another order, which changes the last bits.

Legend: H query heads, G key/value heads, D head dim.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from rolesafe.config import RoleConfig
from rolesafe.patching import families

MARK = "rolesafe_moved_heads"
"""Entry of a base model's configuration: True where listed heads are at the front already, as in a checkpoint."""

_INPUTS = ("q_proj", "k_proj", "v_proj")
_OUTPUT = "o_proj"
_NORMS = ("q_norm", "k_norm")


def count_groups(module: nn.Module, heads: int) -> int:
    """Return the number of key/value heads of an attention module with `heads` query heads."""
    q, k = (module._modules[name].weight for name in _INPUTS[:2])  # type: ignore[union-attr]
    return int(k.shape[0]) * heads // int(q.shape[0])  # type: ignore[index]


def head_order(heads: int, groups: int, listed: tuple[int, ...]) -> list[int] | None:
    """Return the order of the query heads that puts `listed` first and keeps groups; None where there is none.

    Args:
        heads: H.
        groups: G, a divisor of H. Query head h reads the keys of group ``h * G // H``.
        listed: Query heads.
    """
    each = heads // groups
    of = [[h for h in range(g * each, (g + 1) * each) if h in listed] for g in range(groups)]
    partial = [g for g in range(groups) if 0 < len(of[g]) < each]
    if len(partial) > 1:
        return None
    whole = [g for g in range(groups) if len(of[g]) == each]
    rest = [g for g in range(groups) if not of[g]]
    order = [h for g in whole for h in of[g]]
    for g in partial:
        order += of[g] + [h for h in range(g * each, (g + 1) * each) if h not in listed]
    return order + [h for g in rest for h in range(g * each, (g + 1) * each)]


def check_moved(module: nn.Module, heads: int, listed: tuple[int, ...]) -> None:
    """Raise a ValueError unless the heads `listed` of an attention module with `heads` query heads can move."""
    if not listed:
        return
    name = type(module).__name__
    projections: list[Any] = [module._modules.get(one) for one in (*_INPUTS, _OUTPUT)]
    plain = all(type(one) is nn.Linear and _is_whole(one.weight) for one in projections)
    if plain:
        q, k, v, o = (one.weight for one in projections)
        dim = getattr(module, "head_dim", None) or q.shape[0] // heads
        groups = k.shape[0] // dim
        plain = (
            q.shape[0] == heads * dim
            and k.shape[0] == groups * dim
            and groups > 0
            and heads % groups == 0
            and v.shape[0] % groups == 0
            and o.shape[1] == heads * (v.shape[0] // groups)
        )
    if not plain or not all(_is_known(path, p, dim) for path, p in module.named_parameters()) or _shares_keys(module):
        raise ValueError(
            f"`dedicated_heads`: expected an attention with the linear projections {', '.join(_INPUTS)} and {_OUTPUT}, "
            f"in memory, and no other parameter by head, got {name}, whose heads cannot be exchanged. Give a number or "
            "a share of the heads instead of pairs."
        )
    if head_order(heads, groups, listed) is None:
        raise ValueError(
            f"`dedicated_heads`: expected whole groups of {heads // groups} heads with common keys and a part of at "
            f"most one more, in each layer, got the heads {listed} of {heads} in {name}. "
            "rolesafe.training.choose_dedicated lists such heads."
        )


def _is_whole(weight: Tensor) -> bool:
    return weight.is_floating_point() and not weight.is_meta and not hasattr(weight, "placements")


def _is_known(path: str, parameter: Tensor, dim: int) -> bool:
    """Return True for a parameter of an attention module whose dependence on the order of heads is known."""
    module, _, name = path.rpartition(".")
    if path.startswith("rolesafe_") or (module in (*_INPUTS, _OUTPUT) and name in ("weight", "bias")):
        return True
    return module in _NORMS and parameter.numel() == dim  # one norm for all heads


def _shares_keys(module: nn.Module) -> bool:
    """Return True where layers share keys, which would need one order of their groups."""
    return bool(getattr(getattr(module, "config", None), "num_kv_shared_layers", None))


def move_heads(model: Any, config: RoleConfig) -> None:
    """Move the listed dedicated heads of a patched model to the front, unless its weights are in that order."""
    if not isinstance(config.dedicated_heads, tuple) or getattr(model.config, MARK, False):
        return
    for module, order in _moves(model, config):
        _exchange(module, order)
    setattr(model.config, MARK, True)


def return_heads(model: Any) -> None:
    """Undo :func:`move_heads`.

    Raises:
        ValueError: Others replaced the projections of a layer, such as adapters.
    """
    if not getattr(model.config, MARK, False):
        return
    config: RoleConfig = model.rolesafe_config
    moves = list(_moves(model, config))
    for module, _ in moves:
        if not all(type(module._modules[name]) is nn.Linear for name in (*_INPUTS, _OUTPUT)):
            raise ValueError(
                f"`model`: expected the linear projections of {type(module).__name__} to return listed dedicated heads "
                "to their places, got others. Merge or remove adapters first."
            )
    for module, order in moves:
        _exchange(module, [order.index(head) for head in range(len(order))])
    delattr(model.config, MARK)


def _moves(model: Any, config: RoleConfig) -> Iterator[tuple[nn.Module, list[int]]]:
    """Yield the attention modules with listed heads, and the order of their query heads."""
    for i, layer in enumerate(families.decoder_layers(model)):
        for module in layer.attention if (listed := config.listed_heads(i)) else ():
            heads = families.count_heads(module)
            order = head_order(heads, count_groups(module, heads), listed)
            assert order is not None  # checked before the patch
            yield module, order


@torch.no_grad()
def _exchange(module: nn.Module, order: list[int]) -> None:
    """Put the query heads of an attention module, and their groups of keys and values, into `order`."""
    heads, groups = len(order), count_groups(module, len(order))
    each = heads // groups
    of_groups = [order[i] // each for i in range(0, heads, each)]
    for name, index in zip((*_INPUTS, _OUTPUT), (order, of_groups, of_groups, order), strict=True):
        projection: Any = module._modules[name]
        weight, bias = projection.weight, projection.bias
        dim = 1 if name == _OUTPUT else 0
        weight.copy_(_taken(weight, dim, index))
        if bias is not None and name != _OUTPUT:
            bias.copy_(_taken(bias, 0, index))


def _taken(x: Tensor, dim: int, index: list[int]) -> Tensor:
    """Return `x` with the blocks of dimension `dim`, one for each head, in the order `index`."""
    blocks: Tensor = x.unflatten(dim, (len(index), -1))  # type: ignore[no-untyped-call]
    return blocks.index_select(dim, torch.tensor(index, device=x.device)).flatten(dim, dim + 1)
