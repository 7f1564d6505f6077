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
from rolesafe_kernels.replay import (
    ALIGNMENT,
    PLAIN,
    Kept,
    Program,
    Tape,
    aligned,
    distinct,
    form,
    is_intercepted,
)

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
            out, pool = self._repeat((q, k, v, q_roles, k_roles, blocks, *tables, mask))
            kept, same = self._program, all(map(operator.is_, given, (q, k, v, *tables)))
            if repeats is not None and kept is not None and pool is not None and same:
                repeats.append(Repeat(kept, pool, given))
            return out
        tensors = (q, k, v, q_roles, k_roles, blocks, dq_blocks, dkdv_blocks, bias, share, sinks, mask, *ranges)
        if self.train:
            return Attend.apply(*tensors, *self.settings, True)[0]  # type: ignore[no-untyped-call]
        return attend(*tensors, *self.settings, False)[0]

    def _repeat(self, inputs: Any) -> tuple[Tensor, list[Any] | None]:
        """Decode: repeat the launches of an earlier call, or do and keep them.

        Return the output, and the pool of the program; None where the launches are not kept.
        """
        kept = aligned(*inputs)
        if kept and self._program is not None:
            pool = self._program.pool(inputs, self.device)
            with on(inputs[0]):
                return self._program(pool, self._program.stream(self.device)), pool
        own: Any = distinct(inputs)
        tape = Tape(own)
        arguments: Any = (*own, *self.settings, 0)
        out = decode(tape, *arguments)
        found = tape.program(out) if kept else None
        if found is None:
            return out, None
        self._program, pool = found
        return out, pool


class Repeat:
    """A decode call to be repeated by the other layers of a forward pass: the same roles, mask and settings.

    The parts of the split keys are written to the same memory in every layer: launches on one stream are ordered.

    Args:
        program: Its launches.
        pool: Its tensors and constants, in the order of `program`.
        tensors: Its q, k, v, bias, share and sinks, in the form that the kernels read.
    """

    def __init__(self, program: Program, pool: list[Any], tensors: tuple[Any, ...]) -> None:
        q, k, v, *tables = tensors
        self._program, self._device = program, q.device
        self._roles, self._mask, self._others = pool[3:6], pool[9], pool[10:]
        self._like = pool[program.result].transpose(1, 2)
        # memory of a captured graph is its own
        self._stream = None if is_captured(q) else program.stream(q.device)
        self._tokens = (*form(q), *form(k), *form(v))
        self._tables = [*map(form, tables)]

    def __call__(
        self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, share: Tensor | None, sinks: Tensor | None
    ) -> Tensor | None:
        """Return the output (B, T, H, DV); None for tensors of another form, and where anything but eager code runs.

        Such a call needs the checks and choices of a whole one.
        """
        if torch.is_grad_enabled() or Kept.bypassed or is_intercepted() or not type(q) is type(k) is type(v) is Tensor:
            return None
        tokens = (
            q.shape, q.stride(), q.dtype, q.device, k.shape, k.stride(), k.dtype, k.device,
            v.shape, v.stride(), v.dtype, v.device,
        )  # fmt: skip
        if tokens != self._tokens:
            return None
        starts = q.data_ptr() | k.data_ptr() | v.data_ptr()
        for x, own in zip((bias, share, sinks), self._tables, strict=True):
            if x is None:
                if own is not None:
                    return None
            elif type(x) not in PLAIN or (x.shape, x.stride(), x.dtype, x.device) != own:
                return None
            else:
                starts |= x.data_ptr()
        if starts % ALIGNMENT:
            return None
        with on(q):
            stream = self._program.stream(self._device)
            inputs = (q, k, v, *self._roles, bias, share, sinks, self._mask)
            if stream != self._stream or is_captured(q):
                return self._program(self._program.pool(inputs, self._device), stream).transpose(1, 2)
            pool = [*inputs, *self._others]
            pool[self._program.result] = out = torch.empty_like(self._like)
            self._program(pool, stream)
        return out


def is_captured(x: Tensor) -> bool:
    """Return True where launches on the device of `x` become part of a CUDA graph."""
    return x.is_cuda and torch.cuda.is_current_stream_capturing()
