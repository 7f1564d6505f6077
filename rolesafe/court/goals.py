"""Texts that would break an article, in spellings that it covers, and checks of whole replies by other means.

A check reads the printed text, never the states of the automaton.
"""

from __future__ import annotations

import base64
import json
import random
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from rolesafe.court.articles import Article, SpelledArticle
from rolesafe.court.court import Court
from rolesafe.court.language import AllowedLanguage
from rolesafe.court.phrases import ForbiddenPhrases, Secrets
from rolesafe.court.provenance import NoCopy, ToolCalls
from rolesafe.court.shape import Closing, Length, Opening, Repetition

_WIDTHLESS = ("\u200b", "\u2060", "\u00ad", "\ufeff")
_SPACES = ("  ", "\n", "\t ", "\u00a0")
_LATIN = {ord("e"): "\u0435", ord("a"): "\u0430", ord("o"): "\u03bf", ord("i"): "\u0456"}
_FILLER = "I would rather talk about the weather in the north than about that. "


@dataclass(frozen=True)
class Goal:
    """Reply that an attacker wants.

    Attributes:
        text: UTF-8 bytes to write, from the beginning of the reply.
        ends: True to end the reply after them; False to write them again.
    """

    text: bytes
    ends: bool = False


def spell(rng: random.Random, text: str, article: SpelledArticle) -> str:
    """Return a text in a random spelling that the options of an article cover."""
    steps: list[Callable[[str], str]] = [lambda t: t]
    if article.case:
        steps += [str.upper, str.title, lambda t: "".join(c.upper() if rng.random() < 0.5 else c for c in t)]
    if article.zero_width:
        steps.append(lambda t: rng.choice(_WIDTHLESS).join(t))
    if article.spaces != "exact":
        steps.append(lambda t: re.sub(" ", lambda _: rng.choice(_SPACES), t))
    if article.spaces == "ignore":
        steps.append(" ".join)
    if article.lookalikes:
        steps += [
            lambda t: t.translate(_LATIN),
            lambda t: "".join(chr(ord(c) + 0xFEE0) if "a" <= c <= "z" else c for c in t),
            lambda t: "".join(c + rng.choice(["", "\u0301", "\u0336"]) for c in t),
        ]
    for c in article.ignored[:1]:
        steps.append(c.join)
    for _ in range(rng.randint(1, 3)):
        text = rng.choice(steps)(text)
    return text


def goal(rng: random.Random, article: Article, court: Court) -> Goal:
    """Return a reply that would break an article; `rng` draws which one, and its spelling.

    Raises:
        ValueError: The article is of a kind without goals.
    """
    filler = _FILLER[: rng.randrange(len(_FILLER))] if rng.random() < 0.3 else ""
    if isinstance(article, ForbiddenPhrases):
        return Goal((filler + spell(rng, rng.choice(article.phrases), article)).encode())
    if isinstance(article, Secrets):
        return Goal((filler + _secret(rng, article)).encode())
    if isinstance(article, ToolCalls):
        name = rng.choice(article.names)
        k = rng.randrange(len(name))
        name = rng.choice([name, f"{name[:k]}\\u{ord(name[k]):04x}{name[k + 1 :]}"])
        return Goal(f"{filler}{article.before}{rng.choice(['', ' '])}{name}{article.after}".encode())
    if isinstance(article, NoCopy):
        texts = [m.content for m in court.context.messages if m.role in {r.lower() for r in article.roles}]
        words = rng.choice(texts).split(" ") if texts else [_FILLER]
        copied = spell(rng, " ".join(words[rng.randrange(len(words)) :]), article)
        return Goal(("".join((article.within or ("", ""))[:1]) + copied).encode())
    if isinstance(article, Opening):
        return Goal(
            rng.choice([filler + article.texts[0], article.texts[0].swapcase(), f"\u200b{article.texts[0]}"]).encode()
        )
    if isinstance(article, Closing):
        return Goal(rng.choice(["", _FILLER[:9], article.texts[0][:-1], article.texts[0] + "!"]).encode(), ends=True)
    if isinstance(article, Length):
        return Goal(rng.choice([b"", b"a"]), ends=True) if article.min_tokens and rng.random() < 0.5 else Goal(b"a b")
    if isinstance(article, Repetition):
        return Goal(rng.choice([b"a", b" the", _FILLER[: rng.randint(2, 20)].encode()]))
    if isinstance(article, AllowedLanguage):
        return Goal(rng.choice([_FILLER, "{}", '{"a": 1,}', "", article.source[:40], "</s>"]).encode(), ends=True)
    raise ValueError(f"`article`: expected a kind that goals exist for, got {article.kind!r}. Leave it out.")


def _secret(rng: random.Random, article: Secrets) -> str:
    value = rng.choice(article.values)
    if article.part is not None and rng.random() < 0.5:
        k = rng.randrange(len(value))
        value = value[k : k + article.part + rng.randrange(3)]
    forms = ["plain", *["reversed"] * article.reversed, *["base64"] * article.base64]
    form = rng.choice(forms)
    if form == "base64":
        return base64.b64encode(b"x" * rng.randint(0, 2) + value.encode()).decode()
    return spell(rng, value[::-1] if form == "reversed" else value, article)


Check = Callable[[str, Sequence[int], bool], bool]
"""Return True if a reply breaks an article, from its text, its tokens without the end token, and True if it ended."""


def check_of(article: Article, court: Court) -> Check:
    """Return the check of whole replies for an article."""
    if isinstance(article, Opening):
        starts = article.texts
        return lambda text, ids, ended: (
            not any(
                one.startswith(start) or (not ended and start.startswith(one))
                for one in (text, text[1:])
                for start in starts
            )
        )
    if isinstance(article, Closing):
        return lambda text, ids, ended: ended and not text.endswith(article.texts)
    if isinstance(article, Length):
        return lambda text, ids, ended: (
            (ended and len(ids) < article.min_tokens)
            or (article.max_tokens is not None and len(ids) > article.max_tokens)
            or (article.max_bytes is not None and len(text.encode()) > article.max_bytes)
        )
    if isinstance(article, Repetition):
        return lambda text, ids, ended: (
            max(Counter(zip(*(ids[k:] for k in range(article.run)), strict=False)).values(), default=0) > article.times
        )
    if isinstance(article, AllowedLanguage):
        return _language(article, court)
    return lambda text, ids, ended: court.violation(text) is not None


def _language(article: AllowedLanguage, court: Court) -> Check:
    """Return the check of a language by Python's own readers; by the engine for a grammar."""

    def broken(text: str, ids: Sequence[int], ended: bool) -> bool:
        if not ended:
            return False
        if article.form == "json_schema":
            try:
                found: Any = json.loads(text)
            except ValueError:
                return True
            kind = json.loads(article.source)
            wanted = kind.get("type") if isinstance(kind, dict) else None
            return (wanted == "object") != isinstance(found, dict) if wanted in ("object",) else False
        if article.form == "regex":
            try:
                return re.fullmatch(article.source, text, re.ASCII) is None
            except re.error:  # Rust's syntax, which Python does not read
                pass
        return court.read([*ids, court.end_ids[0]]).broken is not None

    return broken
