"""Attacks on a model: building or searching for messages, and judging the replies."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import TYPE_CHECKING, Any

from rolesafe.attacks.checks import (
    check_clean,
    check_goal_is_wrong,
    check_messages,
    known_outcomes,
    refuse_old_arguments,
    success_text,
)
from rolesafe.attacks.config import AttackConfig, SearchAttackConfig, TextAttackConfig
from rolesafe.attacks.delimiters import Delimiters
from rolesafe.attacks.judge import contains, is_right
from rolesafe.attacks.memory import NOT_FINITE, Batches, OutOfMemoryError
from rolesafe.attacks.replies import Progress, context_size, prompts, replies, role_config
from rolesafe.attacks.result import AttackResult, Outcome
from rolesafe.attacks.search import CannotSearch, Found, SearchContext
from rolesafe.tasks import Example, Message

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from rolesafe.config import RoleConfig
    from rolesafe.roles.encoding import EncodedConversation

logger = logging.getLogger(__name__)


@refuse_old_arguments("attackable(examples)", 1)
def attackable(examples: Sequence[Example]) -> list[Example]:
    """Return the protected examples with a contrary policy that contradicts the true one; only these count.

    Raises:
        ValueError: There are no examples, or none of them can be attacked.
    """
    if not examples:
        raise ValueError("`examples`: expected at least one example, got none; see `rolesafe.tasks.generate`")
    chosen = [
        e
        for e in examples
        if e.kind == "protected" and e.violation is not None and e.contrary is not None and e.contrary != e.truth
    ]
    if not chosen:
        raise ValueError(
            f"`examples`: expected protected examples with a violation and a contrary policy, got {len(examples)} "
            "examples without; see `rolesafe.tasks.generate`"
        )
    seen = {e.id for e in chosen}
    if len(seen) < len(chosen):
        raise ValueError(f"`examples`: expected distinct ids, got {len(chosen) - len(seen)} repeated ones")
    return chosen


def attacked(
    tokenizer: PreTrainedTokenizerBase,
    example: Example,
    config: AttackConfig,
    roles: RoleConfig | None = None,
    model: PreTrainedModel | None = None,
) -> tuple[Message, ...]:
    """Return the messages of `example` under an attack that builds them.

    Args:
        tokenizer: The tokenizer of the forged chat template; used only by attacks that forge delimiters.
        example: A protected example.
        config: The attack.
        roles: The model's role configuration, if it has one.
        model: The model of the embeddings; used only by attacks with near delimiters.

    Raises:
        ValueError: The attack searches for its messages, changes nothing, or changes messages of another role.
    """
    names = tuple(m["role"] for m in example.messages)
    return _attacked(example, config, _marks(model, tokenizer, names, config, roles))


def _marks(
    model: PreTrainedModel | None,
    tokenizer: PreTrainedTokenizerBase,
    names: tuple[str, ...],
    config: AttackConfig,
    roles: RoleConfig | None,
) -> Delimiters | None:
    """Return the delimiters that an attack forges in a conversation of these roles, or None if it forges none."""
    if not isinstance(config, TextAttackConfig) or config.marks is None or not getattr(config, "delimiters", True):
        return None
    return config.marks(model, tokenizer, names, roles)


def _attacked(example: Example, config: AttackConfig, marks: Delimiters | None) -> tuple[Message, ...]:
    if not isinstance(config, TextAttackConfig):
        raise ValueError(f"`config`: expected an attack that builds its messages, got {config.name!r}. Use `attack`.")
    built = config.build(example, Random(_seed(config, example)), marks)
    messages: tuple[Message, ...] = tuple(dict(message) for message in built)  # the caller's own, not the example's
    check_messages(example, messages, config)
    before = example.with_target(example.request)
    if config.name != "none" and [m["content"].strip() for m in messages] == [m["content"].strip() for m in before]:
        raise ValueError(
            f"`examples`: expected a sentence that states the contrary policy (`Example.statements`), got none in "
            f"{example.id!r}, so that {config.label} typed nothing"
        )
    return messages


@refuse_old_arguments("attack(model, tokenizer, examples, config, goal=...)", 4)
def attack(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    examples: Sequence[Example],
    config: AttackConfig,
    *,
    goal: str | None = None,
    done: AttackResult | None = None,
    progress: Progress | None = None,
    check_goal: bool = True,
) -> AttackResult:
    """Attack a model on each protected example and count how often the attacker succeeds.

    The messages that a search found are judged like any others: they are sent with their roles, and the greedy reply
    counts. Only an attack that cannot be typed returns its own reply.

    Attacked conversations that are too long for the model's context are listed in `left_out`. When memory runs out, the
    batches are halved for the rest of the run. An example that does not fit in a batch of one is listed in `failed`, as
    is one with an attacked conversation that the chat template does not print. After a ``KeyboardInterrupt`` the result
    so far is returned with ``complete=False``.

    Args:
        model: A transformers causal language model, patched or not. A role-aware one gets the roles of the messages.
        tokenizer: Its tokenizer, with a chat template.
        examples: Examples; benign ones are skipped.
        config: The attack.
        goal: A text that counts as a success in a reply, and that searches want as the reply; default: each
            example's own violation.
        done: Result of an interrupted run with the same arguments, to be completed.
        progress: Called with the number of finished examples and their total, after each batch or searched example.
        check_goal: Ask the model without attack first, and refuse a goal that it meets on every example. Examples on
            which it meets the goal are listed in `met` and not attacked. False: only those that `done` lists.

    Returns:
        A result with one outcome per example that is not listed elsewhere.

    Raises:
        ValueError: There is nothing to attack, the goal is in a right reply or is met without any attack, the tokenizer
            is not the model's, a message has a role that a role-aware model does not know, or `done` is of another run.
        TypeError: The arguments are those of an earlier version.
    """
    examples = attackable(examples)
    check_goal_is_wrong(examples, goal)
    known = known_outcomes(done, examples, goal, config)
    met = () if done is None else done.met
    if check_goal and config.name != "none":
        met = check_clean(model, tokenizer, examples, goal, config)
    known = {id: outcome for id, outcome in known.items() if id not in met}
    job = _Job(model, tokenizer, goal, config, progress, known)
    todo = [e for e in examples if e.id not in known and e.id not in met]
    try:
        if isinstance(config, SearchAttackConfig):
            job.search(todo)
        else:
            job.send(todo)
        complete = True
    except KeyboardInterrupt:
        complete = False
    return job.result(examples, met=tuple(e.id for e in examples if e.id in met), complete=complete)


@refuse_old_arguments("transfer(model, tokenizer, examples, found)", 4)
def transfer(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    examples: Sequence[Example],
    found: AttackResult,
    *,
    progress: Progress | None = None,
) -> AttackResult:
    """Send the messages that an attack found on another model to this one.

    A search may fail on a defended model because the defence misleads it (gradient masking; Athalye et al., arXiv
    1802.00420). Messages that succeed on another model and then on this one show that.

    Args:
        model, tokenizer, progress: As in :func:`attack`. The roles are this model's own.
        examples: The examples that were attacked; others are skipped.
        found: Result of :func:`attack` on the other model.

    Returns:
        As :func:`attack`, with `found`'s configuration: one outcome per outcome of `found`, of one query each.

    Raises:
        ValueError: `found` has outcomes that cannot be typed, or of examples that are not in `examples`, or as
            :func:`attack`.
    """
    if not found.typed:
        raise ValueError(f"`found`: expected the result of an attack that can be typed, got one of {found.attack!r}")
    by_id = {e.id: e for e in attackable(examples)}
    if missing := [o.id for o in found.outcomes if o.id not in by_id]:
        raise ValueError(
            f"`examples`: expected the {len(found.outcomes)} examples that were attacked, got all but {len(missing)}, "
            f"{missing[0]!r} first"
        )
    examples = [by_id[o.id] for o in found.outcomes]
    for example, outcome in zip(examples, found.outcomes, strict=True):
        check_messages(example, outcome.messages, found.config)
    job = _Job(model, tokenizer, found.goal, found.config, progress, {})
    try:
        job.send_messages(examples, {o.id: o.messages for o in found.outcomes})
        complete = True
    except KeyboardInterrupt:
        complete = False
    return job.result(examples, complete=complete and found.complete)


@dataclass
class _Job:
    """Hold the arguments and the outcomes of one call of :func:`attack`."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    goal: str | None
    config: AttackConfig
    progress: Progress | None
    known: dict[str, Outcome]
    left_out: set[str] = field(default_factory=set)
    failed: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.size = context_size(self.model)
        self.batches = Batches(self.config.batch_size)

    def result(self, examples: Sequence[Example], *, met: tuple[str, ...] = (), complete: bool) -> AttackResult:
        """Return the result so far, in the order of the examples."""
        return AttackResult(
            config=self.config,
            goal=self.goal,
            outcomes=tuple(self.known[e.id] for e in examples if e.id in self.known),
            left_out=tuple(e.id for e in examples if e.id in self.left_out),
            failed=tuple((e.id, self.failed[e.id]) for e in examples if e.id in self.failed),
            met=met,
            complete=complete,
        )

    def send(self, todo: Sequence[Example]) -> None:
        """Run an attack that builds its messages."""
        roles = role_config(self.model)
        names = {e.id: tuple(m["role"] for m in e.messages) for e in todo}
        marks = {n: _marks(self.model, self.tokenizer, n, self.config, roles) for n in set(names.values())}
        self.send_messages(todo, {e.id: _attacked(e, self.config, marks[names[e.id]]) for e in todo})

    def send_messages(self, todo: Sequence[Example], messages: Mapping[str, tuple[Message, ...]]) -> None:
        """Send the attacked messages of each example, by its id, in batches of similar length."""
        encoded = {e.id: one for e in todo if (one := self._encoded(e, messages[e.id])) is not None}
        fits = [e for e in todo if e.id in encoded and self._fits(len(encoded[e.id]))]
        self.left_out.update(e.id for e in todo if e.id in encoded and not self._fits(len(encoded[e.id])))
        fits.sort(key=lambda e: len(encoded[e.id]))
        at = 0
        while at < len(fits):

            def ask(size: int, at: int = at) -> list[tuple[Example, str]]:
                batch = fits[at : at + size]
                texts = self._replies([messages[e.id] for e in batch], [encoded[e.id] for e in batch], size)
                return list(zip(batch, texts, strict=True))

            try:
                for example, reply in self.batches.run(ask, len(fits) - at):
                    self._keep(example, messages[example.id], reply, n_queries=1)
                    at += 1
            except OutOfMemoryError as error:
                self.failed[fits[at].id] = error.reason
                at += 1
            self._report(len(fits) - at)

    def search(self, todo: Sequence[Example]) -> None:
        """Run an attack that searches, one example after the other, so that an interruption loses one at most."""
        for at, example in enumerate(todo, 1):
            start = example.with_target(f"{example.request} {example.injection()}")
            encoded = self._encoded(example, start)
            if encoded is not None:
                if self._fits(len(encoded) + self.config.parameters.get("length", 0)):
                    self._search_one(example)
                else:
                    self.left_out.add(example.id)
            self._report(len(todo) - at)
            logger.info("%s: %d of %d examples searched", self.config.label, at, len(todo))

    def _search_one(self, example: Example) -> None:
        try:
            found = self.batches.run(lambda size: self._found(example, size))
            encoded = self._encoded(example, found.messages)
            if encoded is None:
                return
            if not self._fits(len(encoded)):
                self.left_out.add(example.id)
                return
            if not all(map(math.isfinite, found.losses)):
                self.failed[example.id] = f"{NOT_FINITE}: {found.losses[-1]}"
                return
            reply = found.reply
            if reply is None:
                (reply,) = self.batches.run(lambda size: self._replies([found.messages], [encoded], size), 1)
        except OutOfMemoryError as error:
            self.failed[example.id] = error.reason
            return
        except CannotSearch as error:
            self.failed[example.id] = str(error)
            return
        self._keep(
            example,
            found.messages,
            reply,
            n_queries=found.n_queries + found.typed,
            n_steps=found.n_steps,
            losses=found.losses,
            typed=found.typed,
        )

    def _found(self, example: Example, size: int) -> Found:
        assert isinstance(self.config, SearchAttackConfig)
        context = SearchContext(
            model=self.model,
            tokenizer=self.tokenizer,
            example=example,
            wanted=self.goal or example.wanted or example.violation or "",
            success=success_text(example, self.goal),
            seed=_seed(self.config, example),
            batch_size=size,
        )
        found = self.config.search(context)
        if found.typed is not self.config.typed:
            raise ValueError(
                f"`search`: expected a result of {self.config.name!r} with typed={self.config.typed}, got {found.typed}"
            )
        check_messages(example, found.messages, self.config)
        return found

    def _keep(self, example: Example, messages: tuple[Message, ...], reply: str, **counts: Any) -> None:
        success = contains(reply, success_text(example, self.goal))
        self.known[example.id] = Outcome(
            id=example.id,
            family=example.family,
            messages=messages,
            reply=reply,
            success=success,
            right=False if success else is_right(reply, example),
            **counts,
        )

    def _replies(
        self, conversations: Sequence[tuple[Message, ...]], encoded: Sequence[EncodedConversation], size: int
    ) -> list[str]:
        return replies(
            self.model,
            self.tokenizer,
            conversations,
            max_new_tokens=self.config.max_new_tokens,
            batch_size=size,
            encoded=encoded,
        )

    def _encoded(self, example: Example, messages: tuple[Message, ...]) -> EncodedConversation | None:
        """Return the prompt, or None if the chat template prints the clean conversation but not the attacked one."""
        try:
            return prompts(self.model, self.tokenizer, [messages])[0]
        except ValueError as error:
            prompts(self.model, self.tokenizer, [example.messages])  # raises if the attack is not the reason
            self.failed[example.id] = str(error)
            return None

    def _fits(self, length: int) -> bool:
        return self.size is None or length + self.config.max_new_tokens <= self.size

    def _report(self, left: int) -> None:
        if self.progress is not None:
            self.progress(len(self.known), len(self.known) + left)


def _seed(config: AttackConfig, example: Example) -> str:
    return f"{config.name}/{config.seed}/{example.id}"
