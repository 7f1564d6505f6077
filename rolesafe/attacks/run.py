"""Run an attack against a model."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import TYPE_CHECKING, Any

from rolesafe.attacks.checks import check_clean, check_goal_is_wrong, check_messages, known_outcomes, success_text
from rolesafe.attacks.delimiters import Delimiters
from rolesafe.attacks.judge import contains, is_right
from rolesafe.attacks.memory import NOT_FINITE, Batches, OutOfMemoryError
from rolesafe.attacks.registry import AttackConfig, look_up
from rolesafe.attacks.replies import Progress, context_size, prompts, replies, role_config
from rolesafe.attacks.result import AttackResult, Outcome
from rolesafe.attacks.search import CannotSearch, Found
from rolesafe.tasks import Example, Message

if TYPE_CHECKING:
    from rolesafe.roles.encoding import EncodedConversation


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


def attacked(
    tokenizer: Any, example: Example, config: AttackConfig, roles: Any = None, model: Any = None
) -> tuple[Message, ...]:
    """The messages of `example` under an attack that builds them.

    Args:
        tokenizer: Whose chat template is forged; used by attacks that forge delimiters only.
        example: A protected example.
        config: The attack.
        roles: The model's role configuration, if it has one.
        model: Whose embeddings are read; used by attacks with near delimiters only.

    Raises:
        ValueError: The attack searches for its messages, or it changes nothing, or more than it may.
    """
    names = tuple(m["role"] for m in example.messages)
    return _attacked(example, config, _marks(model, tokenizer, names, config, roles))


def _marks(model: Any, tokenizer: Any, names: tuple[str, ...], config: AttackConfig, roles: Any) -> Delimiters | None:
    """The delimiters that an attack forges in a conversation of these roles, if it forges any."""
    family = look_up(config.name)
    if family.marks is None or not config.parameters.get("delimiters", True):
        return None
    return family.marks(model, tokenizer, names, roles)


def _attacked(example: Example, config: AttackConfig, marks: Delimiters | None) -> tuple[Message, ...]:
    family = look_up(config.name)
    if family.build is None:
        raise ValueError(f"`config`: {config.name!r} searches for its messages with the model; use `attack`")
    built = family.build(example, Random(_seed(config, example)), marks, **config.parameters)
    messages: tuple[Message, ...] = tuple(dict(message) for message in built)  # the caller's own, not the example's
    check_messages(example, messages, config)
    before = example.with_target(example.request)
    if config.name != "none" and [m["content"].strip() for m in messages] == [m["content"].strip() for m in before]:
        raise ValueError(
            f"`conversations`: attack {config.label} typed nothing into {example.id!r}; expected an example with a "
            "sentence that states the contrary policy, see `Example.statements`"
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

    What a search found is judged like any other text: it is sent as messages, with the roles of the messages, and the
    greedy reply counts. Only an attack that cannot be typed brings its own reply.

    Attacked conversations that are too long for the model's context are left out and listed in the result. Where
    memory runs out the batches are halved for the rest of the run; an example that does not fit alone is listed under
    `failed`, as is one whose attacked conversation the chat template does not print. On ``KeyboardInterrupt`` what is
    there is returned, marked as not complete.

    Args:
        model: A transformers causal language model, patched or not. A role-aware one gets the roles of the messages.
        tokenizer: Its tokenizer, with a chat template.
        conversations: Examples; benign ones do not count and are skipped.
        goal: A text whose appearance in a reply is a success (and which searches want as the reply), or ``None`` for
            each example's own violation.
        config: The attack, its parameters, seed and budget.
        done: The result of an interrupted run with the same arguments, whose outcomes are kept.
        progress: Called after each batch, of a search after each example, with the number done and their total.
        check_goal: Ask the model without attack first, and refuse if it meets the goal on every example anyway. Where
            it does on some, an attack shows nothing: those are listed as `met`, not attacked, and count in no rate.
            Without it none is looked for; those that `done` lists stay out.

    Returns:
        One outcome per example that is not listed elsewhere.

    Raises:
        ValueError: There is nothing to attack, the goal is in a right reply or is met without any attack, the tokenizer
            is not the model's, a message has a role that a role-aware model does not know, or `done` is of another run.
    """
    examples = attackable(conversations)
    check_goal_is_wrong(examples, goal)
    known = known_outcomes(done, examples, goal, config)
    met = () if done is None else done.met
    if check_goal and config.name != "none":
        met = check_clean(model, tokenizer, examples, goal, config)
    known = {id: outcome for id, outcome in known.items() if id not in met}
    job = _Job(model, tokenizer, goal, config, progress, known)
    todo = [e for e in examples if e.id not in known and e.id not in met]
    try:
        if look_up(config.name).build is None:
            job.search(todo)
        else:
            job.send(todo)
        complete = True
    except KeyboardInterrupt:
        complete = False
    return job.result(examples, met=tuple(e.id for e in examples if e.id in met), complete=complete)


def transfer(
    model: Any,
    tokenizer: Any,
    conversations: Sequence[Example],
    found: AttackResult,
    *,
    progress: Progress | None = None,
) -> AttackResult:
    """Send what an attack found on another model to this one.

    Searches that fail on a defended model may have been led astray by it: texts that win elsewhere and win here too
    would show that (gradient masking; Athalye et al., arXiv 1802.00420).

    Args:
        model, tokenizer, progress: As in :func:`attack`. The roles are this model's own.
        conversations: The examples that were attacked; others among them are skipped.
        found: What :func:`attack` returned for the other model.

    Returns:
        As :func:`attack`, with `found`'s configuration: one outcome per outcome of `found`, of one query each.

    Raises:
        ValueError: `found` has outcomes that nobody can type, or of examples that are not in `conversations`, or
            as :func:`attack` when it sends texts.
    """
    if not found.typed:
        raise ValueError(f"`found`: expected the result of an attack that can be typed, got one of {found.attack!r}")
    by_id = {e.id: e for e in attackable(conversations)}
    if missing := [o.id for o in found.outcomes if o.id not in by_id]:
        raise ValueError(
            f"`conversations`: expected the examples that were attacked, {len(missing)} of {len(found.outcomes)} are "
            f"not among them, {missing[0]!r} first"
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
    """One call of `attack`: what it was given, and what has come out of it."""

    model: Any
    tokenizer: Any
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
        """What has come out, in the order of the examples."""
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
        """Attacks that build their messages."""
        roles = role_config(self.model)
        names = {e.id: tuple(m["role"] for m in e.messages) for e in todo}
        marks = {n: _marks(self.model, self.tokenizer, n, self.config, roles) for n in set(names.values())}
        self.send_messages(todo, {e.id: _attacked(e, self.config, marks[names[e.id]]) for e in todo})

    def send_messages(self, todo: Sequence[Example], messages: Mapping[str, tuple[Message, ...]]) -> None:
        """Send the attacked messages of each example, by its id; conversations of similar length share a batch."""
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
        """Attacks that search: one example after the other, so that each is kept as soon as it is there."""
        for at, example in enumerate(todo, 1):
            start = example.with_target(f"{example.request} {example.injection()}")
            encoded = self._encoded(example, start)
            if encoded is not None:
                if self._fits(len(encoded) + self.config.parameters.get("length", 0)):
                    self._search_one(example)
                else:
                    self.left_out.add(example.id)
            self._report(len(todo) - at)

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
        family = look_up(self.config.name)
        assert family.search is not None
        found = family.search(
            self.model,
            self.tokenizer,
            example,
            wanted=self.goal or example.wanted or example.violation or "",
            success=success_text(example, self.goal),
            seed=_seed(self.config, example),
            max_new_tokens=self.config.max_new_tokens,
            batch_size=size,
            **self.config.parameters,
        )
        if found.typed is not family.typed:
            raise ValueError(
                f"`search`: expected what {self.config.name!r} finds to be typed={family.typed}, got {found.typed}"
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
        """The prompt, or None where the chat template prints the clean conversation but not the attacked one."""
        try:
            return prompts(self.model, self.tokenizer, [messages])[0]
        except ValueError as error:
            prompts(self.model, self.tokenizer, [example.messages])  # raises: nothing to do with the attack
            self.failed[example.id] = str(error)
            return None

    def _fits(self, length: int) -> bool:
        return self.size is None or length + self.config.max_new_tokens <= self.size

    def _report(self, left: int) -> None:
        if self.progress is not None:
            self.progress(len(self.known), len(self.known) + left)


def _seed(config: AttackConfig, example: Example) -> str:
    return f"{config.name}/{config.seed}/{example.id}"
