"""Arithmetic of the export: roles in token ids, and the bias as columns of queries and keys. It needs torch alone.

Legend: N tokens, H query heads, R roles, C columns, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor


def token_codes(input_ids: Tensor, role_ids: Tensor, *, vocab: int, roles: int, generated: int) -> Tensor:
    """Return ids that hold the role of each token: id + V * ((role - generated) mod R).

    Args:
        input_ids, role_ids: Integers of one shape, ids in [0, V) and roles in [0, R).
        vocab: V of the base model.
        roles: R.
        generated: Role of generated tokens, whose codes are their ids.

    Returns:
        int64 of the same shape, below R * V.

    Raises:
        ValueError: The shapes differ, or a number is out of range.
    """
    if input_ids.shape != role_ids.shape:
        raise ValueError(
            f"`role_ids`: expected shape {tuple(input_ids.shape)} like `input_ids`, got {tuple(role_ids.shape)}"
        )
    for name, ids, limit in (("input_ids", input_ids, vocab), ("role_ids", role_ids, roles)):
        if ids.numel() and not (int(ids.min()) >= 0 and int(ids.max()) < limit):
            raise ValueError(f"`{name}`: expected numbers in [0, {limit}), got {int(ids.min())} to {int(ids.max())}")
    return input_ids.long() + vocab * ((role_ids.long() - generated) % roles)


def split_codes(codes: Tensor, *, vocab: int, roles: int, generated: int) -> tuple[Tensor, Tensor]:
    """Return the ids and the roles in `codes`, see :func:`token_codes`."""
    return codes % vocab, (codes // vocab + generated) % roles


def fold_table(bias: Tensor, scale: float, dtype: torch.dtype) -> Tensor:
    """Return the columns (H, R, C) of the queries for a bias (H, R, R) in `dtype`.

    C is R, or 2 R in half precision: a high and a low half keep 16 or more bits of the table.

    Raises:
        ValueError: A number is not finite in `dtype`.
    """
    table = bias.double() / scale
    high = table.to(dtype)
    if not torch.isfinite(high).all():
        raise ValueError(f"`bias`: expected finite numbers in {dtype}, got {bias.min().item()} to {bias.max().item()}")
    if dtype not in (torch.bfloat16, torch.float16):
        return high
    return torch.cat([high, (table - high.double()).to(dtype)], dim=-1)


def query_columns(table: Tensor, roles: Tensor) -> Tensor:
    """Return the columns (N, H, C) of queries with `roles` (N,); `table` is (H, R, C)."""
    return table[:, roles].transpose(0, 1)


def key_columns(roles: Tensor, table: Tensor) -> Tensor:
    """Return the columns (N, C) of keys with `roles` (N,): one-hot, once for each half of the table."""
    count, columns = table.shape[1:]
    onehot = (roles.unsqueeze(-1) == torch.arange(count, device=roles.device)).to(table.dtype)
    return onehot.repeat(1, columns // count)
