"""Autoregressive consistency: how far one forced token moves the rest of a reply (arXiv 2606.04168).

Legend: N positions, W tokens after the forced one, S samples.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rolesafe.arguments import is_integer
from rolesafe.attacks.forcing import ForcedPrompt
from rolesafe.attacks.replies import prompts
from rolesafe.tasks import Message

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True, kw_only=True)
class Consistency:
    """Hold the effect of one forced token at several positions of a reply.

    Attributes:
        positions: Positions of the forced token.
        forced: The forced token at each position.
        nats: Kullback-Leibler divergence, in nats, of the next `tokens` tokens after the forced token from those after
            the reply's own token at the same position, estimated at each position.
        low: Lower end of its 95% interval (t distribution).
        high: Upper end.
        tokens: Number of tokens W.
        samples: Number of samples S.
    """

    positions: tuple[int, ...]
    forced: tuple[int, ...]
    nats: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    tokens: int
    samples: int

    @property
    def score(self) -> float:
        """Return the mean over positions, in nats per token."""
        return sum(self.nats) / len(self.nats) / self.tokens


def consistency(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Message],
    *,
    reply: Sequence[int] | None = None,
    forced: int | None = None,
    positions: Sequence[int] | None = None,
    tokens: int = 8,
    samples: int = 16,
    seed: int = 0,
    batch_size: int = 32,
) -> Consistency:
    """Measure how far one forced token moves the rest of a reply, at every position.

    At position p the model continues ``reply[:p] + [forced]`` by `samples` samples x of `tokens` tokens at temperature
    1. The estimate is the mean of ``log P(x | reply[:p], forced) - log P(x | reply[:p], reply[p])``. It is unbiased,
    and 0 where the model ignores which of the two tokens was written. Ends of the turn are banned in the samples and in
    both probabilities, so that all samples have the same length.

    Args:
        model: A causal language model, patched or not; in evaluation mode for the call.
        tokenizer: Its tokenizer, with a chat template.
        messages: Conversation up to the reply.
        reply: Tokens of the reply; default: the model's own greedy one.
        forced: Token to force; default: the most likely one at the position after the reply's own token.
        positions: Positions in the reply; default: all.
        tokens: Number of tokens after the forced one.
        samples: Number of samples for each position, at least 2.
        seed: Seed of the samples.
        batch_size: Maximum number of rows in a batch.

    Raises:
        ValueError: A number is out of range, a position is not in the reply, or the reply is empty.
        ImportError: The extra `stats` is not installed.
    """
    import torch

    from rolesafe.extras import require
    from rolesafe.patching.modes import evaluating

    for name, value, least in (("tokens", tokens, 1), ("samples", samples, 2), ("batch_size", batch_size, 1)):
        if not is_integer(value, least):
            raise ValueError(f"`{name}`: expected a whole number >= {least}, got {value!r}")
    student = require("scipy.stats", "stats").t
    with evaluating(model):
        (encoded,) = prompts(model, tokenizer, [messages])
        prompt = ForcedPrompt(model, tokenizer, encoded, batch_size=batch_size)
        if reply is None:
            ((own,),) = prompt.continued([()], max_new_tokens=4 * tokens)
            reply = own.own
        reply = list(reply)
        if not reply:
            raise ValueError("`reply`: expected at least one token, got none. Pass the tokens of a reply.")
        chosen = list(range(len(reply)) if positions is None else positions)
        if wrong := [p for p in chosen if not 0 <= p < len(reply)]:
            raise ValueError(f"`positions`: expected positions in [0, {len(reply)}) of the reply, got {wrong[0]}")
        heads = [[*reply[:p], forced] for p in chosen] if forced is not None else _runners_up(prompt, reply, chosen)
        drawn = prompt.continued(heads, max_new_tokens=tokens, samples=samples, seed=seed, banned=prompt.ends)
        changed = [[*h, *one.own] for h, row in zip(heads, drawn, strict=True) for one in row]
        kept = [[*reply[: p + 1], *one.own] for p, row in zip(chosen, drawn, strict=True) for one in row]
        with_forced, with_own = (prompt.log_likelihoods(rows, tokens, banned=prompt.ends) for rows in (changed, kept))
    nats = (torch.tensor(with_forced) - torch.tensor(with_own)).view(len(chosen), samples)
    mean, half = nats.mean(1), nats.std(1) / math.sqrt(samples) * float(student.ppf(0.975, samples - 1))
    return Consistency(
        positions=tuple(chosen),
        forced=tuple(h[-1] for h in heads),
        nats=tuple(mean.tolist()),
        low=tuple((mean - half).tolist()),
        high=tuple((mean + half).tolist()),
        tokens=tokens,
        samples=samples,
    )


def _runners_up(prompt: ForcedPrompt, reply: list[int], positions: Sequence[int]) -> list[list[int]]:
    """Return the reply up to each position, with the most likely token there that is not the reply's own nor an end."""

    def keep(rows: Tensor, _: int) -> list[int]:
        rows[:, prompt.ends] = -math.inf
        rows[range(len(reply)), reply] = -math.inf
        found: list[int] = rows.argmax(-1).tolist()
        return found

    (best,) = prompt.log_probs([reply], keep)
    return [[*reply[:p], best[p]] for p in positions]
