"""What the searches share around their steps: seeds, evaluation mode, and asking whether the model gives in."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from rolesafe.attacks.gradient.victim import Victim
from rolesafe.attacks.judge import contains, words
from rolesafe.attacks.replies import replies


def generator_of(seed: int | str) -> torch.Generator:
    """A generator on the CPU: the same numbers for the same seed on every device and in every process."""
    if isinstance(seed, bool) or not isinstance(seed, (int, str)):
        raise ValueError(f"`seed`: expected a whole number or a text, got {seed!r}")
    digest = hashlib.sha256(repr(seed).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))


@contextmanager
def evaluating(*models: Any) -> Iterator[None]:
    """Within the context the models (None is passed over) are in evaluation mode."""
    training = [model for model in models if model is not None and model.training]
    for model in training:
        model.eval()
    try:
        yield
    finally:
        for model in training:
            model.train()


class Watch:
    """Asks for the reply to a slot now and then, and says when it contains `success`.

    Args:
        victim: The model with its target.
        ask: The greedy reply to a slot, (L,) ids or (L, d) embeddings.
        success: What counts.
        every: Steps between two replies; ``None``: never ask.

    Attributes:
        n_replies: Replies asked for.
    """

    def __init__(self, victim: Victim, ask: Callable[[Tensor], str], success: str, every: int | None) -> None:
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
        """Whether the reply to the best slot so far is a success, as far as it was asked for.

        It is asked for every few steps, and at once where the wanted reply is the greedy one. A slot whose reply is
        known is not asked about again.
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


def ask_in_text(victim: Victim, tokenizer: Any, max_new_tokens: int) -> Callable[[Tensor], str]:
    """Sends the messages that a slot of tokens makes."""

    def ask(ids: Tensor) -> str:
        messages = victim.target.messages(ids.tolist())
        return replies(victim.model, tokenizer, [messages], max_new_tokens=max_new_tokens, batch_size=1)[0]

    return ask
