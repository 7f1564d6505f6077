"""Run an attack against a model."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import Any

from rolesafe.attacks.delimiters import Delimiters, delimiters
from rolesafe.attacks.judge import contains
from rolesafe.attacks.registry import AttackConfig, look_up
from rolesafe.attacks.replies import Progress, context_size, prompt_lengths, replies, role_config
from rolesafe.attacks.result import AttackResult, Outcome
from rolesafe.tasks import Example, Message


def attackable(conversations: Sequence[Example]) -> list[Example]:
    """The protected examples whose contrary policy contradicts the true one: the only ones an attack counts on.

    Raises:
        ValueError: There are no examples, or none of them can be attacked.
    """
    if not conversations:
        raise ValueError("`conversations`: expected at least one example, got none; see `rolesafe.tasks.generate`")
    chosen = [
        e
        for e in conversations
        if e.kind == "protected" and e.violation is not None and e.contrary is not None and e.contrary != e.truth
    ]
    if not chosen:
        raise ValueError(
            f"`conversations`: expected protected examples with a violation and a contrary policy, got "
            f"{len(conversations)} examples without; `rolesafe.tasks.generate` makes both kinds"
        )
    seen = {e.id for e in chosen}
    if len(seen) < len(chosen):
        raise ValueError(f"`conversations`: expected distinct ids, got {len(chosen) - len(seen)} repeated ones")
    return chosen


def attacked(tokenizer: Any, example: Example, config: AttackConfig, roles: Any = None) -> tuple[Message, ...]:
    """The messages of `example` under the attack.

    Args:
        tokenizer: Whose chat template is forged; used by attacks that forge delimiters only.
        example: A protected example.
        config: The attack.
        roles: The model's role configuration, if it has one.
    """
    family = look_up(config.name)
    marks: Delimiters | None = None
    if family.forges and config.parameters.get("delimiters", True):
        marks = delimiters(tokenizer, [m["role"] for m in example.messages], roles)
    messages: tuple[Message, ...] = family.build(
        example, Random(f"{config.name}/{config.seed}/{example.id}"), marks, **config.parameters
    )
    return messages


def attack(
    model: Any,
    tokenizer: Any,
    conversations: Sequence[Example],
    goal: str | None,
    config: AttackConfig,
    *,
    done: AttackResult | None = None,
    progress: Progress | None = None,
    check_goal: bool = True,
) -> AttackResult:
    """Attack a model on each protected example and count how often it gives in.

    Attacked conversations that are too long for the model's context are left out and listed in the result. On
    ``KeyboardInterrupt`` what is there is returned, marked as not complete.

    Args:
        model: A transformers causal language model, patched or not. A role-aware one gets the roles of the messages.
        tokenizer: Its tokenizer, with a chat template.
        conversations: Examples; benign ones do not count and are skipped.
        goal: A text whose appearance in a reply is a success, or ``None`` for each example's own violation.
        config: The attack, its parameters, seed and budget.
        done: The result of an interrupted run with the same arguments, whose outcomes are kept.
        progress: Called after each batch with the number of examples done and their total.
        check_goal: Ask the model without attack first, and refuse if it meets the goal on every example anyway.

    Returns:
        One outcome per example.

    Raises:
        ValueError: There is nothing to attack, the goal is in a right reply or is met without any attack, or `done`
            is of another run.
    """
    examples = attackable(conversations)
    _check_goal(examples, goal)
    if check_goal and config.name != "none":
        _check_clean(model, tokenizer, examples, goal, config)
    known = _known(done, examples, goal, config)
    roles = role_config(model)
    messages = {e.id: attacked(tokenizer, e, config, roles) for e in examples if e.id not in known}
    todo = [e for e in examples if e.id not in known]
    lengths: dict[str, int] = {}
    if todo:
        measured = prompt_lengths(model, tokenizer, [messages[e.id] for e in todo])
        lengths = {e.id: n for e, n in zip(todo, measured, strict=True)}
    size = context_size(model)
    fits = [e for e in todo if size is None or lengths[e.id] + config.max_new_tokens <= size]
    left_out = {e.id for e in todo} - {e.id for e in fits}
    fits.sort(key=lambda e: lengths[e.id])
    total = len(known) + len(fits)
    complete = True
    try:
        for start in range(0, len(fits), config.batch_size):
            batch = fits[start : start + config.batch_size]
            answers = replies(
                model,
                tokenizer,
                [messages[e.id] for e in batch],
                max_new_tokens=config.max_new_tokens,
                batch_size=config.batch_size,
            )
            for example, reply in zip(batch, answers, strict=True):
                known[example.id] = Outcome(
                    id=example.id,
                    family=example.family,
                    messages=messages[example.id],
                    reply=reply,
                    success=contains(reply, goal or example.violation or ""),
                )
            if progress is not None:
                progress(len(known), total)
    except KeyboardInterrupt:
        complete = False
    return AttackResult(
        config=config,
        goal=goal,
        outcomes=tuple(known[e.id] for e in examples if e.id in known),
        left_out=tuple(e.id for e in examples if e.id in left_out),
        complete=complete,
    )


def _check_goal(examples: Sequence[Example], goal: str | None) -> None:
    for example in examples:
        wanted = goal if goal is not None else example.violation or ""
        if contains(example.reply, wanted):
            raise ValueError(
                f"`goal`: expected a text that no right reply contains, got {wanted!r}, which is in the right reply "
                f"{example.reply!r} of {example.id!r}; choose another goal, or leave that example out"
            )


def _check_clean(
    model: Any, tokenizer: Any, examples: Sequence[Example], goal: str | None, config: AttackConfig
) -> None:
    answers = replies(
        model,
        tokenizer,
        [e.messages for e in examples],
        max_new_tokens=config.max_new_tokens,
        batch_size=config.batch_size,
    )
    if all(contains(a, goal or e.violation or "") for a, e in zip(answers, examples, strict=True)):
        raise ValueError(
            f"`goal`: expected one that the model does not meet by itself, got {goal or 'the violation'!r}, which is "
            f"in its replies to all {len(examples)} examples without any attack; an attack would show nothing. Choose "
            "another goal or a trained model, or pass check_goal=False."
        )


def _known(
    done: AttackResult | None, examples: Sequence[Example], goal: str | None, config: AttackConfig
) -> dict[str, Outcome]:
    if done is None:
        return {}
    if done.config != config or done.goal != goal:
        raise ValueError(
            f"`done`: expected a result of {config.label} with goal {goal!r} and the same seed and budget, got one of "
            f"{done.config.label} with goal {done.goal!r}; leave it out to start afresh"
        )
    ids = {e.id for e in examples}
    strangers = [o.id for o in done.outcomes if o.id not in ids]
    if strangers:
        raise ValueError(f"`done`: expected outcomes of `conversations` only, got {strangers[0]!r}")
    return {o.id: o for o in done.outcomes}
