"""Forward passes of a model on a target with many slots; the tokens before the slot are run once and cached.

Legend: P tokens before the slot, L of the slot, A after it up to the reply, W of the wanted reply, n candidates,
V vocabulary, d hidden size.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

from rolesafe.attacks.gradient.target import Target
from rolesafe.patching import is_patched
from rolesafe.patching.caches import cache_argument, cache_class, change_rows, output_cache

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class _Read:
    """Hold the greedy reply tokens of a pass, (n, W) if it ran that far, and its cache."""

    slot: Tensor
    greedy: Tensor | None
    cache: Any


class Victim:
    """Run a model on a target.

    Args:
        model: A model in evaluation mode. A patched one gets the roles of the whole sequence.
        target: The conversation to run it on.
        cached: Keep the keys and values of the tokens before the slot. Families with more in their cache than keys
            and values are always run from the start.

    Attributes:
        n_queries: Number of sequences run so far.
    """

    def __init__(self, model: PreTrainedModel, target: Target, *, cached: bool = True) -> None:
        self.model = model
        self.target = target
        self.patched = is_patched(model)
        self.n_queries = 0
        self._shared = 0
        self._rows: Tensor | None = None
        self._known: Any = None
        self._reading: Tensor | None = None
        self._read: _Read | None = None
        self._keeps = "logits_to_keep" in inspect.signature(model.forward).parameters
        self._cache: Any = None
        if cached and len(target.before):
            roles = {"role_ids": target.roles_before[None]} if self.patched else {}
            # not inference mode: the gradient of a slot goes through these keys
            with torch.no_grad():
                output = model(input_ids=target.before[None], use_cache=True, **roles)
            cache: Any = output_cache(output)
            kinds = (DynamicLayer, DynamicSlidingWindowLayer)
            if cache_class(cache) is DynamicCache and all(type(layer) in kinds for layer in cache.layers):
                self._cache, self._cache_argument = cache, cache_argument(model.forward)

    @property
    def is_cached(self) -> bool:
        """Return True if the tokens before the slot are run only once."""
        return self._cache is not None

    @contextmanager
    def reading(self, slot: Tensor) -> Iterator[None]:
        """Keep the result of the next :meth:`forward` within the context, which must be of `slot`.

        :meth:`follows` and :meth:`knowing` then do not run this slot (the same object) again.
        """
        self._read, self._reading = None, slot
        try:
            yield
        finally:
            self._reading = None

    def _keep(self, slot: Tensor, output: Any, whole: bool) -> None:
        self._reading, cache = None, None
        if self.is_cached:
            cache = copy.copy(output_cache(output))
            cache.layers = [copy.copy(layer) for layer in cache.layers]
            for layer in cache.layers:
                if layer.is_initialized:
                    layer.keys, layer.values = layer.keys.detach(), layer.values.detach()
        self._read = _Read(slot, self.reply_logits(output).detach().argmax(-1) if whole else None, cache)

    @contextmanager
    def knowing(self, ids: Tensor) -> Iterator[Callable[..., None]]:
        """Keep the keys and values of the slot `ids` (L,), or of several (k, L), within the context.

        Yields a function of a number of tokens and, for several slots, the index of the slot (n,) that each row begins
        with. The slots that :meth:`forward` gets afterwards must begin with this number of tokens of `ids`, and are run
        from there. Without a cache, or with sliding windows, the whole slots are run.
        """
        if not self.is_cached or any(type(layer) is not DynamicLayer for layer in self._cache.layers):
            yield lambda shared, rows=None: None
            return
        if self._read is not None and self._read.slot is ids:
            self._known = self._read.cache
        else:
            several = ids if ids.ndim == 2 else ids[None]
            count, through = len(several), len(self.target.before) + several.shape[1]
            roles = {}
            if self.patched:
                roles["role_ids"] = self.role_ids(several.shape[1])[:, :through].expand(count, -1)
            with torch.no_grad():
                output = self.model(input_ids=several, use_cache=True, **self._kept(count), **roles)
            self._known = output_cache(output)

        def share(shared: int, rows: Tensor | None = None) -> None:
            self._shared, self._rows = shared, rows

        try:
            yield share
        finally:
            self._shared, self._rows, self._known = 0, None, None

    def forward(self, slot: Tensor, *, role: int | None = None, whole: bool = True, **options: Any) -> Any:
        """Return the model's output for the tokens from the slot on (from the first token on without a cache).

        Args:
            slot: (n, L) int64 ids, or (n, L, d) embeddings.
            role: Role id of the slot; default: the role of the message.
            whole: Run the tokens after the slot, up to the last but one wanted token; False: stop after the slot.
            options: Further arguments of the model.

        Returns:
            The output. Its logits hold the last W positions only (1 if not `whole`) if the family can limit them.
        """
        target, n, length = self.target, slot.shape[0], slot.shape[1]
        self.n_queries += n
        tail = torch.cat([target.after, target.wanted[:-1]]) if whole else target.after[:0]
        head = target.before[:0] if self.is_cached else target.before
        given: dict[str, Any] = {}
        if slot.ndim == 2:
            parts = [head.expand(n, -1), slot[:, self._shared :], tail.expand(n, -1)]
            given["input_ids"] = torch.cat(parts, dim=1)
        else:
            embed = self.model.get_input_embeddings()
            parts = [embed(head).expand(n, -1, -1), slot, embed(tail).expand(n, -1, -1)]
            given["inputs_embeds"] = torch.cat(parts, dim=1)
        if self.patched:
            given["role_ids"] = self.role_ids(length, role)[:, : len(target.before) + length + len(tail)].expand(n, -1)
        if self.is_cached:
            given |= self._kept(n)
        if self._keeps:
            given["logits_to_keep"] = len(target.wanted) if whole else 1
        output = self.model(**given, use_cache=self.is_cached, **options)
        if self._reading is not None:
            self._keep(self._reading, output, whole)
        return output

    def reply_logits(self, output: Any) -> Tensor:
        """Return the logits (n, W, V) that predict the wanted tokens, of a `whole` output.

        Vetoed tokens have -inf. The veto is a constant, so no gradient passes through it.
        """
        logits: Tensor = output.logits[:, -len(self.target.wanted) :]
        forbidden = self.target.forbidden(logits.shape[-1])
        return logits if forbidden is None else logits.masked_fill(forbidden, -torch.inf)

    def follows(self, slot: Tensor) -> bool:
        """Return True if the wanted reply is the greedy one for a slot (L,) or (L, d)."""
        if self._read is not None and self._read.slot is slot and self._read.greedy is not None:
            greedy = self._read.greedy[0]
        else:
            with torch.inference_mode():
                greedy = self.reply_logits(self.forward(slot[None]))[0].argmax(-1)
        return bool((greedy == self.target.wanted).all())

    def next_logits(self, slot: Tensor) -> Tensor:
        """Return the logits (n, V) of the token after a slot of ids (n, L); L may be 0."""
        if slot.shape[1]:
            return self.forward(slot, whole=False).logits[:, -1]
        target = self.target
        if not len(target.before):
            return torch.zeros(len(slot), self.model.get_input_embeddings().num_embeddings, device=slot.device)
        self.n_queries += 1
        roles = {"role_ids": target.roles_before[None]} if self.patched else {}
        logits: Tensor = self.model(input_ids=target.before[None], use_cache=False, **roles).logits[:, -1]
        return logits.expand(len(slot), -1)

    def role_ids(self, length: int, role: int | None = None) -> Tensor:
        """Return the roles (1, P + L + A + W) with a slot of `length` tokens."""
        target = self.target
        slot = torch.full_like(target.before[:1], target.role if role is None else role).expand(length)
        return torch.cat([target.roles_before, slot, target.roles_after])[None]

    def _kept(self, n: int) -> dict[str, Any]:
        """Return the cached keys and values for n sequences as an argument; the model does not write into them."""
        known = self._known if self._shared else self._cache
        length = len(self.target.before) + self._shared
        rows = self._rows if self._shared else None

        def of(x: Tensor) -> Tensor:
            x = x[:, :, :length]
            return x.expand(n, -1, -1, -1) if rows is None else x[rows]

        cache = copy.copy(known)
        cache.layers = [copy.copy(layer) for layer in known.layers]
        for layer in cache.layers:
            if layer.is_initialized:
                layer.keys, layer.values = of(layer.keys), of(layer.values)
        change_rows(cache, lambda roles: roles.expand(n, -1) if rows is None else roles[rows])
        return {self._cache_argument: cache}
