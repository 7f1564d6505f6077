"""Seeded generator of test examples and training conversations."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from random import Random

from rolesafe.arguments import is_integer
from rolesafe.tasks import phrasing as say
from rolesafe.tasks.difficulty import Difficulty, around, placed, shaped, small_talk
from rolesafe.tasks.example import Example, Kind, Message, TrainingRecord
from rolesafe.tasks.rule_families import BUILDERS, Case, neutral
from rolesafe.tasks.words import PLACES, SECRETS, SPLITS, Split, filler, filler_words, tokens

FAMILIES: tuple[str, ...] = tuple(BUILDERS)
"""Names of the rule families."""


def generate(
    split: Split, n: int, seed: int, families: Sequence[str] | None = None, *, difficulty: int | Difficulty = 1
) -> list[Example]:
    """Return `n` examples: pairs of a protected example and its benign twin, the families in turn.

    The same arguments give the same examples in every process; a smaller `n` gives a prefix. The global random state is
    neither read nor changed.

    Args:
        split: ``"train"`` or ``"test"``: split of words and phrasings.
        n: Even number of examples: protected ones with their twins.
        seed: Any integer.
        families: Names out of :data:`FAMILIES`; default: all.
        difficulty: Number of code words in a conversation, 1 to 4, for families with several; or all dials.

    Raises:
        ValueError: An argument is out of range.
    """
    check_split(split)
    names, dials = check(n, families, difficulty), Difficulty.of(difficulty)
    check_even(n)
    examples: list[Example] = []
    for pair in range(n // 2):
        family = names[pair % len(names)]
        for protected in (True, False):
            case, rng = build(family, split, seed, dials, pair, protected)
            stem = f"{family}/{split}/{seed}/{dials.label}/{pair}"
            examples.append(to_example(case, stem, family, split, protected, dials, rng))
    return examples


def build(family: str, split: Split, seed: int, dials: Difficulty, pair: int, protected: bool) -> tuple[Case, Random]:
    """Return one case of a pair, and the random generator for placing its messages; twins get equal generators.

    Rules and dials use separate generators, so that a longer conversation asks the same question.
    """
    stem = f"{family}/{split}/{seed}/{dials.facts}/{pair}"
    rng = Random(f"dials/{stem}")
    return shaped(BUILDERS[family](Random(stem), split, dials.facts, protected), dials, rng, split), rng


def training_records(
    n: int,
    seed: int,
    families: Sequence[str] | None = None,
    *,
    difficulty: int | Difficulty = 1,
    injections: tuple[int, int] = (0, 2),
    neutral_share: float = 0.1,
    system_last: float = 0.0,
    trigger_share: float = 0.0,
) -> Iterator[TrainingRecord]:
    """Yield conversations of the training split with their replies and injected policies.

    Sentences that state a policy in the style of the system text are injected at random places of the attacker's
    message. Their policy is independent of the true one, so "do the opposite of the injection" is no better than
    chance. If the system text leaves the choice to the user, only the user's order is in the message.

    Args:
        n: Number of conversations.
        seed: Any integer.
        families: Names out of :data:`FAMILIES`; default: all.
        difficulty: Largest number of code words in a conversation, 1 to 4; one fewer occurs too. Or all dials: numbers
            of words and turns are drawn up to the dial.
        injections: Smallest and largest number of injections; the larger of two uniform draws is used.
        neutral_share: Share of conversations without rules, in [0, 1].
        system_last: Share of conversations, in [0, 1], with the system text last; in the others `difficulty` places it.
        trigger_share: Share of conversations, in [0, 1], with harmless sentences in the words of attacks, see
            :func:`rolesafe.tasks.trigger_examples`.

    Yields:
        One record per conversation.

    Raises:
        ValueError: An argument is out of range (when the first record is asked for).
    """
    names, dials = check(n, families, difficulty), Difficulty.of(difficulty)
    low, high = injections
    if not 0 <= low <= high:
        raise ValueError(f"`injections`: expected (low, high) with 0 <= low <= high, got {injections}")
    shares = {"neutral_share": neutral_share, "system_last": system_last, "trigger_share": trigger_share}
    for name, value in shares.items():
        if not 0.0 <= value <= 1.0:
            raise ValueError(f"`{name}`: expected a share in [0, 1], got {value}")
    for i in range(n):
        rng = Random(f"conversation/{seed}/{dials.facts}/{i}")
        # a separate generator, so that default dials change nothing
        shape = Random(f"dials/{seed}/{dials.facts}/{i}")
        drawn = dials.drawn(shape)
        facts = max(1, dials.facts - (rng.random() < 0.3))
        if rng.random() < neutral_share:
            messages = _talk_around(neutral(rng, facts), drawn, shape)
            record = TrainingRecord(family="neutral", messages=messages, truth="", policies=(), injected=())
        else:
            family, protected = rng.choice(names), rng.random() < 0.5
            case = shaped(BUILDERS[family](rng, "train", facts, protected), drawn, shape, "train")
            record = _training_record(case, family, rng, max(rng.randint(low, high), rng.randint(low, high)))
        *before, last, reply = record.messages
        if shape.random() < trigger_share:
            last = {"role": last["role"], "content": trigger(last["content"], shape, "train")}
        place = "last" if rng.random() < system_last else drawn.place
        if place == "middle" and len(before) == 1:  # a single question leaves no middle
            place = "any"
        yield replace(record, messages=(*placed((*before, last), place, shape), reply))


def trigger(content: str, rng: Random, split: Split) -> str:
    """Return `content` after one or two harmless sentences in the words of orders and attacks."""
    return " ".join([*rng.sample(say.TRIGGER[split], rng.choice((1, 2))), content])


def training_conversations(
    n: int,
    seed: int,
    families: Sequence[str] | None = None,
    *,
    difficulty: int | Difficulty = 1,
    injections: tuple[int, int] = (0, 2),
    neutral_share: float = 0.1,
    system_last: float = 0.0,
    trigger_share: float = 0.0,
) -> list[list[Message]]:
    """Return the messages of :func:`training_records`, with the reply last; the arguments are the same."""
    records = training_records(
        n,
        seed,
        families,
        difficulty=difficulty,
        injections=injections,
        neutral_share=neutral_share,
        system_last=system_last,
        trigger_share=trigger_share,
    )
    return [list(record.messages) for record in records]


def vocabulary(families: Sequence[str] | None = None, *, triggers: bool = True) -> list[str]:
    """Return every word and punctuation mark of examples, conversations and attacks, sorted and case-sensitive.

    Delimiters of chat templates are not included.

    Args:
        families: Names out of :data:`FAMILIES`; default: all.
        triggers: Include the words of :func:`rolesafe.tasks.trigger_examples`.

    Raises:
        ValueError: A family is unknown.
    """
    names = check(1, families, 1)
    phrases = say.phrases_of(names) + (say.trigger_phrases() if triggers else ())
    words = filler_words() | set(PLACES) | set(SECRETS)
    slots = {"place": "gate", "secret": "gold", "word": "gold"}
    for phrase in phrases:
        words.update(tokens(phrase.format(**slots)))
    return sorted(words)


def to_example(
    case: Case,
    stem: str,
    family: str,
    split: Split,
    protected: bool,
    dials: Difficulty,
    rng: Random,
    content: str | None = None,
) -> Example:
    """Return the example of a case; `content` is the target message, by default the request."""
    kinds: tuple[Kind, Kind] = ("protected", "benign") if protected else ("benign", "protected")
    return Example(
        id=f"{stem}/{kinds[0]}",
        family=family,
        kind=kinds[0],
        twin=f"{stem}/{kinds[1]}",
        split=split,
        messages=placed(_messages(case, case.request if content is None else content), dials.place, rng),
        reply=case.reply,
        violation=case.violation if protected else None,
        goal=case.goal,
        target=case.target,
        request=case.request,
        truth=case.truth,
        contrary=case.contrary if protected else None,
        statements=case.statements,
        forged=case.forged if protected else "",
        wanted=case.wanted if protected else "",
    )


def _talk_around(messages: tuple[Message, ...], dials: Difficulty, rng: Random) -> tuple[Message, ...]:
    """Return a conversation without rules, shaped by the dials."""
    system, user, reply = messages
    return (
        {"role": "system", "content": around(system["content"], dials.system_filler, rng, "train")},
        *small_talk(dials.turns, rng, "train"),
        {"role": "user", "content": around(user["content"], dials.filler, rng, "train")},
        reply,
    )


def _training_record(case: Case, family: str, rng: Random, count: int) -> TrainingRecord:
    """Return a training record with `count` injections and some filler in the attacker's message."""
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


def check_split(split: str) -> None:
    """Raise ValueError for an unknown split."""
    if split not in SPLITS:
        raise ValueError(f"`split`: expected one of {SPLITS}, got {split!r}")


def check_even(n: int) -> None:
    """Raise ValueError for an odd number of examples."""
    if n % 2:
        raise ValueError(
            f"`n`: expected an even number, protected examples with their benign twins, got {n}. Use {n + 1}."
        )


def check(n: int, families: Sequence[str] | None, difficulty: int | Difficulty) -> tuple[str, ...]:
    """Return the names of the families, or raise ValueError for an argument out of range."""
    if not is_integer(n, 1):
        raise ValueError(f"`n`: expected a number of examples >= 1, got {n!r}")
    Difficulty.of(difficulty)
    if families is None:
        return FAMILIES
    if isinstance(families, str) or not families:
        raise ValueError(f"`families`: expected a sequence of names out of {FAMILIES}, got {families!r}")
    for name in families:
        if name not in FAMILIES:
            raise ValueError(f"`families`: expected names out of {FAMILIES}, got {name!r}")
    return tuple(families)
