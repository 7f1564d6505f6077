"""Attacks that look for the messages instead of building them: what they are called with and what they leave."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from rolesafe.tasks import Example, Message


class CannotSearch(ValueError):
    """One example cannot be searched, for a reason of its own: its length, or its tokens. Others may."""


@dataclass(frozen=True, kw_only=True)
class Found:
    """What a search found for one example.

    Attributes:
        messages: The best messages found, as text that anybody can send.
        reply: What the model answers where only the search can ask it (``typed=False``); ``None``: send `messages`.
        n_queries: Sequences that the model was run on: candidates, gradients and replies.
        n_steps: Steps of the search, the last one included that was not finished by an early stop.
        losses: Loss of the best messages after each step; the first one is that of the start.
        typed: Whether `messages` are the attack. False where it needs what nobody can type, such as embeddings:
            such a success is one of a stronger attacker, and none of a text.
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
                f"`reply`: expected {'None' if self.typed else 'a text'} with typed={self.typed}, got {self.reply!r}; "
                "what can be typed is sent to the model like any other message"
            )


class Search(Protocol):
    """The signature of all searches."""

    def __call__(
        self,
        model: Any,
        tokenizer: Any,
        example: Example,
        *,
        wanted: str,
        success: str,
        seed: int | str,
        max_new_tokens: int,
        batch_size: int,
        **parameters: Any,
    ) -> Found:
        """Look for messages that make `model` break the rule of `example`.

        Args:
            model: A transformers causal language model, patched or not. A role-aware one gets the roles.
            tokenizer: Its tokenizer.
            example: What to attack; only the message :attr:`Example.target` is changed.
            wanted: The whole reply that the attacker wants, what losses are taken on.
            success: The text that makes a reply a success, judged by :func:`rolesafe.attacks.contains`.
            seed: Of all choices of the search; equal seeds give equal results.
            max_new_tokens: Longest reply, in tokens.
            batch_size: Most sequences in a batch.
            parameters: Of the search itself.
        """
        ...
