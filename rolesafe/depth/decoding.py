"""Decoding of several continuations of the same rollouts from one KV cache.

Legend of shapes: B rollouts of a batch, P tokens of the longest prompt, V vocabulary.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from rolesafe.attacks.replies import role_config
from rolesafe.config import RoleConfig
from rolesafe.patching.caches import NAMES, cache_argument, cache_class, output_cache

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from rolesafe.roles.encoding import EncodedConversation


class Decoder:
    """Prompts and their rollouts in one KV cache that is extended and cut.

    A prompt is run once, whatever its number of rollouts. A cache with more than full keys and values in a layer
    (sliding windows, recurrent states) cannot be cut: the tokens are then run again from the start. A patched model
    gets the roles of all tokens.

    Args:
        model: Causal language model in evaluation mode, patched or not.
        tokenizer: Its tokenizer.
        encoded: Prompts.
        rows: (B,) index of the prompt of each rollout.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        encoded: Sequence[EncodedConversation],
        rows: Tensor,
    ) -> None:
        from rolesafe.roles.encoding import collate

        self.model, self.config = model, role_config(model)
        device = getattr(model, "device", torch.device("cpu"))
        inputs = dict(collate(tokenizer, encoded, self.config or RoleConfig(), padding_side="left"))
        parameters = inspect.signature(model.forward).parameters
        self._names = {name for name in ("position_ids", "logits_to_keep") if name in parameters}
        self._argument = cache_argument(model.forward) if any(name in parameters for name in NAMES) else None
        rows = rows.to(device)
        self._prompt = {name: value.to(device) for name, value in inputs.items()}
        self.length = self._prompt["input_ids"].shape[1]
        self._cache: Any = None
        self._first = self._forward(self._prompt, 0)[rows]
        self._prompt = {name: value[rows] for name, value in self._prompt.items()}
        self._tokens = self._prompt["input_ids"][:, :0]
        self._keep_rows(rows)

    def _keep_rows(self, rows: Tensor) -> None:
        """Give each rollout a row of the cache; drop a cache that cannot be cut."""
        from transformers.cache_utils import DynamicCache, DynamicLayer

        cache = self._cache
        full = cache is not None and cache_class(cache) is DynamicCache
        if full and all(type(layer) is DynamicLayer for layer in cache.layers):
            cache.batch_select_indices(rows)
        else:
            self._cache = None

    @property
    def logits(self) -> Tensor:
        """Logits of the first new token of each rollout, (B, V) float32."""
        return self._first

    def extend(self, tokens: Tensor) -> Tensor:
        """Append one token to each rollout and return the logits of the next one.

        Args:
            tokens: (B,) int64.

        Returns:
            (B, V) float32.
        """
        return self._run(torch.cat([self._tokens, tokens.unsqueeze(1)], 1))

    def rewind(self, tokens: Tensor) -> Tensor:
        """Replace the new tokens of each rollout by `tokens`, (B, k), and return the logits of the next one, (B, V).

        The cache must begin with all but the last of `tokens`: cut depth by depth, the deepest first.
        """
        if tokens.shape[1] == 0:
            self._tokens = tokens
            if self._cache is not None:
                self._cut(self.length)
            return self._first
        return self._run(tokens)

    def _run(self, tokens: Tensor) -> Tensor:
        self._tokens = tokens
        whole = self._whole(tokens)
        if self._cache is None:
            return self._forward(whole, 0)
        past = self.length + tokens.shape[1] - 1
        self._cut(past)
        return self._forward(whole, past)

    def _cut(self, length: int) -> None:
        surplus = self._cache.get_seq_length() - length
        if surplus > 0:
            self._cache.crop(-surplus)

    def _whole(self, tokens: Tensor) -> dict[str, Tensor]:
        generated = 0 if self.config is None else self.config.generated_id
        added = {
            "input_ids": tokens,
            "attention_mask": torch.ones_like(tokens),
            "role_ids": torch.full_like(tokens, generated),
        }
        return {name: torch.cat([value, added[name]], 1) for name, value in self._prompt.items()}

    def _forward(self, whole: dict[str, Tensor], past: int) -> Tensor:
        """Run the tokens after the first `past`, and return the logits after the last one, (B, V)."""
        mask = whole["attention_mask"]
        arguments: dict[str, Any] = {"input_ids": whole["input_ids"][:, past:], "attention_mask": mask}
        if self.config is not None:
            arguments["role_ids"] = whole["role_ids"]
        if "position_ids" in self._names:
            arguments["position_ids"] = (mask.cumsum(1) - 1).clamp(min=0)[:, past:]
        if "logits_to_keep" in self._names:
            arguments["logits_to_keep"] = 1
        if past:
            assert self._argument is not None
            arguments[self._argument] = self._cache
        keeps = self._argument is not None and (past > 0 or self.length == mask.shape[1])
        with torch.no_grad():
            output = self.model(**arguments, use_cache=keeps)
        if keeps and past == 0:
            self._cache = output_cache(output)
        return output.logits[:, -1].float()


def draw(logits: Tensor, uniform: Tensor) -> Tensor:
    """Draw one token per row by inversion of the distribution function.

    Args:
        logits: (B, V).
        uniform: (B,) float64 numbers in [0, 1).

    Returns:
        (B,) int64.
    """
    edges = logits.softmax(-1).double().cumsum(-1)
    points = (uniform.to(edges.device) * edges[:, -1]).unsqueeze(1)
    return torch.searchsorted(edges, points, right=True).squeeze(1).clamp(max=logits.shape[1] - 1)
