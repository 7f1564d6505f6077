"""Ability without generation: NLL of reference replies, KL to the untouched model, WikiText perplexity.

Rows are `[source, case, mean per token in nats, tokens]`. Cases: ``reference``: the reference reply to a clean
AlpacaFarm row with an input (instruction in the system turn, data in the user turn); ``reply``: the same for rows
without an input, in the user turn; ``kl``: KL(base || model) over those replies; ``wikitext``: windows of raw text in
the assistant role; the second half of each is scored.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

import torch
from torch import Tensor

from benchmarks.pretrained.bench import Bench
from benchmarks.pretrained.injections import conversation
from rolesafe.attacks.replies import context_size, role_config
from rolesafe.config import RoleConfig
from rolesafe.roles.encoding import EncodedConversation, collate, encode_one
from rolesafe.roles.templates import Part

NAME = "ability"
WINDOW = 1024
"""Number of tokens of a WikiText window; half of them are context."""
WINDOWS = 128
"""Maximum number of windows, drawn with the seed."""


@dataclass(frozen=True)
class Scored:
    """Text to score.

    Attributes:
        source: Row of the set.
        case: Case, as in the module docstring.
        encoded: Tokens with roles.
        spots: Positions of the scored tokens.
    """

    source: str
    case: str
    encoded: EncodedConversation
    spots: tuple[int, ...]


def run(bench: Bench) -> None:
    """Score the texts missing from the record."""
    part = bench.part(NAME, ("limit", "seed", "tool", "dtype"), ("nats per token", "tokens"), kl=bench.base is not None)
    scored = [*_references(bench), *_windows(bench)]
    done = part.done
    total = len(scored) + (sum(one.case == "reply" for one in scored) if bench.base else 0)
    with bench.filling(NAME, part, total) as add:
        for one in scored:
            wanted = [one.case] + (["kl"] if one.case == "reply" and bench.base else [])
            todo = [case for case in wanted if (one.source, case) not in done]
            if not todo:
                continue
            mine = log_probabilities(bench.model, bench.tokenizer, one)
            if one.case in todo:
                add([[one.source, one.case, round(nll(mine, one), 5), len(one.spots)]])
            if "kl" in todo:
                theirs = log_probabilities(bench.base_model, bench.tokenizer, one)
                add([[one.source, "kl", round(kl(theirs, mine), 6), len(one.spots)]])


def log_probabilities(model: Any, tokenizer: Any, one: Scored) -> Tensor:
    """Return the log-probabilities (n, V) float32 at the scored positions."""
    config = role_config(model)
    inputs = dict(collate(tokenizer, [one.encoded], config or RoleConfig(), padding_side="right"))
    if config is None:
        inputs.pop("role_ids")
    with torch.no_grad():
        logits = model(**{k: v.to(model.device) for k, v in inputs.items()}, use_cache=False).logits[0]
    before = torch.tensor([i - 1 for i in one.spots], device=logits.device)
    return torch.log_softmax(logits[before].float(), dim=-1)


def nll(log_probs: Tensor, one: Scored) -> float:
    """Return the mean negative log-likelihood of the scored tokens, in nats."""
    ids = torch.tensor([one.encoded.input_ids[i] for i in one.spots], device=log_probs.device)
    return float(-log_probs.gather(1, ids[:, None]).double().mean())


def kl(base: Tensor, other: Tensor) -> float:
    """Return the mean KL(base || other) of log-probabilities (n, V), in nats.

    Raises:
        ValueError: The vocabularies have different sizes.
    """
    if base.shape != other.shape:
        raise ValueError(
            f"`base`: expected a model with the vocabulary of the evaluated one, {other.shape[1]} entries, got "
            f"{base.shape[1]}. Give the checkpoint that was retrained."
        )
    return float((base.exp() * (base - other)).sum(dim=1).clamp(min=0).double().mean())


def _references(bench: Bench) -> list[Scored]:
    config = role_config(bench.model)
    rows = [
        (task, "reference", conversation(task.instruction, task.data, tool=bench.settings.tool))
        for task in bench.data.tasks(inputs=True)
    ]
    rows += [(t, "reply", ({"role": "user", "content": t.instruction},)) for t in bench.data.tasks(inputs=False)]
    size = context_size(bench.model)
    out = []
    for task, case, messages in rows:
        if not task.reference:
            continue
        reply = {"role": "assistant", "content": task.reference}
        encoded = encode_one(bench.tokenizer, [*messages, reply], config=config)
        spots = [
            i
            for i, (message, piece) in enumerate(zip(encoded.message_ids, encoded.parts, strict=True))
            if message == len(messages) and piece is Part.CONTENT and i > 0
        ]
        if size is not None:
            spots = [i for i in spots if i < size]
            encoded = _cut(encoded, size)
        if spots:
            out.append(Scored(task.source, case, encoded, tuple(spots)))
    return out


def _windows(bench: Bench) -> list[Scored]:
    ids = _tokens(bench.tokenizer, bench.data.wikitext())
    size = min(WINDOW, context_size(bench.model) or WINDOW, len(ids))
    half = max(1, size // 2)
    starts: Sequence[int] = range(0, max(1, len(ids) - size + 1), half)
    count = min(WINDOWS, bench.settings.limit or WINDOWS)
    if len(starts) > count:
        starts = sorted(Random(f"wikitext/{bench.settings.seed}").sample(starts, count))
    role = (role_config(bench.model) or RoleConfig()).generated_id
    out = []
    for start in starts:
        window = ids[start : start + size]
        n = len(window)
        encoded = EncodedConversation(window, [role] * n, [0] * n, [Part.CONTENT] * n)
        spots = tuple(range(max(1, n - half), n))
        if spots:
            out.append(Scored(f"window {start}", "wikitext", encoded, spots))
    if not out:
        raise ValueError("`data`: expected a WikiText file of at least two tokens, got fewer. Check that file.")
    return out


def _tokens(tokenizer: Any, text: str) -> list[int]:
    found: list[int] = []
    for line in text.splitlines(keepends=True):  # the whole text exceeds the tokenizer's limit, with a warning
        found += tokenizer(line, add_special_tokens=False).input_ids
    return found


def _cut(encoded: EncodedConversation, size: int) -> EncodedConversation:
    return EncodedConversation(
        encoded.input_ids[:size], encoded.role_ids[:size], encoded.message_ids[:size], encoded.parts[:size]
    )
