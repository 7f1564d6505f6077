"""One queue of replies, generated in left-padded batches by one thread."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Sequence
from typing import Any

from rolesafe.attacks.replies import context_size, end_ids, role_config
from rolesafe.config import RoleConfig
from rolesafe.roles.encoding import EncodedConversation, collate, encode_one, padding_id
from rolesafe.serve.errors import ApiError
from rolesafe.serve.job import Job
from rolesafe.serve.requests import ChatRequest
from rolesafe.serve.settings import ServeSettings

LOG = logging.getLogger("rolesafe.serve")


class Engine:
    """Generate replies of one model.

    Requests that arrive while a batch runs wait for its end. All options of sampling may differ in a batch.

    Args:
        model: A causal language model, patched or plain, in eval mode.
        tokenizer: Its tokenizer, with a chat template.
        settings: Limits of the queue and of batches.
        articles: Articles that every reply keeps, or None.

    Raises:
        ValueError: The role options of `settings` do not fit the model, or the articles do not compile.
    """

    def __init__(self, model: Any, tokenizer: Any, settings: ServeSettings, articles: Any = None) -> None:
        from rolesafe.patching import is_patched

        if not is_patched(model) and hasattr(model, "get_base_model"):  # an adapter around a patched model
            model = model.get_base_model()
        self.model, self.tokenizer, self.settings, self.articles = model, tokenizer, settings, articles
        self.aware = is_patched(model)
        self.config = role_config(model) or RoleConfig()
        settings.check_roles(self.config)
        self.context = context_size(model)
        self.ends = end_ids(model, tokenizer)
        self._encoding = threading.Lock()  # tokenizers keep state during a call
        self._jobs: deque[Job] = deque()
        self._running: Sequence[Job] = ()
        self._changed = threading.Condition()
        self._closed = False
        if articles is not None:
            self.court([])
        self._thread = threading.Thread(target=self._run, name="rolesafe-engine", daemon=True)
        self._thread.start()

    # -------------------------------------------------------------------------------------------------------- requests

    def encode(self, request: ChatRequest) -> EncodedConversation:
        """Return the prompt of a request.

        Raises:
            ApiError: The chat template does not print it, or it does not fit into the context with a reply.
        """
        given = {k: v for k, v in self.settings.variable_roles.items() if k in request.variables}
        try:
            with self._encoding:
                prompt = encode_one(
                    self.tokenizer,
                    request.messages,
                    config=self.config,
                    add_generation_prompt=True,
                    tools=request.variables.get("tools"),
                    documents=request.variables.get("documents"),
                    template_kwargs=request.template_kwargs,
                    variable_roles=given,
                )
        except ValueError as error:
            raise ApiError.of(error) from error
        needed = len(prompt) + (request.max_tokens or 1)
        if self.context is not None and needed > self.context:
            raise ApiError(
                400,
                f"`messages`: expected at most {self.context} tokens with the reply, the model's context, got "
                f"{len(prompt)} and a reply of {request.max_tokens or 1}. Shorten the messages, or lower `max_tokens`.",
                code="context_length_exceeded",
                param="messages",
            )
        return prompt

    def court(self, messages: list[dict[str, Any]]) -> Any:
        """Return the court of a conversation; None without articles.

        Raises:
            ValueError: The articles do not compile.
        """
        if self.articles is None:
            return None
        from rolesafe.court import Court

        with self._encoding:
            return Court.compile(
                self.articles, self.tokenizer, messages=messages, config=self.config, end_ids=self.ends
            )

    def room(self, prompt: EncodedConversation) -> int:
        """Return the longest reply to a prompt, in tokens."""
        most = self.settings.max_new_tokens
        return most if self.context is None else min(most, self.context - len(prompt))

    def submit(self, jobs: Sequence[Job]) -> None:
        """Add jobs to the queue, all or none.

        Raises:
            ApiError: The queue is full, or the server shuts down.
        """
        with self._changed:
            if self._closed:
                raise ApiError(503, "The server shuts down. Send the request to another.", code="closed")
            if len(self._jobs) + len(jobs) > self.settings.max_queue:
                raise ApiError(
                    429,
                    f"The queue is full: {len(self._jobs)} replies wait, the most are {self.settings.max_queue}. Try "
                    "again later.",
                    code="queue_full",
                )
            self._jobs.extend(jobs)
            self._changed.notify()

    def close(self, timeout: float | None = None) -> None:
        """End all replies and the thread. It is safe to call it twice."""
        with self._changed:
            self._closed = True
            for job in (*self._jobs, *self._running):
                job.closed = True
            self._changed.notify()
        self._thread.join(timeout)

    @property
    def alive(self) -> bool:
        """False after :meth:`close`."""
        return self._thread.is_alive()

    # ---------------------------------------------------------------------------------------------------------- thread

    def _run(self) -> None:
        while True:
            batch = self._next()
            if batch is None:
                return
            try:
                self._generate(batch)
            except Exception:  # whatever the model raises: the server goes on with the next batch
                LOG.exception("a batch of %d replies failed", len(batch))
            for job in batch:
                job.finish("closed" if self._closed else "failed")

    def _next(self) -> list[Job] | None:
        """Wait for jobs and return the next batch; None after :meth:`close`."""
        with self._changed:
            while not self._jobs and not self._closed:
                self._changed.wait()
            until = time.monotonic() + self.settings.batch_wait_s
            while len(self._jobs) < self.settings.max_batch_size and not self._closed:
                left = until - time.monotonic()
                if left <= 0 or not self._changed.wait(left):
                    break
            if self._closed:
                while self._jobs:
                    self._jobs.popleft().finish("closed")
                return None
            batch = self._running = self._take()
        return batch

    def _take(self) -> list[Job]:
        """Remove and return jobs from the front of the queue that fit into one batch."""
        batch: list[Job] = []
        longest = most = 0
        while self._jobs and len(batch) < self.settings.max_batch_size:
            job = self._jobs[0]
            if job.expired():
                self._jobs.popleft()
                continue
            longest, most = max(longest, len(job.prompt)), max(most, job.max_tokens)
            tokens = (len(batch) + 1) * (longest + most)
            beyond = self.context is not None and longest + most > self.context
            if batch and (beyond or tokens > self.settings.max_batch_tokens):
                break
            batch.append(self._jobs.popleft())
        return batch

    def _generate(self, jobs: Sequence[Job]) -> None:
        """Generate the replies of a batch; each job gets its tokens as they come."""
        if not jobs:
            return
        import torch
        from transformers import LogitsProcessorList, StoppingCriteriaList

        from rolesafe.serve.sampling import RowSampler, RowStop

        batch = collate(self.tokenizer, [job.prompt for job in jobs], self.config, padding_side="left")
        inputs = {name: value.to(self.model.device) for name, value in batch.items()}
        if not self.aware:
            inputs.pop("role_ids")
        processors = LogitsProcessorList()
        courts = [job.court for job in jobs if job.court is not None]
        if courts:
            from rolesafe.court import CourtProcessor

            processors.append(CourtProcessor(courts, inputs["input_ids"], record=False))
        processors.append(RowSampler(jobs, inputs["input_ids"].device))
        with torch.inference_mode():
            self.model.generate(
                **inputs,
                do_sample=False,
                num_beams=1,
                use_cache=True,
                max_new_tokens=max(job.max_tokens for job in jobs),
                eos_token_id=self.ends or None,
                pad_token_id=padding_id(self.tokenizer),
                logits_processor=processors,
                stopping_criteria=StoppingCriteriaList([RowStop(jobs, self.ends)]),
            )
