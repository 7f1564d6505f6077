"""Attacks that search for their messages: input, result and error of one search."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from rolesafe.tasks import Example, Message

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class CannotSearch(ValueError):
    """Report that one example cannot be searched because of its own length or tokens."""


@dataclass(frozen=True, kw_only=True)
class SearchContext:
    """Hold the model and the example of one search.

    Attributes:
        model: A transformers causal language model, patched or not. A role-aware one gets the roles.
        tokenizer: Its tokenizer, with a chat template.
        example: The example to attack; only the message of the role :attr:`Example.target` is changed.
        wanted: The whole reply that the attacker wants. Losses are computed on it.
        success: The text that makes a reply a success, judged by :func:`rolesafe.attacks.contains`.
        seed: Seed of all choices of the search; equal seeds give equal results.
        batch_size: Maximum number of sequences in a batch. :func:`rolesafe.attacks.attack` starts with the
            configuration's and halves it when memory runs out.
        draft: Draft model of probe sampling, already loaded; default: the one that the configuration names.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    example: Example
    wanted: str
    success: str
    seed: int | str
    batch_size: int = 32
    draft: PreTrainedModel | None = None


@dataclass(frozen=True, kw_only=True)
class Found:
    """Hold the result of one search.

    Attributes:
        messages: The best messages found.
        reply: The model's reply where only the search can ask for it (``typed=False``). ``None``: send `messages`.
        n_queries: Sequences that the model was run on: candidates, gradients and replies.
        n_steps: Steps of the search, including one that an early stop cut short.
        losses: Loss of the best messages after each step; the first one is the loss of the start.
        typed: True if `messages` are the whole attack. False if it needs embeddings or a prefilled reply, which a user
            cannot type.

    Raises:
        ValueError: `reply` is set although `typed` is True, or the reverse.
    """

    messages: tuple[Message, ...]
    reply: str | None
    n_queries: int
    n_steps: int
    losses: tuple[float, ...]
    typed: bool = True

    def __post_init__(self) -> None:
        if self.typed is (self.reply is not None):
            raise ValueError(
                f"`reply`: expected {'None' if self.typed else 'a text'} with typed={self.typed}, got {self.reply!r}. "
                "Messages that can be typed are sent to the model like any others."
            )
