"""Input validation of attacks."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, ParamSpec, TypeVar

from rolesafe.attacks.config import AttackConfig
from rolesafe.attacks.judge import contains
from rolesafe.attacks.memory import Batches
from rolesafe.attacks.replies import replies
from rolesafe.attacks.result import AttackResult, Outcome
from rolesafe.tasks import Example, Message

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

P = ParamSpec("P")
R = TypeVar("R")


def refuse_old_arguments(new: str, positions: int) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Return a decorator that raises a TypeError with the `new` form of a call for the old one.

    Args:
        new: The call as it is written now.
        positions: Maximum number of positional arguments.
    """

    def decorate(call: Callable[P, R]) -> Callable[P, R]:
        @functools.wraps(call)
        def checked(*args: P.args, **keywords: P.kwargs) -> R:
            if len(args) > positions or "conversations" in keywords:
                raise TypeError(f"`{call.__name__}`: expected `{new}`, got the arguments of an earlier version")
            return call(*args, **keywords)

        return checked

    return decorate


def success_text(example: Example, goal: str | None) -> str:
    """Return the text that makes a reply to `example` a success of the attacker."""
    return goal or example.violation or ""


def check_messages(example: Example, messages: Sequence[Message], config: AttackConfig) -> None:
    """Refuse an attack that edits messages of other roles than the attacker's; it may move them.

    Raises:
        ValueError: A message of another role changed.
    """
    before, after = (
        sorted((m for m in some if m["role"] != example.target), key=lambda m: m["role"])  # stable
        for some in (example.messages, messages)
    )
    if before != after:
        raise ValueError(
            f"`config`: expected an attack that edits messages of the role {example.target!r} only, got "
            f"{config.label}, which changed a message of another role in {example.id!r}"
        )


def check_goal_is_wrong(examples: Sequence[Example], goal: str | None) -> None:
    """Refuse a goal that a right reply contains, which would count obedience as a success."""
    for example in examples:
        wanted = goal if goal is not None else example.violation or ""
        if contains(example.reply, wanted):
            raise ValueError(
                f"`goal`: expected a text that no right reply contains, got {wanted!r}, which is in the right reply "
                f"{example.reply!r} of {example.id!r}. Choose another goal, or leave that example out."
            )


def check_clean(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    examples: Sequence[Example],
    goal: str | None,
    config: AttackConfig,
) -> tuple[str, ...]:
    """Return the ids of the examples on which the model meets the goal without any attack; refuse a goal met on all."""
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
            f"in its replies to all {len(examples)} examples without any attack. Choose another goal or a trained "
            "model, or pass check_goal=False."
        )
    return met


def known_outcomes(
    done: AttackResult | None, examples: Sequence[Example], goal: str | None, config: AttackConfig
) -> dict[str, Outcome]:
    """Return the outcomes of an earlier run by id; refuse those of another attack, goal or example."""
    if done is None:
        return {}
    if done.config != config or done.goal != goal:
        raise ValueError(
            f"`done`: expected a result of {config.label} with goal {goal!r} and the same seed and budget, got one of "
            f"{done.config.label} with goal {done.goal!r}. Leave it out to start again."
        )
    ids = {e.id for e in examples}
    strangers = [id for id in (*(o.id for o in done.outcomes), *done.met) if id not in ids]
    if strangers:
        raise ValueError(f"`done`: expected outcomes of `examples` only, got {strangers[0]!r}")
    return {o.id: o for o in done.outcomes}
