"""Sampling and stopping of each row of a batch by the options of its request.

Legend: R rows, S of them sampled, L tokens, V ids.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import LogitsProcessor, StoppingCriteria

from rolesafe.serve.job import Job


class RowSampler(LogitsProcessor):
    """Make greedy search sample: the largest of logits plus Gumbel noise is a sample of their softmax.

    Rows of temperature 0 keep their logits. Rows with a seed have noise of their own, so their samples do not depend on
    the other rows of the batch.

    Args:
        jobs: The job of each row.
        device: Device of the logits.
    """

    def __init__(self, jobs: Sequence[Job], device: torch.device) -> None:
        sampled = [r for r, job in enumerate(jobs) if job.temperature > 0]
        self.rows = torch.tensor(sampled, device=device)
        self.temperatures = torch.tensor([[jobs[r].temperature] for r in sampled], device=device)
        self.mass = torch.tensor([[jobs[r].top_p] for r in sampled], device=device)
        self.cuts = any(jobs[r].top_p < 1 for r in sampled)
        self.seeded = {
            s: torch.Generator(device).manual_seed(seed)
            for s, r in enumerate(sampled)
            if (seed := jobs[r].seed) is not None
        }

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Return logits (R, V) with noise in the sampled rows."""
        if not len(self.rows):
            return scores
        logits = scores[self.rows].float() / self.temperatures
        if self.cuts:
            logits = self._cut(logits)
        noise = torch.empty_like(logits).exponential_()
        for s, generator in self.seeded.items():
            noise[s].exponential_(generator=generator)
        return scores.index_copy(0, self.rows, (logits - noise.log()).to(scores.dtype))

    def _cut(self, logits: Tensor) -> Tensor:
        """Return logits (S, V) with -inf outside of the smallest set of tokens that holds the mass of each row."""
        ordered, order = logits.sort(dim=-1, descending=True)
        shares = ordered.softmax(dim=-1)
        outside = shares.cumsum(dim=-1) - shares > self.mass
        return logits.masked_fill(outside.scatter(1, order, outside), -torch.inf)


class RowStop(StoppingCriteria):
    """Pass each new token to the job of its row, and stop the rows that are done.

    Args:
        jobs: The job of each row.
        ends: Ids that end a reply.
    """

    def __init__(self, jobs: Sequence[Job], ends: Sequence[int]) -> None:
        self.jobs = jobs
        self.eos_token_id = list(ends)  # makes `generate` pad the rows that are done
        self._ends = frozenset(ends)

    def __call__(self, input_ids: Tensor, scores: Tensor | None, **options: object) -> Tensor:
        """Return (R,) bool, True for rows that are done; `input_ids` is (R, L)."""
        last = input_ids[:, -1].tolist()
        done = [job.feed(token, self._ends) for job, token in zip(self.jobs, last, strict=True)]
        return torch.tensor(done, device=input_ids.device)
