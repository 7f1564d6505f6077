"""What an attack refuses before it starts, and what it may not send."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rolesafe.attacks.judge import contains
from rolesafe.attacks.memory import Batches
from rolesafe.attacks.registry import AttackConfig
from rolesafe.attacks.replies import replies
from rolesafe.attacks.result import AttackResult, Outcome
from rolesafe.tasks import Example, Message


def success_text(example: Example, goal: str | None) -> str:
    """What makes a reply to `example` a success of the attacker."""
    return goal or example.violation or ""


def check_messages(example: Example, messages: Sequence[Message], config: AttackConfig) -> None:
    """Refuse an attack that edits what is not the attacker's.

    An attacker writes into messages of one role. The others stay as they are; where they stand may change.
    """
    before, after = (
        sorted((m for m in some if m["role"] != example.target), key=lambda m: m["role"])  # stable
        for some in (example.messages, messages)
    )
    if before != after:
        raise ValueError(
            f"`config`: attack {config.label} changed a message of another role than {example.target!r} in "
            f"{example.id!r}; expected the others to be as they were, or it is no attack on roles"
        )


def check_goal_is_wrong(examples: Sequence[Example], goal: str | None) -> None:
    """Refuse a goal that a right reply contains: it would count obedience as a success."""
    for example in examples:
        wanted = goal if goal is not None else example.violation or ""
        if contains(example.reply, wanted):
            raise ValueError(
                f"`goal`: expected a text that no right reply contains, got {wanted!r}, which is in the right reply "
                f"{example.reply!r} of {example.id!r}; choose another goal, or leave that example out"
            )


def check_clean(
    model: Any, tokenizer: Any, examples: Sequence[Example], goal: str | None, config: AttackConfig
) -> tuple[str, ...]:
    """Ids of the examples on which the model meets the goal without any attack; refuse one that it meets on all."""
    answers = Batches(config.batch_size).run(
        lambda size: replies(
            model,
            tokenizer,
            [e.with_target(e.request) for e in examples],  # published sets come with an injection in `messages`
            max_new_tokens=config.max_new_tokens,
            batch_size=size,
        )
    )
    met = tuple(e.id for a, e in zip(answers, examples, strict=True) if contains(a, success_text(e, goal)))
    if len(met) == len(examples):
        raise ValueError(
            f"`goal`: expected one that the model does not meet by itself, got {goal or 'the violation'!r}, which is "
            f"in its replies to all {len(examples)} examples without any attack; an attack would show nothing. Choose "
            "another goal or a trained model, or pass check_goal=False."
        )
    return met


def known_outcomes(
    done: AttackResult | None, examples: Sequence[Example], goal: str | None, config: AttackConfig
) -> dict[str, Outcome]:
    """Outcomes of an earlier run by id; refused where that run was another one."""
    if done is None:
        return {}
    if done.config != config or done.goal != goal:
        raise ValueError(
            f"`done`: expected a result of {config.label} with goal {goal!r} and the same seed and budget, got one of "
            f"{done.config.label} with goal {done.goal!r}; leave it out to start afresh"
        )
    ids = {e.id for e in examples}
    strangers = [id for id in (*(o.id for o in done.outcomes), *done.met) if id not in ids]
    if strangers:
        raise ValueError(f"`done`: expected outcomes of `conversations` only, got {strangers[0]!r}")
    return {o.id: o for o in done.outcomes}
