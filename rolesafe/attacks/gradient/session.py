"""State of one search: target, model, loss, random numbers, early stop and progress log."""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from rolesafe.arguments import is_integer
from rolesafe.attacks.gradient.losses import Loss, losses, make_loss, readable_attention
from rolesafe.attacks.gradient.target import Target
from rolesafe.attacks.gradient.victim import Victim
from rolesafe.attacks.judge import contains, words
from rolesafe.attacks.replies import replies
from rolesafe.attacks.search import SearchContext
from rolesafe.patching.modes import evaluating

if TYPE_CHECKING:
    from rolesafe.attacks.gradient.config import SlotConfig

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

LOG_EVERY = 10
"""Steps between two lines of the log."""

Ask = Callable[[Tensor], str]
"""Returns the greedy reply to a slot, (L,) ids or (L, d) embeddings."""


@dataclass(frozen=True, kw_only=True)
class Session:
    """Hold the state that the steps of one search share.

    Attributes:
        victim: The model with its target.
        loss: The loss to minimise.
        generator: Source of all random choices, on the CPU.
        batch_size: Maximum number of candidates in a batch.
        watch: Early stop.
        ask: Asks for the greedy reply to a slot.
        began: Start of the search, in seconds of :func:`time.monotonic`.
    """

    victim: Victim
    loss: Loss
    generator: torch.Generator
    batch_size: int
    watch: Watch
    ask: Ask
    began: float = field(default_factory=time.monotonic)

    @property
    def target(self) -> Target:
        """Return the target of the model."""
        return self.victim.target

    @property
    def n_queries(self) -> int:
        """Return the number of sequences that the model was run on."""
        return self.victim.n_queries + self.watch.n_replies

    def losses(self, candidates: Tensor, like: Tensor | None = None) -> Tensor:
        """Return the losses (n,) of `candidates` (n, L), see :func:`rolesafe.attacks.gradient.losses.losses`."""
        return losses(self.victim, self.loss, candidates, self.batch_size, like)

    def log(self, step: int, steps: int, loss: float) -> None:
        """Log step, best loss and elapsed time, every :data:`LOG_EVERY` steps and at the last one."""
        if step % LOG_EVERY == 0 or step == steps:
            seconds = time.monotonic() - self.began
            logger.info("%s: step %d/%d, loss %.4f, %.0f s", self.target.example.id, step, steps, loss, seconds)


@contextmanager
def session(
    context: SearchContext,
    config: SlotConfig,
    *,
    ask: Callable[[Victim, PreTrainedTokenizerBase, int], Ask] | None = None,
    cached: bool = True,
) -> Iterator[Session]:
    """Put the model into evaluation mode for the context, and yield the state of a search.

    Args:
        context: Model and example.
        config: The attack.
        ask: Makes the function that asks for replies; default: :func:`ask_in_text`.
        cached: Keep the keys and values of the tokens before the slot.

    Raises:
        ValueError: `success` has no word, or as :class:`rolesafe.attacks.gradient.target.Target`.
    """
    loss = make_loss(config.objective, weight=config.weight, alpha=config.mellowmax_alpha)
    generator = generator_of(context.seed)
    with evaluating(context.model), readable_attention(context.model, config.objective):
        victim = Victim(context.model, Target(context, config, generator), cached=cached)
        asking = (ask or ask_in_text)(victim, context.tokenizer, config.max_new_tokens)
        watch = Watch(victim, asking, context.success, config.check_every if config.early_stop else None)
        yield Session(
            victim=victim, loss=loss, generator=generator, batch_size=context.batch_size, watch=watch, ask=asking
        )


def generator_of(seed: int | str) -> torch.Generator:
    """Return a generator on the CPU: equal seeds give equal numbers on every device and in every process.

    Raises:
        ValueError: `seed` is not an int or a str.
    """
    if not is_integer(seed) and not isinstance(seed, str):
        raise ValueError(f"`seed`: expected a whole number or a text, got {seed!r}")
    digest = hashlib.sha256(repr(seed).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))


class Watch:
    """Ask for the reply to the best slot from time to time, and report when it contains `success`.

    Args:
        victim: The model with its target.
        ask: Returns the greedy reply to a slot.
        success: The text that makes a reply a success.
        every: Steps between two replies; ``None``: never ask.

    Attributes:
        n_replies: Number of replies asked for.
    """

    def __init__(self, victim: Victim, ask: Ask, success: str, every: int | None) -> None:
        if not words(success):
            raise ValueError(f"`success`: expected a text with at least one word, got {success!r}")
        self.victim = victim
        self.ask = ask
        self.success = success
        self.every = every
        self.n_replies = 0
        self._best: Tensor | None = None
        self._asked = True

    def gives_in(self, best: Tensor, step: int) -> bool:
        """Return True if the reply to the best slot so far was asked for and is a success.

        It is asked for every few steps, and at once where the wanted reply is the greedy one. A slot with a known reply
        is not asked about again.
        """
        if self.every is None:
            return False
        improved = best is not self._best
        self._best, self._asked = best, self._asked and not improved
        if self._asked or (step % self.every and not (improved and self.victim.follows(best))):
            return False
        self._asked = True
        self.n_replies += 1
        return contains(self.ask(best), self.success)


def ask_in_text(victim: Victim, tokenizer: PreTrainedTokenizerBase, max_new_tokens: int) -> Ask:
    """Return a function that sends the messages with a slot of token ids (L,) and returns the greedy reply."""

    def ask(ids: Tensor) -> str:
        messages = victim.target.messages(ids.tolist())
        return replies(victim.model, tokenizer, [messages], max_new_tokens=max_new_tokens, batch_size=1)[0]

    return ask
