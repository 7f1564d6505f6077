"""Tokens of one batch row for flash attention over blocks of keys.

Legend: B batch, H query heads, G key/value heads, T queries, S keys, D head dim, R roles; H = A x C, with A x C = 1 x H
or G x (H / G).
"""

from __future__ import annotations

from copy import copy
from itertools import groupby
from typing import NamedTuple

import torch
from torch import Tensor

from rolesafe.attention.channels import Part
from rolesafe.attention.problem import Problem
from rolesafe.attention.stretches import Block, Plan, Stretch, learns

_flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default

_VECTOR = 16
"""Keys of a call are filled up to a multiple of this: PyTorch computes the exponentials of a rest one by one."""


class Settings(NamedTuple):
    plan: Plan
    q_roles: Tensor  # (B, T)
    k_roles: Tensor  # (B, S)
    scale: float
    dedicated: int
    alone: tuple[int, ...]  # heads after the dedicated ones with a fixed share of 1: they read one channel
    keeps: bool  # for the backward pass

    @classmethod
    def of(cls, p: Problem, bias: Tensor | None, plan: Plan) -> Settings:
        alone: tuple[int, ...] = ()
        if p.share is not None and p.share_is_fixed:
            alone = tuple((p.share[p.dedicated :] == 1).nonzero().flatten().tolist())
        q_roles = p.roles.keep("q index long", lambda: p.roles.q_roles.long())
        k_roles = p.roles.keep("k index long", lambda: p.roles.k_roles.long())
        return cls(plan, q_roles, k_roles, p.scale, p.dedicated, alone, learns(p, bias))


class Row:
    """Tokens of one batch row, with the heads as A x C: q (A, C, T, D), k and v (G, S, D)."""

    def __init__(
        self, index: int, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, share: Tensor | None, of: Settings
    ) -> None:
        self.settings = of
        # 1 x H: outputs lie in memory by queries, which saves a copy in each call of the backward pass
        self.own_keys, self.groups = of.keeps and q.shape[1] == k.shape[1], k.shape[1]
        self.axis, self.first = int(self.own_keys), of.dedicated * k.shape[1] // q.shape[1]
        self.wide = torch.promote_types(q.dtype, torch.float32)
        self.q, self.k, self.v = self.heads(q[index]), k[index], v[index]
        self.roles, self.k_roles = of.q_roles[index], of.k_roles[index]
        self.table = None if bias is None else self.heads(bias.detach().to(self.wide))  # (A, C, R, R)
        self.share = None if share is None else self.after(self.heads(share.detach().to(self.wide))).unsqueeze(-1)
        self.filling = k.new_zeros(self.groups, _VECTOR, k.shape[3])
        self.mask = q.new_zeros(1, 1, 1, k.shape[2] + _VECTOR)
        self.mask[..., k.shape[2] :] = -torch.inf
        self.blocks: tuple[Block, ...] = ()
        self.role: int | None = None
        self._by_query: dict[int, Tensor] = {}
        self._by_key: dict[int, Tensor] = {}  # shared by all stretches

    def of(self, stretch: Stretch) -> Row:
        """Return the queries of a stretch."""
        own = copy(self)
        rows = slice(stretch.start, stretch.stop)
        own.q, own.roles, own.role, own.blocks = self.q[:, :, rows], self.roles[rows], stretch.role, stretch.blocks
        own._by_query = {}
        return own

    def heads(self, x: Tensor) -> Tensor:
        """Return (H, ...) as (A, C, ...), a view."""
        return x.unsqueeze(0) if self.own_keys else x.view(self.groups, -1, *x.shape[1:])

    def after(self, x: Tensor) -> Tensor:
        """Return the heads of (A, C, ...) that are not dedicated, a view."""
        return x.narrow(self.axis, self.first, x.shape[self.axis] - self.first)

    def before(self, x: Tensor) -> Tensor:
        """Return the dedicated heads of (A, C, ...), a view."""
        return x.narrow(self.axis, 0, self.first)

    def reads(self, x: Tensor, block: Block) -> Tensor:
        """Return the heads of (A, C, ...) that read a block, a view."""
        return x if block.privileged else self.after(x)

    def keys(self, block: Block) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return k and v (A, C', s, D) of a block, and what is added to its scores, (A | 1, C' | 1, 1, s)."""
        length = sum(stop - start for start, stop in block.runs)
        rest, end = -length % _VECTOR, self.k.shape[1]
        if self.role is not None:  # a copy for each stretch would cost more than it saves
            rest = 0
        mask: Tensor | None = None
        if self.table is not None and block.role is None:
            assert self.role is not None
            ((start, stop),) = block.runs
            if self.role not in self._by_key:
                self._by_key[self.role] = self.table[:, :, self.role].index_select(2, self.k_roles).unsqueeze(2)
            mask = self.reads(self._by_key[self.role], block)[..., start:stop]
        elif rest:
            mask = self.mask[:, :, :, end - length : end + rest]
        k, v = (self.reads(self._taken(x, block.runs, rest), block) for x in (self.k, self.v))
        return k, v, mask

    def _taken(self, x: Tensor, runs: tuple[tuple[int, int], ...], rest: int) -> Tensor:
        """Return some keys or values, filled up by `rest`: (A, C, s, D)."""
        found = [x[:, start:stop] for start, stop in runs]
        if rest:  # not the keys that follow: masked or not, a NaN among them would pass
            found.append(self.filling[:, :rest])
        taken = found[0] if len(found) == 1 else torch.cat(found, dim=1)
        return taken.unsqueeze(0) if self.own_keys else taken.unsqueeze(1).expand(-1, self.q.shape[1], -1, -1)

    def bias(self, block: Block, start: int, stop: int) -> Tensor | None:
        """Return the bias of a block for the queries from `start` to `stop`, (A, C', t | 1)."""
        if self.table is None or block.role is None:
            return None
        if self.role is not None:
            return self.reads(self.table[:, :, self.role, block.role, None], block)
        if block.role not in self._by_query:
            self._by_query[block.role] = self.table[:, :, :, block.role].index_select(2, self.roles)
        return self.reads(self._by_query[block.role], block)[:, :, start:stop]

    def by_role(self) -> list[list[Block]]:
        """Return the blocks of each role, or of each channel."""
        return [list(blocks) for _, blocks in groupby(self.blocks, lambda x: (x.privileged, x.role))]

    def attend(self, blocks: list[Block]) -> Part:
        """Return the attention over all keys of one role."""
        whole: Part | None = None
        for block in blocks:
            k, v, mask = self.keys(block)
            for start, stop, diagonal in block.calls:
                q = self.reads(self.q, block)[:, :, start:stop]
                out, lse = _flash(q, k, v, 0.0, diagonal, attn_mask=mask, scale=self.settings.scale)
                part = Part(out.to(self.wide), lse, start, stop)
                whole = part if whole is None else whole.plus(part)
        assert whole is not None
        return whole
