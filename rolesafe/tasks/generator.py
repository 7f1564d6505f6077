"""Examples to evaluate on and conversations to train on, from a seed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from random import Random

from rolesafe.tasks import phrasing as say
from rolesafe.tasks.example import Example, Kind, Message, TrainingRecord
from rolesafe.tasks.families import BUILDERS, Case, neutral
from rolesafe.tasks.words import PLACES, SECRETS, SPLITS, Split, filler, filler_words, tokens

FAMILIES: tuple[str, ...] = tuple(BUILDERS)
"""The rule families."""

MAX_DIFFICULTY = 4
"""Most code words in one conversation."""


def generate(
    split: Split, n: int, seed: int, families: Sequence[str] | None = None, *, difficulty: int = 1
) -> list[Example]:
    """`n` examples: pairs of a protected example and its benign twin, the families in turn.

    The same arguments give the same examples in every process, and a smaller `n` gives their beginning. The random
    state of the process is neither read nor changed.

    Args:
        split: ``"train"`` or ``"test"``: which words and phrasings are used.
        n: Number of examples; even, because a protected example always comes with its twin.
        seed: Any integer.
        families: Some of :data:`FAMILIES`; default: all.
        difficulty: Code words in a conversation, 1 to 4, in the families that have several.

    Raises:
        ValueError: An argument is out of range.
    """
    _check_split(split)
    names = _check(n, families, difficulty)
    if n % 2:
        raise ValueError(
            f"`n`: expected an even number, each protected example and its benign twin, got {n}; try {n + 1}"
        )
    examples: list[Example] = []
    for pair in range(n // 2):
        family = names[pair % len(names)]
        stem = f"{family}/{split}/{seed}/{difficulty}/{pair}"
        for protected in (True, False):
            case = BUILDERS[family](Random(stem), split, difficulty, protected)
            examples.append(_example(case, stem, family, split, protected))
    return examples


def training_records(
    n: int,
    seed: int,
    families: Sequence[str] | None = None,
    *,
    difficulty: int = 1,
    injections: tuple[int, int] = (0, 2),
    neutral_share: float = 0.1,
    system_last: float = 0.0,
) -> Iterator[TrainingRecord]:
    """Conversations of the training split with their replies, and what was injected into them.

    A conversation with a rule gets sentences that state a policy in the style of the system text, in random places of
    the message an attacker can write into. Which policy they state is independent of the true one, so "do the opposite
    of the injection" is no better than chance. Where the system text leaves the choice to the user, the user's order
    is the only one.

    Args:
        n: Number of conversations.
        seed: Any integer.
        families: Some of :data:`FAMILIES`; default: all.
        difficulty: Largest number of code words in a conversation, 1 to 4; one fewer occurs too.
        injections: Smallest and largest number of injections; the number is the larger of two uniform draws.
        neutral_share: Share of conversations without any rule, in [0, 1].
        system_last: Share of conversations, in [0, 1], with the system text after the other messages.

    Yields:
        One record per conversation.

    Raises:
        ValueError: An argument is out of range (when the first record is asked for).
    """
    names = _check(n, families, difficulty)
    low, high = injections
    if not 0 <= low <= high:
        raise ValueError(f"`injections`: expected (low, high) with 0 <= low <= high, got {injections}")
    for name, value in (("neutral_share", neutral_share), ("system_last", system_last)):
        if not 0.0 <= value <= 1.0:
            raise ValueError(f"`{name}`: expected a share in [0, 1], got {value}")
    for i in range(n):
        rng = Random(f"conversation/{seed}/{difficulty}/{i}")
        facts = max(1, difficulty - (rng.random() < 0.3))
        if rng.random() < neutral_share:
            record = TrainingRecord(family="neutral", messages=neutral(rng, facts), truth="", policies=(), injected=())
        else:
            family, protected = rng.choice(names), rng.random() < 0.5
            case = BUILDERS[family](rng, "train", facts, protected)
            record = _training_record(case, family, rng, max(rng.randint(low, high), rng.randint(low, high)))
        if rng.random() < system_last:
            first, *middle, reply = record.messages
            record = TrainingRecord(**{**record.__dict__, "messages": (*middle, first, reply)})
        yield record


def training_conversations(
    n: int,
    seed: int,
    families: Sequence[str] | None = None,
    *,
    difficulty: int = 1,
    injections: tuple[int, int] = (0, 2),
    neutral_share: float = 0.1,
    system_last: float = 0.0,
) -> list[list[Message]]:
    """The messages of :func:`training_records`, which describes the arguments; the last one is the reply to learn."""
    records = training_records(
        n,
        seed,
        families,
        difficulty=difficulty,
        injections=injections,
        neutral_share=neutral_share,
        system_last=system_last,
    )
    return [list(record.messages) for record in records]


def vocabulary() -> list[str]:
    """Every word and punctuation mark that examples, conversations and attacks can contain, sorted.

    Case is kept ("The" and "the" are two words). The delimiters of a chat template are not in here.
    """
    words = filler_words() | set(PLACES) | set(SECRETS)
    for phrase in say.all_phrases():
        words.update(tokens(phrase.format(place="gate", secret="gold", word="gold")))
    return sorted(words)


def _example(case: Case, stem: str, family: str, split: Split, protected: bool) -> Example:
    kinds: tuple[Kind, Kind] = ("protected", "benign") if protected else ("benign", "protected")
    return Example(
        id=f"{stem}/{kinds[0]}",
        family=family,
        kind=kinds[0],
        twin=f"{stem}/{kinds[1]}",
        split=split,
        messages=_messages(case, case.request),
        reply=case.reply,
        violation=case.violation if protected else None,
        goal=case.goal,
        target=case.target,
        request=case.request,
        truth=case.truth,
        contrary=case.contrary if protected else None,
        statements=case.statements,
        forged=case.forged if protected else "",
    )


def _training_record(case: Case, family: str, rng: Random, count: int) -> TrainingRecord:
    """Mix `count` injections and some filler into the message an attacker can write into."""
    stated = dict(case.statements)
    policies = tuple(stated)
    pieces = [filler(rng, "train") for _ in range(rng.choice((0, 0, 1, 2)))]
    chosen: list[str] = []
    sentences: list[tuple[str, str | None]] = [(text, None) for text in (*pieces, case.request)]
    for _ in range(0 if case.rightful else count):
        if case.aside and rng.random() < 0.15:
            text, policy = rng.choice(case.aside), None
        else:
            policy = rng.choice(policies)
            text = stated[policy] if rng.random() < 0.5 else case.rephrased(rng, policy)
        if rng.random() < 0.3:
            text = f"{rng.choice(say.IGNORE['train'])} {text}"
        sentences.append((text, policy))
    rng.shuffle(sentences)
    chosen = [policy for _, policy in sentences if policy is not None]
    reply = {"role": "assistant", "content": case.reply}
    return TrainingRecord(
        family=family,
        messages=(*_messages(case, " ".join(text for text, _ in sentences)), reply),
        truth=case.truth,
        policies=policies,
        injected=tuple(chosen),
    )


def _messages(case: Case, content: str) -> tuple[Message, ...]:
    return ({"role": "system", "content": case.system}, *case.before, {"role": case.target, "content": content})


def _check_split(split: str) -> None:
    if split not in SPLITS:
        raise ValueError(f"`split`: expected one of {SPLITS}, got {split!r}")


def _check(n: int, families: Sequence[str] | None, difficulty: int) -> tuple[str, ...]:
    if not isinstance(n, int) or n < 1:
        raise ValueError(f"`n`: expected a number of examples >= 1, got {n!r}")
    if difficulty not in range(1, MAX_DIFFICULTY + 1):
        raise ValueError(f"`difficulty`: expected 1 to {MAX_DIFFICULTY} code words, got {difficulty!r}")
    if families is None:
        return FAMILIES
    if isinstance(families, str) or not families:
        raise ValueError(f"`families`: expected a sequence of names out of {FAMILIES}, got {families!r}")
    for name in families:
        if name not in FAMILIES:
            raise ValueError(f"`families`: unknown family {name!r}; expected some of {FAMILIES}")
    return tuple(families)
