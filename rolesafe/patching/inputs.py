"""Roles of one forward pass, aligned with the keys that the cache of each layer returns.

Legend: B batch, T new tokens, S keys that a layer's attention sees, R roles.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from rolesafe.attention import Problem, RoleIndex
from rolesafe.config import RoleConfig
from rolesafe.patching.guards import demand
from rolesafe.patching.repeats import Repeated


class RoleInputs:
    """Roles that a patched model's `forward` passes to its layers, as the keyword argument `role_inputs`.

    Args:
        role_ids: (B, N) roles of all tokens from position 0: those in the cache, then the T new ones. Integer.
        length: T.
        cache: The cache, or None.
        layers: Layer indices under which attention modules find their keys in the cache (`families.cache_layer`).
        config: The model's role configuration.
        impl: Attention backend.
        owner: Patch and strength of the model.
        see: Called with every attention module and its problem, see :func:`rolesafe.patching.observe.observing`.

    Attributes:
        past: Number of tokens in the cache; a tensor on the device for a static cache.
        q_roles: (B, T) int64 roles of the new tokens.
        strengths: Strength of the parts that took part so far, by name.
        added: Output of added heads (B, T, A Dv) before their projection, by name.
        repeats: Attention that later layers may repeat.
        entered: Indices of the decoder layers that ran so far.

    Raises:
        ValueError: `role_ids` has another length than the tokens, or holds an id that is no role.
    """

    def __init__(
        self,
        role_ids: Tensor,
        length: int,
        cache: Any,
        layers: Iterable[int],
        config: RoleConfig,
        *,
        impl: str,
        owner: tuple[str, float],
        see: Callable[[torch.nn.Module, Problem], None] | None = None,
    ) -> None:
        self.config = config
        self.length = length
        self.impl = impl
        self.owner = owner
        self.see = see
        self.strengths: dict[str, float] = {}
        self.added: dict[str, Tensor] = {}
        self.entered: set[int] = set()
        self._indices: list[tuple[tuple[Any, ...], RoleIndex]] = []
        self._q_roles: dict[torch.device, Tensor] = {}
        self._of_queries: dict[torch.device, dict[Any, Any]] = {}
        self.repeats: list[Repeated] = []
        past = 0 if cache is None else cache.get_seq_length()
        # A static cache counts on the device: no wait for it, unless that is free.
        if isinstance(past, Tensor) and past.device.type == "cpu" and not torch.compiler.is_compiling():
            past = int(past)
        self.past: int | Tensor = past
        _check_length(role_ids, past, length, cache)
        _check_ids(role_ids, len(config.roles))
        self.role_ids = role_ids.long()
        self._q_positions: Tensor | None = None
        if isinstance(past, Tensor):  # at once: the cache changes it in place
            self._q_positions = torch.arange(length, device=role_ids.device) + past.to(role_ids.device)
            self.q_roles = self.role_ids[:, self._q_positions]
        else:
            self.q_roles = self.role_ids[:, past : past + length]
        # (number of keys, index of the first) per layer: the numbers that transformers builds its masks from.
        self._layouts = {} if cache is None else {i: cache.get_mask_sizes(length, i) for i in layers}

    def index(self, layer: int, keys: int, device: torch.device, padding: Tensor | None = None) -> RoleIndex:
        """Return the roles of the queries (B, T) and of the `keys` keys (B, S) of layer `layer`, on `device`.

        `padding` (B, S) bool is False where a key is padding.

        Raises:
            RuntimeError: The cache returned another number of keys than it announced.
        """
        expected, offset = self.layout(layer)
        # A static cache is sliced to the new tokens where it was empty before them.
        if keys != expected and not (keys == self.length and offset == 0):
            raise RuntimeError(
                f"attention layer {layer} sees {keys} keys where its cache announced {expected}: their roles are "
                "unknown. This cache class does not work with rolesafe; use a DynamicCache or a StaticCache."
            )
        # Compared, not hashed: lengths are symbols in compiled code, and a hash would fix them to one number.
        for (start, length, place, mask), index in self._indices:
            if mask is padding and place == device and length == keys and start == offset:
                return index
        k_roles = self.role_ids[:, offset : offset + keys]
        missing = keys - k_roles.shape[1]  # the unused end of a static cache, masked by the model
        if missing > 0:
            k_roles = torch.nn.functional.pad(k_roles, (0, missing), value=self._unprivileged)
        q_roles, k_roles = self.q_roles_on(device), k_roles.to(device)
        of_queries = self._of_queries.setdefault(device, {})
        if k_roles.shape == self.role_ids.shape == q_roles.shape:
            q_roles, of_queries = k_roles, {}  # nothing in the cache: one and the same, prepared once
        index = RoleIndex(q_roles, k_roles, self.config.privileged_ids, padding, of_queries)
        self._indices.append(((offset, keys, device, padding), index))
        return index

    def q_positions(self) -> Tensor:
        """Return the indices of the new tokens, (T,) int64."""
        if self._q_positions is not None:
            return self._q_positions
        return torch.arange(self.length, device=self.role_ids.device) + self.past

    def q_roles_on(self, device: torch.device) -> Tensor:
        """Return `q_roles` on `device`, one tensor for all layers."""
        roles = self._q_roles.get(device)
        if roles is None:
            self._q_roles[device] = roles = self.q_roles.to(device)
        return roles

    def layout(self, layer: int) -> tuple[int, int]:
        """Return the number of keys that layer `layer` sees and the index of the first, as its cache announced."""
        layout: tuple[int, int] = self._layouts.get(layer, (self.length, 0))
        return layout

    def took_part(self, part: Any) -> None:
        """Record that `part`, a part of the role layer or a wrapper of one, used the roles."""
        self.strengths[part.name] = part.strength

    @property
    def _unprivileged(self) -> int:
        return self.config.generated_id  # never privileged, `RoleConfig` checks that


def _check_length(role_ids: Tensor, past: int | Tensor, length: int, cache: Any) -> None:
    if isinstance(past, Tensor):
        return
    got = role_ids.shape[1]
    if got == past + length:
        return
    # `generate` pads to the length of a static cache, so that shapes stay the same.
    if got > past + length and getattr(cache, "is_compileable", False) and got == cache.get_max_length():
        return
    cached = f" ({past} in the cache and {length} new)" if past else ""
    raise ValueError(
        f"`role_ids`: expected one role for each of {past + length} tokens{cached}, got {got}. "
        "Pass the roles of the whole sequence, as with `attention_mask`; `rolesafe.encode` returns them."
    )


def _check_ids(role_ids: Tensor, num_roles: int) -> None:
    expected = f"`role_ids`: expected ids in [0, {num_roles})"
    if role_ids.device.type != "cpu" or torch.compiler.is_compiling():
        demand(((role_ids >= 0) & (role_ids < num_roles)).all(), expected)
    elif role_ids.numel():
        low, high = map(int, role_ids.aminmax())
        if low < 0 or high >= num_roles:
            raise ValueError(f"{expected} as declared in RoleConfig.roles, got {low} to {high}")
