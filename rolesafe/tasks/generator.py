"""Examples to evaluate on and conversations to train on, from a seed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from random import Random

from rolesafe.tasks import phrasing as say
from rolesafe.tasks.difficulty import Difficulty, around, placed, shaped, small_talk
from rolesafe.tasks.example import Example, Kind, Message, TrainingRecord
from rolesafe.tasks.rule_families import BUILDERS, Case, neutral
from rolesafe.tasks.words import PLACES, SECRETS, SPLITS, Split, filler, filler_words, tokens

FAMILIES: tuple[str, ...] = tuple(BUILDERS)
"""The rule families."""


def generate(
    split: Split, n: int, seed: int, families: Sequence[str] | None = None, *, difficulty: int | Difficulty = 1
) -> list[Example]:
    """`n` examples: pairs of a protected example and its benign twin, the families in turn.

    The same arguments give the same examples in every process, and a smaller `n` gives their beginning. The random
    state of the process is neither read nor changed.

    Args:
        split: ``"train"`` or ``"test"``: which words and phrasings are used.
        n: Number of examples; even, because a protected example always comes with its twin.
        seed: Any integer.
        families: Some of :data:`FAMILIES`; default: all.
        difficulty: Code words in a conversation, 1 to 4, in the families that have several; or all dials.

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
    """One case of a pair, and the random generator that its messages are placed with; twins get equal ones.

    The rules come from the facts, the dials from a generator of their own: a longer conversation asks the same.
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
    """Conversations of the training split with their replies, and what was injected into them.

    A conversation with a rule gets sentences that state a policy in the style of the system text, in random places of
    the message an attacker can write into. Which policy they state is independent of the true one, so "do the opposite
    of the injection" is no better than chance. Where the system text leaves the choice to the user, the user's order
    is the only one.

    Args:
        n: Number of conversations.
        seed: Any integer.
        families: Some of :data:`FAMILIES`; default: all.
        difficulty: Largest number of code words in a conversation, 1 to 4; one fewer occurs too. Or all dials: each
            number of words and turns is drawn up to its dial.
        injections: Smallest and largest number of injections; the number is the larger of two uniform draws.
        neutral_share: Share of conversations without any rule, in [0, 1].
        system_last: Share of conversations, in [0, 1], with the system text after the other messages; the others have
            it where `difficulty` says.
        trigger_share: Share of conversations, in [0, 1], with harmless talk in the words of orders and attacks in the
            last message, see :func:`rolesafe.tasks.trigger_examples`.

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
        # A generator of its own, so that a dial at rest changes nothing.
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
        if place == "middle" and len(before) == 1:  # nothing stands between the system text and a lone question
            place = "any"
        yield replace(record, messages=(*placed((*before, last), place, shape), reply))


def trigger(content: str, rng: Random, split: Split) -> str:
    """`content` after one or two sentences of harmless talk in the words that orders and attacks are made of."""
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
    """The messages of :func:`training_records`, which describes the arguments; the last one is the reply to learn."""
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
    """Every word and punctuation mark that examples, conversations and attacks can contain, sorted.

    Case is kept ("The" and "the" are two words). The delimiters of a chat template are not in here.

    Args:
        families: Some of :data:`FAMILIES`, whose words are wanted; default: all.
        triggers: Whether the words of :func:`rolesafe.tasks.trigger_examples` are wanted too.

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
    """The example of a case; `content` is what the target message says, if not just the request."""
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
    """A conversation without rules, with the same dials."""
    system, user, reply = messages
    return (
        {"role": "system", "content": around(system["content"], dials.system_filler, rng, "train")},
        *small_talk(dials.turns, rng, "train"),
        {"role": "user", "content": around(user["content"], dials.filler, rng, "train")},
        reply,
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


def check_split(split: str) -> None:
    """Refuse what is no split."""
    if split not in SPLITS:
        raise ValueError(f"`split`: expected one of {SPLITS}, got {split!r}")


def check_even(n: int) -> None:
    """Refuse a number of examples that is not one of pairs."""
    if n % 2:
        raise ValueError(
            f"`n`: expected an even number, each protected example and its benign twin, got {n}; try {n + 1}"
        )


def check(n: int, families: Sequence[str] | None, difficulty: int | Difficulty) -> tuple[str, ...]:
    """Refuse what is out of range; the names of the families."""
    if not isinstance(n, int) or n < 1:
        raise ValueError(f"`n`: expected a number of examples >= 1, got {n!r}")
    Difficulty.of(difficulty)
    if families is None:
        return FAMILIES
    if isinstance(families, str) or not families:
        raise ValueError(f"`families`: expected a sequence of names out of {FAMILIES}, got {families!r}")
    for name in families:
        if name not in FAMILIES:
            raise ValueError(f"`families`: unknown family {name!r}; expected some of {FAMILIES}")
    return tuple(families)
