"""Replies to conversations with a common prefix: the shared tokens of a source are run once.

The keys and values of the shared tokens are computed for several sources in one batch, left-padded, and their rows are
repeated for each batch of replies.

Legend: B replies of a batch, P tokens of the longest shared part, S tokens of the longest rest, G sources.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache, DynamicLayer

from rolesafe.attacks.replies import end_ids, role_config
from rolesafe.config import RoleConfig
from rolesafe.patching.caches import NAMES, cache_argument, cache_class, change_rows, output_cache
from rolesafe.patching.modes import evaluating
from rolesafe.roles.encoding import EncodedConversation, collate, padding_id

LEAST = 24
"""Minimum number of shared tokens of a group."""
MOST_SOURCES = 32


def shares(model: Any) -> bool:
    """Return True where the model's forward pass takes position ids and a KV cache."""
    parameters = inspect.signature(model.forward).parameters
    return "position_ids" in parameters and any(name in parameters for name in NAMES)


@dataclass(frozen=True)
class Group:
    """Conversations of one source that begin with the same tokens in the same roles.

    Attributes:
        length: Number of shared tokens.
        members: Indices of the conversations.
    """

    length: int
    members: tuple[int, ...]


def groups(sources: Sequence[str], encoded: Sequence[EncodedConversation]) -> list[Group]:
    """Return groups of at least two conversations; those in no group share too few tokens.

    Args:
        sources: Source of each conversation.
        encoded: Tokenized conversations. At least one token of each stays unshared.
    """
    by: dict[str, list[int]] = {}
    for i, source in enumerate(sources):
        by.setdefault(source, []).append(i)
    found = []
    for members in by.values():
        left = members
        while len(left) > 1:
            first = encoded[left[0]]
            shared = {i: _common(first, encoded[i]) for i in left[1:]}
            # half of the longest match: the rest, such as texts with the injection first, form groups of their own
            least = max(LEAST, max(shared.values()) // 2)
            chosen = [i for i, length in shared.items() if length >= least]
            if chosen:
                found.append(Group(min(shared[i] for i in chosen), (left[0], *chosen)))
            left = [i for i in left[1:] if i not in chosen]
    return found


def _common(one: EncodedConversation, other: EncodedConversation) -> int:
    most = min(len(one), len(other)) - 1
    for k in range(most):
        if one.input_ids[k] != other.input_ids[k] or one.role_ids[k] != other.role_ids[k]:
            return k
    return most


def blocks(found: Sequence[Group], most_tokens: int) -> Iterator[list[Group]]:
    """Yield lists of groups to run in one batch, longest first."""
    left = sorted(found, key=lambda group: -group.length)
    while left:
        count = max(1, min(MOST_SOURCES, most_tokens // left[0].length))
        yield left[:count]
        left = left[count:]


class Prefix:
    """Keys and values of the shared tokens of several groups.

    Args:
        model: Causal language model, patched or plain.
        tokenizer: Tokenizer of the model.
        block: Groups of the batch.
        encoded: All tokenized conversations.
    """

    def __init__(
        self, model: Any, tokenizer: Any, block: Sequence[Group], encoded: Sequence[EncodedConversation]
    ) -> None:
        self.model, self.tokenizer, self.encoded = model, tokenizer, encoded
        self.row = {i: (g, group.length) for g, group in enumerate(block) for i in group.members}
        self.config = role_config(model)
        parts = [_piece(encoded[group.members[0]], 0, group.length) for group in block]
        self.inputs = self._collated(parts)
        mask = self.inputs["attention_mask"]
        positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
        with torch.no_grad(), evaluating(model):
            output = model(**self.inputs, position_ids=positions, use_cache=True)
        self.cache = output_cache(output)

    @property
    def usable(self) -> bool:
        """True where all layers of the cache have full keys and values, so that its rows can be repeated."""
        return cache_class(self.cache) is DynamicCache and all(type(x) is DynamicLayer for x in self.cache.layers)

    def replies(self, batch: Sequence[int], new_tokens: int) -> list[str]:
        """Return the greedy replies to conversations of the groups, as `rolesafe.attacks.replies.replies` does."""
        rows = torch.tensor([self.row[i][0] for i in batch], device=self.model.device)
        rest = self._collated([_piece(self.encoded[i], self.row[i][1], len(self.encoded[i])) for i in batch])
        inputs = {name: torch.cat([self.inputs[name][rows], rest[name]], dim=1) for name in rest}
        ends = end_ids(self.model, self.tokenizer)
        with torch.no_grad(), evaluating(self.model):
            output = self.model.generate(
                **inputs,
                **{cache_argument(self.model.forward): self._repeated(rows)},
                max_new_tokens=new_tokens,
                do_sample=False,
                use_cache=True,
                eos_token_id=ends or None,
                pad_token_id=padding_id(self.tokenizer),
            )
        new = output[:, inputs["input_ids"].shape[1] :].tolist()
        stop = set(ends)
        cut = [ids[: next((k for k, i in enumerate(ids) if i in stop), len(ids))] for ids in new]
        return [self.tokenizer.decode(ids, skip_special_tokens=True).strip() for ids in cut]

    def _collated(self, parts: Sequence[EncodedConversation]) -> dict[str, Tensor]:
        found = dict(collate(self.tokenizer, parts, self.config or RoleConfig(), padding_side="left"))
        if self.config is None:
            found.pop("role_ids")
        return {name: value.to(self.model.device) for name, value in found.items()}

    def _repeated(self, rows: Tensor) -> Any:
        cache = copy.copy(self.cache)
        cache.layers = [copy.copy(layer) for layer in self.cache.layers]
        for layer in cache.layers:
            layer.keys, layer.values = layer.keys[rows], layer.values[rows]
        change_rows(cache, lambda roles: roles[rows])
        return cache


def _piece(encoded: EncodedConversation, low: int, high: int) -> EncodedConversation:
    return EncodedConversation(
        encoded.input_ids[low:high],
        encoded.role_ids[low:high],
        encoded.message_ids[low:high],
        encoded.parts[low:high],
    )
