"""Choices and launches of a checked call in eager mode, computed once for all calls of its form.

B batch, H query heads, G key/value heads, T queries, S keys, D and DV head dims
"""

from __future__ import annotations

import operator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rolesafe_kernels.call import dense, on, packed
from rolesafe_kernels.decode import decode
from rolesafe_kernels.launch import launch_of
from rolesafe_kernels.ops import Attend, attend
from rolesafe_kernels.replay import Kept, Program, Tape, aligned, distinct, form, is_eager

DECODE_ROWS = 64
"""Largest number of queries, over all heads that share keys, for which programs divide the keys."""


class Settings(NamedTuple):
    """Numbers of a call, in the order of the operations. `softcap` and `window`: 0 for none."""

    scale: float
    softcap: float
    window: int
    causal: bool
    dedicated: int
    integrity: bool
    privileged: int


def decodes(q: Tensor, k: Tensor, train: bool, ranges: object) -> bool:
    """Return True where the decode kernel takes the call: few queries, no gradients, no packed documents."""
    return not train and ranges is None and q.shape[2] * (q.shape[1] // k.shape[1]) <= DECODE_ROWS


class Plan:
    """Calls of one form: the same shapes, strides, dtypes, device, settings and absent tensors.

    Args:
        settings: Those of the operations.
        train: Whether a backward follows.
        of_keys: The mask becomes a key mask, see `api.is_key_mask`.

    Attributes:
        blocks: Tokens of a block in the lists for the forward (or decode), dq and dkdv.
    """

    def __init__(
        self, q: Tensor, k: Tensor, v: Tensor, ranges: object, settings: Settings, train: bool, of_keys: bool
    ) -> None:
        self.settings, self.train, self.of_keys = settings, train, of_keys
        self.decode = decodes(q, k, train, ranges)
        tiles = launch_of(q.device, q.dtype, max(q.shape[3], v.shape[3]))
        first = tiles.decode if self.decode else tiles.forward
        self.blocks = (first.block, tiles.dq.block, tiles.dkdv.block)
        self.device = q.device
        self._program: Program | None = None

    def __call__(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        layout: Any,
        bias: Tensor | None,
        share: Tensor | None,
        sinks: Tensor | None,
        mask: Tensor | None,
        ranges: tuple[Tensor | None, Tensor | None],
        repeats: list[Repeat] | None = None,
    ) -> Tensor:
        """Return the output (B, H, T, DV).

        Args:
            layout: The `RoleLayout` of the call; None: no roles.
            repeats: Takes a `Repeat` where later calls can go without what is computed here.
        """
        given = (q, k, v, bias, share, sinks)
        q, k, v = packed(q), packed(k), packed(v)
        q_roles = k_roles = blocks = dq_blocks = dkdv_blocks = None
        if layout is not None:
            forward, dq, dkdv = self.blocks
            k_roles, blocks = layout.of_block("keys", forward)
            if self.train:
                q_roles, dkdv_blocks = layout.of_block("queries", dkdv)
                dq_blocks = layout.of_block("keys", dq)[1]
            else:
                q_roles = layout.roles_of_queries(forward)
        if self.decode:
            tables = (dense(bias), dense(share), dense(sinks))
            out = self._repeat((q, k, v, q_roles, k_roles, blocks, *tables, mask))
            if repeats is not None and self._program is not None and all(map(operator.is_, given, (q, k, v, *tables))):
                repeats.append(Repeat(self._program, given, (q_roles, k_roles, blocks), mask))
            return out
        tensors = (q, k, v, q_roles, k_roles, blocks, dq_blocks, dkdv_blocks, bias, share, sinks, mask, *ranges)
        if self.train:
            return Attend.apply(*tensors, *self.settings, True)[0]  # type: ignore[no-untyped-call]
        return attend(*tensors, *self.settings, False)[0]

    def _repeat(self, inputs: Any) -> Tensor:
        """Decode: repeat the launches of an earlier call, or do and keep them."""
        kept = aligned(*inputs)
        if kept and self._program is not None:
            with on(inputs[0]):
                return self._program(inputs, self.device)
        own: Any = distinct(inputs)
        tape = Tape(own)
        arguments: Any = (*own, *self.settings, 0)
        out = decode(tape, *arguments)
        if kept:
            self._program = tape.program(out)
        return out


class Repeat:
    """A decode call to be repeated by the other layers of a forward pass: the same roles, mask and settings.

    Args:
        program: Its launches.
        tensors: Its q, k, v, bias, share and sinks, in the form that the kernels read.
        roles: Roles of its queries and keys, and lists of blocks. `mask`: its mask.
    """

    def __init__(
        self,
        program: Program,
        tensors: tuple[Tensor | None, ...],
        roles: tuple[Tensor | None, Tensor | None, Tensor | None],
        mask: Tensor | None,
    ) -> None:
        self._program, self._roles, self._mask = program, roles, mask
        self._forms = [*map(form, tensors)]
        self._aligned = aligned(*roles, mask)

    def __call__(
        self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, share: Tensor | None, sinks: Tensor | None
    ) -> Tensor | None:
        """Return the output (B, H, T, DV); None for tensors of another form, and where anything but eager code runs.

        Such a call needs the checks and choices of a whole one.
        """
        tensors = (q, k, v, bias, share, sinks)
        if torch.is_grad_enabled() or Kept.bypassed or not self._aligned or not is_eager(*tensors):
            return None
        if [*map(form, tensors)] != self._forms or not aligned(*tensors):
            return None
        with on(q):
            return self._program((q, k, v, *self._roles, bias, share, sinks, self._mask), q.device)
