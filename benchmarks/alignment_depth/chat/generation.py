"""Batched generation after forced first tokens of a reply, for conversations of several lengths.

Legend: N conversations.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Final

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from benchmarks.alignment_depth.chat.protocol import SYSTEM
from rolesafe import RoleConfig
from rolesafe.attacks.replies import context_size, end_ids, prompts, role_config
from rolesafe.patching.modes import evaluating
from rolesafe.roles.encoding import EncodedConversation, collate, padding_id
from rolesafe.tasks import Message

BATCH: Final = 32

Tokens = Sequence[int]


def question(text: str) -> tuple[Message, ...]:
    """Return a conversation of the system turn :data:`SYSTEM` and one user message."""
    return ({"role": "system", "content": SYSTEM}, {"role": "user", "content": text})


def encoded(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, questions: Sequence[str], forced: Sequence[Tokens]
) -> list[EncodedConversation]:
    """Encode each question with the generation prompt and the forced first tokens of the reply.

    Raises:
        ValueError: The numbers of questions and forced tokens differ.
    """
    if len(questions) != len(forced):
        raise ValueError(f"`forced`: expected tokens for each of {len(questions)} questions, got {len(forced)}.")
    config = role_config(model)
    role = 0 if config is None else config.generated_id
    found = []
    for one, tokens in zip(prompts(model, tokenizer, [question(text) for text in questions]), forced, strict=True):
        more = len(tokens)
        found.append(
            replace(
                one,
                input_ids=[*one.input_ids, *tokens],
                role_ids=[*one.role_ids, *[role] * more],
                message_ids=[*one.message_ids, *[one.message_ids[-1]] * more],
                parts=[*one.parts, *[one.parts[-1]] * more],
            )
        )
    return found


def written(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    questions: Sequence[str],
    forced: Sequence[Tokens],
    *,
    new: int,
    banned: Tokens = (),
    sampled: bool = False,
    endless: bool = False,
    seed: int = 0,
    tell: Callable[[int, int], None] | None = None,
) -> list[list[int]]:
    """Return the tokens that the model writes after the forced ones, without the end of the turn.

    Args:
        model: Patched or plain; in evaluation mode for the call.
        tokenizer: Its tokenizer, with a chat template.
        questions: N user messages.
        forced: Forced first tokens of each reply.
        new: Maximum number of own tokens.
        banned: Tokens with probability 0.
        sampled: Sample at temperature 1 and top-p 0.9 instead of greedy decoding.
        endless: Ban the end of the turn, so that every reply has `new` tokens.
        seed: Seed of the samples.
        tell: Called with the number of finished replies and N.

    Raises:
        ValueError: A prompt with its forced and own tokens does not fit into the context.
    """
    rows = encoded(model, tokenizer, questions, forced)
    ends = end_ids(model, tokenizer)
    size, longest = context_size(model), max(map(len, rows), default=0) + new
    if size is not None and longest > size:
        raise ValueError(
            f"`forced`: expected at most {size} tokens with prompt and reply, the model's context, got {longest}. "
            "Shorten the prefixes, or lower `new`."
        )
    options: dict[str, Any] = {"do_sample": False}
    if sampled:
        options = {"do_sample": True, "temperature": 1.0, "top_p": 0.9, "top_k": 0}
    if never := sorted({*banned, *(ends if endless else ())}):
        options["suppress_tokens"] = never
    config = role_config(model)
    order = sorted(range(len(rows)), key=lambda i: (len(rows[i]), i))
    found: list[list[int]] = [[] for _ in rows]
    with torch.random.fork_rng(devices=[]), torch.no_grad(), evaluating(model):
        torch.manual_seed(seed)
        for start in range(0, len(order), BATCH):
            batch = order[start : start + BATCH]
            inputs = dict(collate(tokenizer, [rows[i] for i in batch], config or RoleConfig(), padding_side="left"))
            if config is None:
                inputs.pop("role_ids")
            output = model.generate(
                **{name: value.to(model.device) for name, value in inputs.items()},
                **options,
                max_new_tokens=new,
                use_cache=True,
                eos_token_id=ends or None,
                pad_token_id=padding_id(tokenizer),
            )
            for i, ids in zip(batch, output[:, inputs["input_ids"].shape[1] :].tolist(), strict=True):
                found[i] = ids[: next((k for k, token in enumerate(ids) if token in ends), len(ids))]
            if tell is not None:
                tell(start + len(batch), len(order))
    return found


def text_of(tokenizer: PreTrainedTokenizerBase, ids: Tokens) -> str:
    """Return the text of tokens of a reply."""
    return str(tokenizer.decode(list(ids), skip_special_tokens=True)).strip()


def checked(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    questions: Sequence[str],
    forced: Sequence[Tokens],
    *,
    refuses: Callable[[str], bool],
    every: int,
    new: int,
) -> list[tuple[list[int], int | None]]:
    """Return greedy replies under Any-Depth Alignment, as :func:`rolesafe.court.any_depth_replies`, in large batches.

    Args:
        model: Patched or plain; in evaluation mode for the call.
        tokenizer: Its tokenizer, with a chat template.
        questions: N user messages.
        forced: Forced first tokens of each reply.
        refuses: Tells whether a text is a refusal.
        every: Number of own tokens between two checks, and of tokens of a check.
        new: Maximum number of own tokens, those of a refusal not counted.

    Returns:
        Own tokens of each reply, the refusal included, and the number of those before the refusal; None without one.

    Raises:
        ValueError: A row does not fit into the context.
    """
    own: list[list[int]] = [[] for _ in questions]
    refused: list[int | None] = [None] * len(questions)
    headers = [_header(one) for one in encoded(model, tokenizer, questions, [()] * len(questions))]
    todo = list(range(len(questions)))

    def more(rows: Sequence[int], tails: Sequence[Tokens], count: int) -> list[list[int]]:
        begun = [[*forced[i], *own[i], *tail] for i, tail in zip(rows, tails, strict=True)]
        return written(model, tokenizer, [questions[i] for i in rows], begun, new=count)

    while todo:
        for i, ids in zip(todo, more(todo, [headers[i] for i in todo], every), strict=True):
            if refuses(text_of(tokenizer, ids)):
                refused[i] = len(own[i])
                own[i] += ids
        todo = [i for i in todo if refused[i] is None]
        if not todo:
            break
        step = min(every, new - len(own[todo[0]]))  # all rows that are left have equally many own tokens
        ids_of = dict(zip(todo, more(todo, [()] * len(todo), step), strict=True))
        for i, ids in ids_of.items():
            own[i] += ids
        todo = [i for i in todo if len(ids_of[i]) == step and len(own[i]) < new]
    return list(zip(own, refused, strict=True))


def _header(prompt: EncodedConversation) -> list[int]:
    """Return the tokens of the generation prompt, which count as a message of their own."""
    last = prompt.message_ids[-1]
    return [token for token, message in zip(prompt.input_ids, prompt.message_ids, strict=True) if message == last]
