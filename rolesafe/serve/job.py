"""One reply to generate: its prompt, its limits and its text."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, NamedTuple

from rolesafe.serve.text import ReplyText

if TYPE_CHECKING:
    from rolesafe.court import Court
    from rolesafe.roles.encoding import EncodedConversation

Reason = Literal["stop", "length", "content_filter", "cancelled", "timeout", "closed", "failed"]
"""Reason for the end of a reply; the first three are replies, the others errors."""


class Event(NamedTuple):
    """A new part of a reply, or its end.

    Attributes:
        text: New text.
        reason: Reason for the end, or None.
        tokens: Number of tokens of the reply so far.
    """

    text: str
    reason: Reason | None
    tokens: int


@dataclass(eq=False, kw_only=True)
class Job:
    """One reply to generate.

    Attributes:
        prompt: The conversation in tokens.
        text: Text of the reply.
        emit: Gets every event; called in the thread of the engine.
        max_tokens: Longest reply, in tokens.
        deadline: Time (:func:`time.monotonic`) at which it has to be done.
        temperature: Sampling temperature; 0 is greedy.
        top_p: Smallest probability mass to sample from.
        seed: Seed of sampling; None for a random one.
        court: Articles that the reply keeps, compiled for this conversation. The text is then held until the end.
        done: True once the reply has ended.
        cancelled: Set by anybody to end the reply because its client went away.
        closed: The same because the server shuts down.
        ids: Tokens of the reply.
    """

    prompt: EncodedConversation
    text: ReplyText
    emit: Callable[[Event], None]
    max_tokens: int
    deadline: float
    temperature: float = 1.0
    top_p: float = 1.0
    seed: int | None = None
    court: Court | None = None
    done: bool = False
    cancelled: bool = False
    closed: bool = False
    ids: list[int] = field(default_factory=list)
    _parts: list[str] = field(default_factory=list)

    @property
    def size(self) -> int:
        """Most tokens of the prompt and the reply."""
        return len(self.prompt) + self.max_tokens

    def feed(self, token: int, ends: frozenset[int]) -> bool:
        """Take the next token and return True if the reply ends with it."""
        if self.done or self.expired():
            return True
        if token in ends:
            self.finish("stop")
            return True
        self.ids.append(token)
        self._say(self.text.add(token))
        if self.text.stopped:
            self.finish("stop")
        elif len(self.ids) >= self.max_tokens:
            self.finish("length")
        return self.done

    def expired(self) -> bool:
        """Finish, and return True, where nobody waits for the reply any more."""
        if self.cancelled:
            self.finish("cancelled")
        elif self.closed:
            self.finish("closed")
        elif time.monotonic() > self.deadline:
            self.finish("timeout")
        return self.done

    def finish(self, reason: Reason) -> None:
        """End the reply."""
        if self.done:
            return
        self.done = True
        rest = self.text.end()
        if self.court is None or reason not in ("stop", "length"):
            self.emit(Event(rest if self.court is None else "", reason, len(self.ids)))
        elif self.court.check(self.ids) is not None:
            self.emit(Event(self.court.articles.refusal, "content_filter", len(self.ids)))
        else:
            self.emit(Event("".join(self._parts) + rest, reason, len(self.ids)))

    def _say(self, text: str) -> None:
        if self.court is not None:
            self._parts.append(text)
        elif text:
            self.emit(Event(text, None, len(self.ids)))
