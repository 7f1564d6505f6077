"""Input of every backend: one checked problem, and facts that follow from its roles alone.

Legend (everywhere in this package)
    B batch, H query heads, G key/value heads, T queries, S keys, D head dim, R roles, P privileged keys of a row.
    Query i is at position i + S - T: causality is aligned at the bottom right.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from rolesafe.roles.role import MAX_ROLES


def is_privileged(roles: Tensor, privileged: tuple[int, ...]) -> Tensor:
    """Return a bool tensor of the shape of `roles`, True at privileged ones."""
    found = torch.zeros_like(roles, dtype=torch.bool)
    for role in privileged:
        found |= roles == role
    return found


@dataclass(frozen=True)
class PrivilegedKeys:
    """Positions of the privileged keys of every batch row.

    Attributes:
        index: Key positions (B, P) int64, ascending; rows with fewer than P are filled up, see `valid`.
        valid: True at entries of `index` that count (B, P) bool.
        span: ``(start, stop)`` where they are the same unbroken stretch in every row: then a view replaces the copy.
        full: True where all of `index` is known to count.
    """

    index: Tensor
    valid: Tensor
    span: tuple[int, int] | None
    full: bool

    def take(self, x: Tensor) -> Tensor:
        """Return the rows of `x` (B, N, S, D) at the privileged keys: (B, N, P, D), a view where `span` is set."""
        if self.span is not None:
            return x[:, :, self.span[0] : self.span[1]]
        index = self.index[:, None, :, None].expand(-1, x.shape[1], -1, x.shape[3])
        return x.gather(2, index)


class RoleIndex:
    """Roles of the queries and keys of one problem, with derived tensors computed once and kept.

    A model builds one per forward pass and key layout and shares it among its layers, so no layer counts roles again.

    Args:
        q_roles: (B, T) integer.
        k_roles: (B, S) integer.
        privileged: Ids of the privileged roles.
        key_mask: (B, S) bool, False where a key is padding; ``None``: no padding.
        of_queries: Takes what the fused kernel prepares of `q_roles`, to share among indices with the same ones.
    """

    def __init__(
        self,
        q_roles: Tensor,
        k_roles: Tensor,
        privileged: tuple[int, ...],
        key_mask: Tensor | None = None,
        of_queries: dict[Any, Any] | None = None,
    ) -> None:
        self.of_queries = {} if of_queries is None else of_queries
        self.q_roles = q_roles
        self.k_roles = k_roles
        self.privileged = privileged
        self.key_mask = key_mask
        self._kept: dict[Any, Any] = {}

    def keep(self, key: Any, compute: Callable[[], Any]) -> Any:
        """Return the value of `compute()`, computed at the first call with this `key`.

        No length belongs into a key: it is a symbol in compiled code, and a hash would fix it to one number.
        """
        if key not in self._kept:
            self._kept[key] = compute()
        return self._kept[key]

    def keep_for(self, x: Tensor | None, key: Any, compute: Callable[[], Any]) -> Any:
        """Return `keep` for a value that depends on `x`, by identity, because torch.compile guards an `id`."""
        kept = self.keep(("for", key), list)
        for other, value in kept:
            if other is x:
                return value
        value = compute()
        kept.append((x, value))
        return value

    def q_onehot(self, num_roles: int, dtype: torch.dtype) -> Tensor:
        """Return (B, T, R), 1 at the query's role."""
        return self.keep(("q", num_roles, dtype), lambda: _onehot(self.q_roles, num_roles, dtype))

    def k_onehot(self, num_roles: int, dtype: torch.dtype) -> Tensor:
        """Return (B, S, R), 1 at the key's role."""
        return self.keep(("k", num_roles, dtype), lambda: _onehot(self.k_roles, num_roles, dtype))

    @property
    def privileged_queries(self) -> Tensor:
        """Return (B, T) bool."""
        return self.keep("pq", lambda: is_privileged(self.q_roles, self.privileged))

    @property
    def privileged_keys(self) -> Tensor:
        """Return (B, S) bool, False at padding."""

        def compute() -> Tensor:
            found = is_privileged(self.k_roles, self.privileged)
            return found if self.key_mask is None else found & self.key_mask

        return self.keep("pk", compute)

    def select(self) -> PrivilegedKeys:
        """Return the privileged keys of every row.

        Their number is read from the device, once per index. Under ``torch.compile`` the shape must not depend on the
        data: there all S keys are taken and `valid` alone decides.
        """
        return self.keep("select", self._select)

    def _select(self) -> PrivilegedKeys:
        chosen = self.privileged_keys
        batch, length = chosen.shape
        if torch.compiler.is_compiling():
            index = torch.arange(length, device=chosen.device).expand(batch, length)
            return PrivilegedKeys(index, chosen, (0, length), False)
        count = int(chosen.sum(1).max()) if chosen.numel() else 0
        # A stable sort puts the chosen keys of a row first, in their order.
        index = torch.sort((~chosen).to(torch.uint8), dim=1, stable=True).indices[:, :count]
        valid = chosen.gather(1, index)
        span, full = None, bool(valid.all())
        if count and full:
            start = int(index[0, 0])
            stretch = torch.arange(start, start + count, device=index.device)
            if bool((index == stretch).all()):
                span = (start, start + count)
        return PrivilegedKeys(index, valid, span, full)


def _onehot(roles: Tensor, num_roles: int, dtype: torch.dtype) -> Tensor:
    return (roles.unsqueeze(-1) == torch.arange(num_roles, device=roles.device)).to(dtype)


@dataclass(frozen=True)
class Problem:
    """One call of role-aware attention, checked. See :func:`rolesafe.role_attention` for the meaning of each field."""

    q: Tensor  # (B, H, T, D)
    k: Tensor  # (B, G, S, D)
    v: Tensor  # (B, G, S, Dv)
    roles: RoleIndex
    bias: Tensor | None = None  # (H, R, R)
    share: Tensor | None = None  # (H,)
    dedicated: int = 0
    integrity: bool = False
    mass_target: float = 0.0
    causal: bool = True
    mask: Tensor | None = None  # (B | 1, H | 1, T, S) bool; padding alone is in `roles.key_mask`
    scale: float = 1.0
    window: int | None = None
    softcap: float | None = None
    sinks: Tensor | None = None  # (H,)
    dropout: float = 0.0
    documents: Tensor | None = None  # (documents + 1,): where the documents of one packed row start
    scores: Tensor | None = None  # (B | 1, H | 1, T, S) added to the capped scores: a bias of the model's own

    @property
    def num_roles(self) -> int:
        """R, the size of the bias table, or the most that a model may declare."""
        return MAX_ROLES if self.bias is None else self.bias.shape[-1]

    @property
    def needs_privileged(self) -> bool:
        """True where any part of the output comes from the privileged channel."""
        return self.dedicated > 0 or self.mixes_channels

    @property
    def mixes_channels(self) -> bool:
        """True where heads that are not dedicated read the privileged channel."""
        return self.integrity or self.share is not None or self.mass_target > 0

    @property
    def share_is_fixed(self) -> bool:
        """True where the share takes no gradient. A learned share needs both channels, at 0 and at 1 too."""
        return self.share is None or not (self.share.requires_grad and torch.is_grad_enabled())

    def impl_of_scores(self, impl: str) -> str:
        """Return the one backend that adds `scores`; a ValueError where `impl` names another."""
        if impl not in ("auto", "reference"):
            raise ValueError(
                f"`impl`: {impl!r} does not support an attention that adds scores of its own (a position bias or a "
                "float mask). Use impl='reference' or 'auto'."
            )
        return "reference"

    def without_roles(self) -> Problem:
        """Return the same attention without its role parts."""
        return replace(self, bias=None, share=None, dedicated=0, integrity=False, mass_target=0.0)

    def weight_to_target(self, mass: Tensor) -> Tensor:
        """Return the weight of the privileged channel that reaches the mass target, (..., 1) in [0, 1].

        Adding log(target / m) to the scores of the privileged keys, which have the mass m < target, makes their mass
        target / (1 + target - m). That is (1 - w) ordinary + w privileged with w = (target - m) / (1 + target - m).

        Args:
            mass: (..., 1), m in [0, 1].
        """
        missing = (self.mass_target - mass).clamp(min=0)
        return missing / (1 + missing)

    def q_positions(self) -> Tensor:
        """Return the key position of each query (T,)."""
        length, keys = self.q.shape[2], self.k.shape[2]
        return torch.arange(keys - length, keys, device=self.q.device)

    def positional_mask(self, k_positions: Tensor) -> Tensor | None:
        """Return the keys at `k_positions` (..., N) that each query sees by order alone: (..., T, N) bool or None."""
        if not self.causal:
            return None
        distance = self.q_positions()[:, None] - k_positions.unsqueeze(-2)
        seen = distance >= 0
        return seen if self.window is None else seen & (distance < self.window)

    def hidden_pairs(self) -> Tensor | None:
        """Return (H, R, R) bool, True where the table is -inf; None where it is known to contain no -inf.

        On a CPU the table is looked at; elsewhere that would wait for the device, so any table may hold one.
        """
        if self.bias is None:
            return None
        hidden = torch.isneginf(self.bias.detach())
        look = self.bias.device.type == "cpu" and not torch.compiler.is_compiling()
        return None if look and not bool(hidden.any()) else hidden

    def roles_in_sight(self) -> Tensor:
        """Return (B, 1 | H, T, R) bool: the roles of the keys that order, padding and mask leave visible.

        Linear memory unless the caller brought a (T, S) mask of their own.
        """
        if self.mask is not None:
            seen = self.mask
            if self.roles.key_mask is not None:
                seen = seen & self.roles.key_mask[:, None, None, :]
            position = self.positional_mask(torch.arange(self.k.shape[2], device=self.q.device))
            if position is not None:
                seen = seen & position
            onehot = self.roles.k_onehot(self.num_roles, torch.float32)[:, None]
            return torch.matmul(seen.to(torch.float32), onehot) > 0
        onehot = self.roles.k_onehot(self.num_roles, torch.int64)
        if self.roles.key_mask is not None:
            onehot = onehot * self.roles.key_mask.unsqueeze(-1)
        upto = torch.nn.functional.pad(onehot.cumsum(1), (0, 0, 1, 0))  # (B, S + 1, R): keys before position p
        if not self.causal:
            return (upto[:, -1:] > 0).expand(-1, self.q.shape[2], -1)[:, None]
        last = (self.q_positions() + 1).clamp(min=0)
        count = upto[:, last]
        if self.window is not None:
            count = count - upto[:, (last - self.window).clamp(min=0)]
        return (count > 0)[:, None]
