"""Isolated verification: readers that see the privileged messages and the proposed reply, never the untrusted text.

:func:`isolated` drops all other messages before a reader is called, so an attacker's text reaches it through the reply
alone. One conversation is judged at a time, without padding: a verdict depends on its two inputs only.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

from rolesafe.arguments import is_integer, is_number
from rolesafe.config import RoleConfig
from rolesafe.court.court import Court
from rolesafe.court.tree import Veto
from rolesafe.roles.messages import read_conversation

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Privileged = tuple[dict[str, str], ...]
Unit = Literal["sentence", "end"]
_SENTENCE = re.compile(r"(?<=[.!?])\s+|\n+")


@dataclass(frozen=True)
class Verdict:
    """Judgement of one reader on one proposal.

    Attributes:
        reader: Name of the reader.
        allowed: True if the proposal may be released.
        score: Number behind the judgement, where there is one.
        reason: Words for the record.
    """

    reader: str
    allowed: bool
    score: float | None = None
    reason: str = ""


class Reader(Protocol):
    """Second reader: a function of the privileged messages and the reply."""

    name: str

    def __call__(self, privileged: Privileged, reply: str) -> Verdict:
        """Return the verdict on a reply."""
        ...


@dataclass(frozen=True)
class ProgramReader:
    """Reader that is a program.

    Args:
        name: Name in the record.
        accepts: Function of the privileged messages and the reply: True to release it.
    """

    name: str
    accepts: Callable[[Privileged, str], bool]

    def __call__(self, privileged: Privileged, reply: str) -> Verdict:
        """Return the program's verdict; anything but True refuses."""
        return Verdict(self.name, self.accepts(privileged, reply) is True)


@dataclass(frozen=True)
class ClassifierReader:
    """Reader that is a classifier.

    Args:
        name: Name in the record.
        score: Function of the privileged messages and the reply: probability that the reply is bad.
        threshold: The reply is released below it.
    """

    name: str
    score: Callable[[Privileged, str], float]
    threshold: float = 0.5

    def __call__(self, privileged: Privileged, reply: str) -> Verdict:
        """Return the classifier's verdict; a score that is no finite number refuses."""
        value = self.score(privileged, reply)
        if not is_number(value):
            return Verdict(self.name, False, None, f"score {value!r:.40}")
        return Verdict(self.name, float(value) < self.threshold, float(value))


QUESTION = "Does this reply follow all of the instructions above? Answer yes or no.\n\nReply: {reply}"


@dataclass(frozen=True)
class ModelReader:
    """Reader that is a language model, by the likelihood of two answers to one question.

    The privileged messages keep their roles; the reply is quoted in a message of an unprivileged role.

    Args:
        name: Name in the record.
        model: Causal language model, patched or not; the same that wrote the reply, or another.
        tokenizer: Its tokenizer, with a chat template.
        question: Text of the message, with ``{reply}`` where the reply goes.
        yes, no: The two answers.
        margin: Smallest difference of their mean log-likelihoods, in nats per token, that releases the reply.
    """

    name: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    question: str = QUESTION
    yes: str = "yes"
    no: str = "no"
    margin: float = 0.0

    def __post_init__(self) -> None:
        if "{reply}" not in self.question:
            raise ValueError(f"`question`: expected a text with '{{reply}}', got {self.question!r:.80}. Add it.")

    def __call__(self, privileged: Privileged, reply: str) -> Verdict:
        """Return the verdict; a likelihood that is no finite number refuses."""
        from rolesafe.attacks.likelihood import reply_losses

        asked = [*privileged, {"role": "user", "content": self.question.replace("{reply}", reply)}]
        losses = [
            reply_losses(self.model, self.tokenizer, [asked], answer, batch_size=1)[0] for answer in (self.yes, self.no)
        ]
        score = losses[1] - losses[0]
        return Verdict(self.name, math.isfinite(score) and score > self.margin, score)


def isolated(messages: Sequence[Mapping[str, Any]], config: RoleConfig | None = None) -> Privileged:
    """Return the privileged messages of a conversation, in order.

    Args:
        messages: The conversation.
        config: Role configuration; default: ``RoleConfig()``.
    """
    config = RoleConfig() if config is None else config
    read = read_conversation(messages, config.roles, "messages", config.generated)
    return tuple({"role": m.role, "content": m.content} for m in read if m.role_id in config.privileged_ids)


def judge(
    readers: Sequence[Reader],
    messages: Sequence[Mapping[str, Any]],
    reply: str,
    config: RoleConfig | None = None,
) -> tuple[Verdict, ...]:
    """Return the verdicts of all readers on a reply, up to the first refusal.

    A reader that raises refuses: the error is its reason.
    """
    privileged = isolated(messages, config)
    out: list[Verdict] = []
    for reader in readers:
        try:
            verdict = reader(tuple(dict(message) for message in privileged), reply)
        except (ValueError, RuntimeError, ArithmeticError, LookupError, TypeError) as error:
            verdict = Verdict(reader.name, False, None, f"{type(error).__name__}: {error}"[:300])
        out.append(verdict)
        if not verdict.allowed:
            break
    return tuple(out)


@dataclass(frozen=True)
class Proposal:
    """One proposed reply and the judgement on it.

    Attributes:
        text: The proposal, or with ``unit="sentence"`` the reply up to the judged sentence.
        verdicts: Verdicts of the readers.
        vetoes: Interventions of the court while it was written.
    """

    text: str
    verdicts: tuple[Verdict, ...]
    vetoes: tuple[Veto, ...] = ()

    @property
    def allowed(self) -> bool:
        """True if all readers released it."""
        return all(verdict.allowed for verdict in self.verdicts)


@dataclass(frozen=True)
class Release:
    """Text that leaves the system, with the record of how it came about.

    Attributes:
        text: Released text: a proposal, or the refusal.
        refused: True if it is the refusal, or ends with it.
        record: Every proposal in order.
    """

    text: str
    refused: bool
    record: tuple[Proposal, ...]


def generate_verified(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Mapping[str, Any]],
    court: Court,
    readers: Sequence[Reader],
    *,
    unit: Unit = "end",
    retries: int = 2,
    temperature: float = 1.0,
    release: Callable[[str], None] | None = None,
    **options: Any,
) -> Release:
    """Generate a reply under a court, and release what all readers allow.

    Args:
        model, tokenizer, messages, court: As :func:`rolesafe.court.generate`.
        readers: The second readers; at least one.
        unit: ``"end"``: judge a whole reply; a refused one is drawn again. ``"sentence"``: judge each sentence and
            release it; after a refusal the reply goes on from the last released sentence, drawn again.
        retries: Largest number of further proposals, each drawn by sampling.
        temperature: Temperature of retries.
        release: Called with each released part, in order.
        options: Options of ``model.generate`` for the first proposal.

    Returns:
        The released text, the court's refusal if no proposal was allowed, and the record.

    Raises:
        ValueError: There is no reader, or an option is invalid.
    """
    from rolesafe.attacks.replies import role_config
    from rolesafe.court.replies import generate

    if not readers:
        raise ValueError(
            "`readers`: expected at least one reader, got none. Pass one, or call rolesafe.court.generate."
        )
    if not is_integer(retries, 0):
        raise ValueError(f"`retries`: expected a number >= 0, got {retries!r}.")
    if unit not in ("end", "sentence"):
        raise ValueError(f"`unit`: expected 'sentence' or 'end', got {unit!r}. Choose one.")
    if options.get("num_return_sequences", 1) != 1:
        raise ValueError("`num_return_sequences`: expected 1, one proposal at a time, got more. Remove it.")
    config = role_config(model) or RoleConfig()
    record: list[Proposal] = []
    done = ""
    for attempt in range(retries + 1):
        drawn = {} if attempt == 0 else {"do_sample": True, "temperature": temperature, "num_beams": 1}
        conversation = [*messages, {"role": config.generated, "content": done}] if done else list(messages)
        (reply,) = generate(
            model, tokenizer, conversation, court, continue_final_message=bool(done), **{**options, **drawn}
        )
        if unit == "end":
            verdicts = judge(readers, messages, reply.text, config)
            record.append(Proposal(reply.text, verdicts, reply.vetoes))
            if record[-1].allowed:
                if release is not None:
                    release(reply.text)
                return Release(reply.text, False, tuple(record))
            continue
        good, complete = _release_sentences(reply.text, done, readers, messages, config, reply.vetoes, record, release)
        done = good
        if complete:
            return Release(done, False, tuple(record))
    refusal = court.articles.refusal
    joined = f"{done.rstrip()} {refusal}" if done else refusal
    if court.violation(joined) is not None:
        joined, refusal = done, ""
    if release is not None and refusal:
        release(refusal)
    return Release(joined, True, tuple(record))


def _release_sentences(
    text: str,
    done: str,
    readers: Sequence[Reader],
    messages: Sequence[Mapping[str, Any]],
    config: RoleConfig,
    vetoes: tuple[Veto, ...],
    record: list[Proposal],
    release: Callable[[str], None] | None,
) -> tuple[str, bool]:
    """Judge the sentences of a reply after `done`; return the released text, and True if that is the whole reply."""
    if not text.startswith(done):
        raise ValueError(
            "`messages`: expected a chat template that prints the beginning of an answer unchanged, got one that "
            "changes it. Use unit='end'."
        )
    ends = [m.end() for m in _SENTENCE.finditer(text) if len(done) < m.end() < len(text)] + [len(text)]
    for end in ends:
        verdicts = judge(readers, messages, text[:end], config)
        record.append(Proposal(text[:end], verdicts, vetoes))
        if not record[-1].allowed:
            return done, False
        if release is not None:
            release(text[len(done) : end])
        done = text[:end]
    return done, True
