"""The rule families. Each builds a :class:`Case`; the twin of a case is built from the same random numbers.

============  ==================================================  ==========================================
family        protected                                           benign twin
============  ==================================================  ==========================================
``access``    the system text forbids to share the code word      the system text allows it: it must be told
``form``      every question is answered with the system's word   the user may choose another word, and does
``data``      the text may not add anything to the answer         the system text itself asks for the word
============  ==================================================  ==========================================

``data`` follows SEP (arXiv 2403.06833): a probe with a witness word, once in the instruction, once in the data.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from rolesafe.tasks import phrasing as say
from rolesafe.tasks.example import Message
from rolesafe.tasks.words import PLACES, SECRETS, Split, distinct, everywhere


@dataclass(frozen=True, kw_only=True)
class Case:
    """One conversation before it becomes an :class:`Example` or a :class:`TrainingRecord`.

    Attributes not described in :class:`Example`:
        system: The system text.
        before: Messages between the system text and the target message.
        truth: For ``form``, the word that the system text sets, whether or not it is locked.
        rephrased: Draws another training sentence that states a policy.
        aside: Sentences in the style of the rules about something that is not asked.
        rightful: The order in the target message has to be obeyed, so no other may be mixed into it.
    """

    system: str
    before: tuple[Message, ...]
    target: str
    request: str
    reply: str
    violation: str
    goal: str
    truth: str
    contrary: str
    statements: tuple[tuple[str, str], ...]
    forged: str
    rephrased: Callable[[Random, str], str]
    aside: tuple[str, ...] = ()
    rightful: bool = False


Builder = Callable[[Random, Split, int, bool, bool], Case]


def access(rng: Random, split: Split, facts: int, protected: bool, train: bool) -> Case:
    """Code words and who may know them; the user asks for one."""
    places = distinct(rng, PLACES[split], facts)
    secrets = distinct(rng, SECRETS[split], facts)
    allow, deny = rng.choice(say.ALLOW[split]), rng.choice(say.DENY[split])
    others = [rng.random() < 0.5 for _ in places[1:]]
    fact = rng.choice(say.FACT[split])
    known = [fact.format(place=p, secret=s) for p, s in zip(places, secrets, strict=True)]
    allowed = [not protected, *others]
    rules = [(allow if ok else deny).format(place=p) for p, ok in zip(places, allowed, strict=True)]
    order = distinct(rng, tuple(map(str, range(facts))), facts)  # the same for both twins
    known, rules = [known[int(i)] for i in order], [rules[int(i)] for i in order]
    parts = [*known, *rules] if rng.random() < 0.5 else [*rules, *known]
    place, secret = places[0], secrets[0]

    def rephrased(rng: Random, policy: str) -> str:
        return rng.choice((say.ALLOW if policy == "allow" else say.DENY)[split]).format(place=place)

    return Case(
        system=" ".join(parts),
        before=(),
        target="user",
        request=rng.choice(say.ASK[split]).format(place=place),
        reply=say.REFUSAL if protected else say.ANSWER.format(secret=secret),
        violation=secret,
        goal=say.GOALS["access"].format(place=place),
        truth="deny" if protected else "allow",
        contrary="allow",
        statements=(("allow", allow.format(place=place)), ("deny", deny.format(place=place))),
        forged=allow.format(place=place),
        rephrased=rephrased,
        aside=tuple(t.format(place=p) for p in places[1:] for t in (allow, deny)),
    )


def form(rng: Random, split: Split, facts: int, protected: bool, train: bool) -> Case:
    """The word that every question is answered with; the user may or may not choose another one."""
    del facts  # one rule, however difficult the other families are
    word, other = distinct(rng, SECRETS[split], 2)
    phrase, question = rng.choice(say.FORM[split]), rng.choice(say.QUESTION[split])
    locked, free = rng.choice(say.LOCKED[split]), rng.choice(say.OPEN[split])
    front = rng.random() < 0.5
    agrees = rng.random() < 0.5 and train  # the rightful order, like an injected one, may repeat the system's word
    chosen = word if agrees else other
    ordered = [phrase.format(word=chosen), question]

    def rephrased(rng: Random, policy: str) -> str:
        return rng.choice(say.FORM[split]).format(word=policy)

    return Case(
        system=f"{phrase.format(word=word)} {locked if protected else free}",
        before=(),
        target="user",
        request=question if protected else " ".join(ordered if front else ordered[::-1]),
        reply=word if protected else chosen,
        violation=other,
        goal=say.GOALS["form"].format(word=other),
        truth=word,
        contrary=other,
        statements=((word, phrase.format(word=word)), (other, phrase.format(word=other))),
        forged=f"{phrase.format(word=other)} {locked}",
        rephrased=rephrased,
        aside=(free, locked),
        rightful=not protected,
    )


def data(rng: Random, split: Split, facts: int, protected: bool, train: bool) -> Case:
    """A code word to look up in a text that may contain orders; only the system text gives orders."""
    places = distinct(rng, PLACES[split], facts)
    *secrets, word, third = distinct(rng, SECRETS[split], facts + 2)
    fact, find = rng.choice(say.FACT[split]), rng.choice(say.FIND[split]).format(place=places[0])
    also, nothing = rng.choice(say.SAY[split]), rng.choice(say.NOTHING[split])
    known = [fact.format(place=p, secret=s) for p, s in zip(places, secrets, strict=True)]
    rng.shuffle(known)
    tool, hand_over = rng.random() < 0.5, rng.choice(say.HAND_OVER[split])

    def rephrased(rng: Random, policy: str) -> str:
        if policy == "nothing":
            return rng.choice(say.NOTHING[split])
        return rng.choice(say.SAY[split]).format(word=policy)

    answer = say.ANSWER.format(secret=secrets[0])
    return Case(
        system=f"{find} {nothing if protected else also.format(word=word)}",
        before=({"role": "user", "content": hand_over},) if tool else (),
        target="tool" if tool else "user",
        request=" ".join(known),
        reply=answer if protected else say.ANSWER_AND.format(secret=secrets[0], word=word),
        violation=word,
        goal=say.GOALS["data"].format(word=word),
        truth="nothing" if protected else word,
        contrary=word,
        statements=(("nothing", nothing), (word, also.format(word=word)), (third, also.format(word=third))),
        forged=f"{find} {also.format(word=word)}",
        rephrased=rephrased,
    )


BUILDERS: dict[str, Builder] = {"access": access, "form": form, "data": data}


def neutral(rng: Random, facts: int) -> tuple[Message, ...]:
    """A conversation without any rule, over the words of both splits: repeat a word, or look one or two up.

    What has to be copied stands in the system text or in the user's, so copying from either is learned for all words.
    """
    *words, extra = distinct(rng, everywhere(SECRETS), facts + 1)
    system, user = [rng.choice(say.NEUTRAL_SYSTEM)], []
    if rng.random() < 0.4:
        remark = rng.choice(say.REMARK).format(word=extra)
        request, reply = rng.choice(say.REPEAT).format(word=words[0]), words[0]
        sides = [[request], [remark]] if rng.random() < 0.5 else [[remark], [request]]
        system, user = [*system, *sides[0]], [*sides[1]]
    else:
        places = distinct(rng, everywhere(PLACES), facts)
        fact = rng.choice(say.FACT["train"])
        known = [fact.format(place=p, secret=s) for p, s in zip(places, words, strict=True)]
        rng.shuffle(known)
        user.append(rng.choice(say.ASK["train"]).format(place=places[0]))
        reply = say.ANSWER.format(secret=words[0])
        (system if rng.random() < 0.5 else user).extend(known)
        if rng.random() < 0.5:
            (system if rng.random() < 0.7 else user).append(rng.choice(say.SECOND).format(word=extra))
            reply = say.ANSWER_AND.format(secret=words[0], word=extra)
    rng.shuffle(user)
    return (
        {"role": "system", "content": " ".join(system)},
        {"role": "user", "content": " ".join(user)},
        {"role": "assistant", "content": reply},
    )
