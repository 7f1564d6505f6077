"""Force the first tokens of a reply and let the model continue: many prefixes of one prompt, from one cache.

Legend: n rows (prefixes, or samples of them), P tokens of the prompt, L of the longest prefix, V vocabulary.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from rolesafe.attacks.replies import context_size, end_ids, role_config

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from rolesafe.roles.encoding import EncodedConversation

T = TypeVar("T")
Tokens = tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Continuation:
    """Hold a reply that begins with forced tokens.

    Attributes:
        forced: Forced tokens.
        own: Tokens that the model wrote after them, without the end of the turn.
        text: Text of both.
        own_text: Text of `own`.
    """

    forced: Tokens
    own: Tokens
    text: str
    own_text: str


class ForcedPrompt:
    """Run a model after one prompt and any forced first tokens of its reply.

    The keys and values of the prompt are computed once, and shared by all rows. Prefixes of several lengths are padded
    between the prompt and the prefix. Models with a sliding window, or with more in their cache than keys and values,
    run every row from the start. Forced tokens have the role of generated tokens.

    Args:
        model: A causal language model, patched or not; in evaluation mode for each pass.
        tokenizer: Its tokenizer.
        prompt: Prompt with the generation prompt, from :func:`rolesafe.attacks.replies.prompts`.
        batch_size: Maximum number of rows in a batch.

    Attributes:
        n_queries: Number of rows run so far.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        prompt: EncodedConversation,
        *,
        batch_size: int = 32,
    ) -> None:
        import torch

        from rolesafe.roles.encoding import padding_id, padding_role_id

        config = role_config(model)
        self.model, self.tokenizer, self.batch_size = model, tokenizer, batch_size
        self.n_queries = 0
        self.ends = end_ids(model, tokenizer)
        self._patched = config is not None
        self._device = getattr(model, "device", "cpu")
        self._pad = padding_id(tokenizer)
        self._roles = (0, 0) if config is None else (config.generated_id, padding_role_id(config))
        self._ids = torch.tensor(prompt.input_ids)
        self._prompt_roles = torch.tensor(prompt.role_ids)
        self._cache, self._cache_argument = self._prefill()

    def _prefill(self) -> tuple[Any, str]:
        """Return the cache of all tokens of the prompt but the last, or None, and the name of its argument."""
        import torch
        from transformers.cache_utils import DynamicCache, DynamicLayer

        from rolesafe.patching.caches import cache_argument, cache_class, output_cache
        from rolesafe.patching.modes import evaluating

        if len(self._ids) < 2:
            return None, ""
        roles = {"role_ids": self._prompt_roles[None, :-1].to(self._device)} if self._patched else {}
        with torch.no_grad(), evaluating(self.model):
            ids = self._ids[None, :-1].to(self._device)
            cache: Any = output_cache(self.model(input_ids=ids, use_cache=True, **roles))
        if cache is None or cache_class(cache) is not DynamicCache:
            return None, ""
        if any(type(layer) is not DynamicLayer for layer in cache.layers):
            return None, ""
        return cache, cache_argument(self.model.forward)

    def _expanded(self, rows: int) -> dict[str, Any]:
        """Return the shared cache for `rows` rows as an argument; the model does not write into it."""
        from rolesafe.patching.caches import change_rows

        if self._cache is None:
            return {}
        cache = copy.copy(self._cache)
        cache.layers = [copy.copy(layer) for layer in self._cache.layers]
        for layer in cache.layers:
            layer.keys, layer.values = (x.expand(rows, -1, -1, -1) for x in (layer.keys, layer.values))
        change_rows(cache, lambda roles: roles.expand(rows, -1))
        return {self._cache_argument: cache}

    def _inputs(self, prefixes: Sequence[Sequence[int]], *, pad_left: bool) -> dict[str, Tensor]:
        """Return ids, mask and roles (n, P + L) of the prompt and the prefixes.

        Padding on the left is between the prompt and its last token where the cache is shared, else before the prompt.
        """
        import torch
        import torch.nn.functional as F

        longest = max(map(len, prefixes))
        generated, padding_role = self._roles
        shared = len(self._ids) - 1 if self._cache is not None else 0
        ids, roles, masks = [], [], []
        for prefix in prefixes:
            pads = longest - len(prefix)
            where = (pads, 0) if pad_left else (0, pads)
            tail = torch.cat([self._ids[shared:], torch.tensor(list(prefix), dtype=torch.int64)])
            tail_roles = F.pad(self._prompt_roles[shared:], (0, len(prefix)), value=generated)
            head = torch.ones(shared, dtype=torch.int64)
            ids.append(torch.cat([self._ids[:shared], F.pad(tail, where, value=self._pad)]))
            roles.append(torch.cat([self._prompt_roles[:shared], F.pad(tail_roles, where, value=padding_role)]))
            masks.append(torch.cat([head, F.pad(torch.ones_like(tail), where, value=0)]))
        found = {"input_ids": torch.stack(ids), "attention_mask": torch.stack(masks)}
        if self._patched:
            found["role_ids"] = torch.stack(roles)
        return {name: value.to(self._device) for name, value in found.items()}

    def check_room(self, prefixes: Sequence[Sequence[int]], new: int) -> None:
        """Raise a ValueError where a prefix and `new` tokens do not fit into the model's context."""
        size, longest = context_size(self.model), max(map(len, prefixes), default=0)
        if size is not None and len(self._ids) + longest + new > size:
            raise ValueError(
                f"`prefixes`: expected at most {size - len(self._ids) - new} forced tokens, the model's context of "
                f"{size} without {len(self._ids)} tokens of the prompt and {new} new ones, got {longest}. Shorten the "
                "prefix, or lower `max_new_tokens`."
            )

    def continued(
        self,
        prefixes: Sequence[Sequence[int]],
        *,
        max_new_tokens: int,
        samples: int = 0,
        seed: int = 0,
        banned: Sequence[int] = (),
    ) -> list[list[Continuation]]:
        """Return the continuations of each prefix, batched over prefixes of similar length.

        Args:
            prefixes: Forced tokens of each row; empty for the model's own reply.
            max_new_tokens: Maximum number of tokens after a prefix.
            samples: Number of samples per prefix at temperature 1 and top-p 1; 0: the greedy continuation.
            seed: Seed of the samples.
            banned: Tokens with probability 0.

        Returns:
            One list for each prefix, of 1 or `samples` continuations.

        Raises:
            ValueError: A prefix and its continuation do not fit into the model's context.
        """
        import torch

        if not prefixes:
            return []
        self.check_room(prefixes, max_new_tokens)
        count = max(1, samples)
        rows = sorted((r for r in range(len(prefixes)) for _ in range(count)), key=lambda r: len(prefixes[r]))
        found: list[list[Continuation]] = [[] for _ in prefixes]
        options: dict[str, Any] = {"do_sample": False}
        if samples:
            options = {"do_sample": True, "temperature": 1.0, "top_p": 1.0, "top_k": 0}
        if banned:
            options["suppress_tokens"] = sorted(set(banned))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            for start in range(0, len(rows), self.batch_size):
                batch = rows[start : start + self.batch_size]
                own = self._generate([prefixes[r] for r in batch], max_new_tokens, options)
                for row, ids in zip(batch, own, strict=True):
                    found[row].append(self._continuation(prefixes[row], ids))
        return found

    def _generate(self, prefixes: Sequence[Sequence[int]], new: int, options: dict[str, Any]) -> list[list[int]]:
        import torch

        from rolesafe.patching.modes import evaluating

        inputs = self._inputs(prefixes, pad_left=True)
        self.n_queries += len(prefixes)
        with torch.no_grad(), evaluating(self.model):
            output = self.model.generate(
                **inputs,
                **self._expanded(len(prefixes)),
                **options,
                max_new_tokens=new,
                use_cache=True,
                eos_token_id=self.ends or None,
                pad_token_id=self._pad,
            )
        stop = set(self.ends)
        new_ids = output[:, inputs["input_ids"].shape[1] :].tolist()
        return [ids[: next((k for k, i in enumerate(ids) if i in stop), len(ids))] for ids in new_ids]

    def _continuation(self, forced: Sequence[int], own: Sequence[int]) -> Continuation:
        text = self.text([*forced, *own])
        return Continuation(forced=tuple(forced), own=tuple(own), text=text, own_text=self.text(own))

    def text(self, ids: Sequence[int]) -> str:
        """Return the text of tokens of the reply."""
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True)).strip()

    def log_probs(self, prefixes: Sequence[Sequence[int]], keep: Callable[[Tensor, int], T]) -> list[T]:
        """Return `keep` of the log-probabilities of every next token, for each prefix.

        Args:
            prefixes: Forced tokens of each row.
            keep: Called with (len(prefix) + 1, V) fp32, of which row i predicts the token after the first i tokens of
                the prefix, and with the index of the prefix. Keep little: there is one such tensor for each prefix.

        Raises:
            ValueError: A prefix does not fit into the model's context.
        """
        import torch

        from rolesafe.patching.modes import evaluating

        self.check_room(prefixes, 0)
        order = sorted(range(len(prefixes)), key=lambda r: len(prefixes[r]))
        found: dict[int, T] = {}
        shared = len(self._ids) - 1 if self._cache is not None else 0
        first = len(self._ids) - 1 - shared
        for start in range(0, len(order), self.batch_size):
            batch = order[start : start + self.batch_size]
            inputs = self._inputs([prefixes[r] for r in batch], pad_left=False)
            inputs["input_ids"] = inputs["input_ids"][:, shared:]
            self.n_queries += len(batch)
            with torch.no_grad(), evaluating(self.model):
                output = self.model(**inputs, **self._expanded(len(batch)), use_cache=self._cache is not None)
            for i, r in enumerate(batch):
                found[r] = keep(output.logits[i, first : first + len(prefixes[r]) + 1].float().log_softmax(-1), r)
        return [found[r] for r in range(len(prefixes))]

    def log_likelihoods(
        self, prefixes: Sequence[Sequence[int]], last: int, *, banned: Sequence[int] = ()
    ) -> list[float]:
        """Return the log-likelihood, in nats, of the last `last` tokens of each prefix after the tokens before them.

        Args:
            prefixes: Forced tokens of each row, at least `last`.
            last: Number of tokens.
            banned: Tokens with probability 0, which are in no row.
        """

        def keep(rows: Tensor, r: int) -> Tensor:
            rows = rows[-last - 1 : -1]
            if banned:
                rows[:, list(banned)] = -math.inf
                rows = rows.log_softmax(-1)
            return rows.gather(1, rows.new_tensor(prefixes[r][-last:]).long()[:, None]).sum()

        return [float(value) for value in self.log_probs(prefixes, keep)]
