"""Collect the events of a request's jobs: a whole answer, or chunks of a stream, in the form of OpenAI."""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field
from typing import Any

from rolesafe.serve.calls import CallFinder
from rolesafe.serve.errors import ApiError
from rolesafe.serve.job import Event, Job

_FAULTS = {
    "timeout": (504, "The reply took longer than the server's limit. Ask for a shorter one, or try again later."),
    "closed": (503, "The server shuts down. Send the request to another."),
    "failed": (500, "The model failed on this request. The server's log has the reason."),
    "cancelled": (499, "The request was cancelled."),
}


@dataclass
class Choice:
    """State of one of the replies to a request."""

    finder: CallFinder
    parts: list[str] = field(default_factory=list)
    calls: list[dict[str, Any]] = field(default_factory=list)
    reason: str | None = None
    tokens: int = 0

    def add(self, event: Event, parallel_calls: bool) -> str:
        """Take an event and return the new content.

        Raises:
            ApiError: The reply ended with an error.
        """
        self.tokens = event.tokens
        if event.reason in _FAULTS:
            status, message = _FAULTS[event.reason]
            raise ApiError(status, message, code=event.reason)
        text = self.finder.add(event.text)
        if event.reason is not None:
            rest, calls = self.finder.end()
            text += rest
            self.calls = calls if parallel_calls else calls[:1]
            self.reason = "tool_calls" if self.calls else event.reason
        if text:
            self.parts.append(text)
        return text


class Answer:
    """Answer to one request.

    Args:
        model: Name of the model.
        jobs: One job for each choice.
        events: Queue of the index of a choice and its event.
        tools: Names of the tools of the request.
        parallel_calls: Return several calls of one reply.
        prompt_tokens: Length of the prompt.
    """

    def __init__(
        self,
        model: str,
        jobs: Sequence[Job],
        events: asyncio.Queue[tuple[int, Event]],
        tools: frozenset[str],
        parallel_calls: bool,
        prompt_tokens: int,
    ) -> None:
        self.jobs, self.events, self.parallel_calls, self.prompt_tokens = jobs, events, parallel_calls, prompt_tokens
        self.choices = [Choice(CallFinder(tools)) for _ in jobs]
        self.failed: ApiError | None = None
        self.about = {"id": f"chatcmpl-{secrets.token_hex(12)}", "created": int(time.time()), "model": model}

    async def parts(self) -> AsyncGenerator[tuple[int, str], None]:
        """Iterate over the index of a choice and its new content until all are done; then cancel what is left.

        Raises:
            ApiError: A reply failed, or took too long.
        """
        try:
            while not self.done:
                left = max(job.deadline for job in self.jobs) - time.monotonic() + 0.1
                try:
                    k, event = await asyncio.wait_for(self.events.get(), max(left, 0.0))
                except asyncio.TimeoutError:
                    raise ApiError(*_FAULTS["timeout"], code="timeout") from None
                yield k, self.choices[k].add(event, self.parallel_calls)
        finally:
            for job in self.jobs:
                job.cancelled = True

    @property
    def done(self) -> bool:
        """True if all replies are complete."""
        return all(choice.reason is not None for choice in self.choices)

    def usage(self) -> dict[str, int]:
        """Return the numbers of tokens so far."""
        done = sum(choice.tokens for choice in self.choices)
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": done,
            "total_tokens": self.prompt_tokens + done,
        }

    def whole(self) -> dict[str, Any]:
        """Return the answer once all choices are done."""
        choices = []
        for k, choice in enumerate(self.choices):
            message: dict[str, Any] = {"role": "assistant", "content": "".join(choice.parts), "refusal": None}
            if choice.calls:
                message |= {"tool_calls": choice.calls, "content": message["content"] or None}
            choices.append({"index": k, "message": message, "logprobs": None, "finish_reason": choice.reason})
        return {**self.about, "object": "chat.completion", "choices": choices, "usage": self.usage()}

    def chunk(self, k: int, delta: dict[str, Any], reason: str | None = None) -> str:
        """Return one event of a stream."""
        choice = {"index": k, "delta": delta, "logprobs": None, "finish_reason": reason}
        return _event({**self.about, "object": "chat.completion.chunk", "choices": [choice]})

    async def stream(self, include_usage: bool) -> AsyncGenerator[str, None]:
        """Iterate over the server-sent events of the answer. An error ends the stream as an event of its own."""
        for k in range(len(self.jobs)):
            yield self.chunk(k, {"role": "assistant", "content": ""})
        try:
            async for k, text in self.parts():
                if text:
                    yield self.chunk(k, {"content": text})
                choice = self.choices[k]
                if choice.reason is not None:
                    if choice.calls:
                        calls = [{"index": i, **call} for i, call in enumerate(choice.calls)]
                        yield self.chunk(k, {"tool_calls": calls})
                    yield self.chunk(k, {}, choice.reason)
        except ApiError as error:
            self.failed = error
            yield _event(error.body())
            return
        if include_usage:
            yield _event({**self.about, "object": "chat.completion.chunk", "choices": [], "usage": self.usage()})
        yield "data: [DONE]\n\n"


def _event(value: Any) -> str:
    return f"data: {json.dumps(value)}\n\n"
