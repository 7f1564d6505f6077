"""Data preparation: conversion of rows of data to conversations with a trusted instruction and untrusted data.

The trusted instruction goes into the system turn, untrusted data into the user's or a tool's turn. Kinds of rows:

- ``clean``: unchanged instruction and data; some data get a harmless sentence with trigger words of attacks.
- ``injected``: a clean row with injections in its data (naive, after an order to ignore, after a fake reply, in fake
  turns with the template's own delimiters as text or as structural tokens, several; first, in the middle, last). The
  injected goal is the instruction of another row, and the reply is that of the clean row.
- ``benign``: data with an instruction that the trusted text asks to follow (the reply is that of this instruction), or
  to process as data (copy, count, quote, replace words, ...; the replies follow from a rule); and conversations that
  the user goes on with another instruction, the twins of fake turns.
- ``plain``: unchanged conversations, and instructions in the user's turn, to preserve ability.

Equal rows, recipe and tokenizer give equal results. Phrasings are in :mod:`rolesafe.retrain.phrasing`.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from random import Random
from typing import Any, Final

from rolesafe.config import RoleConfig
from rolesafe.retrain import phrasing
from rolesafe.retrain.benign import process
from rolesafe.retrain.config import KINDS, RetrainConfig
from rolesafe.retrain.injecting import MOST, Marks, inject, read_marks
from rolesafe.retrain.row import PreparedRow
from rolesafe.retrain.sources import Source
from rolesafe.tasks import Message
from rolesafe.training.privileged import check_rows

TOOL_SHARE: Final = 0.75
_BARE: Final = 0.4
"""Share of the trusted turns with the bare instruction."""
_DECOYED: Final = 0.25
"""Share of the clean rows with a harmless sentence that has trigger words of attacks."""
_FOLLOWED: Final = 0.3
"""Share of the benign rows that ask to follow the instruction in the data."""
_CONTINUED: Final = 0.4
"""Share of the benign rows with another instruction of the user after the reply."""
_GOAL_WORDS: Final = 60
_PASSAGE_WORDS: Final = 80


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """Prepared rows, in training order before batching.

    Attributes:
        rows: Prepared rows.
        tool_share: Share that was used for data in tool turns.
    """

    rows: tuple[PreparedRow, ...]
    tool_share: float

    @property
    def counts(self) -> dict[str, int]:
        """Number of rows of each kind."""
        found = Counter(row.kind for row in self.rows)
        return {kind: found[kind] for kind in KINDS}

    @property
    def details(self) -> dict[str, int]:
        """Number of rows of each kind and detail, by name."""
        return dict(sorted(Counter(f"{row.kind}: {row.detail}" for row in self.rows).items()))

    @property
    def digest(self) -> str:
        """SHA-256 of all rows in hexadecimal."""
        rows = [[row.id, list(row.messages), row.reply, list(row.prompt or ()), row.live] for row in self.rows]
        return hashlib.sha256(json.dumps(rows, sort_keys=True, ensure_ascii=False).encode()).hexdigest()

    def with_replies(self, replies: Sequence[str | None]) -> Prepared:
        """Return the rows with the given replies, without the rows that have the reply None.

        Args:
            replies: One reply or None for each row.
        """
        pairs = zip(self.rows, replies, strict=True)
        return replace(self, rows=tuple(replace(row, reply=reply) for row, reply in pairs if reply is not None))


def prepare(rows: Sequence[Source], config: RetrainConfig, tokenizer: Any) -> Prepared:
    """Prepare `rows` for training according to the recipe.

    Args:
        rows: Rows that :func:`rolesafe.retrain.read_sources` returned.
        config: Recipe.
        tokenizer: Tokenizer with a chat template; fake turns use its delimiters.

    Returns:
        ``config.rows`` prepared rows (default: as many as `rows`). With ``replies="self"`` some have no reply yet.

    Raises:
        ValueError: The data have no row for a kind with a share > 0, or none with a privileged turn for the parts of
            the role layer that act on these, or the chat template does not support a conversation of the roles system,
            user and assistant.
    """
    if not rows:
        raise ValueError("`rows`: expected at least one row, got none. Give data with rows.")
    prepared, roles = _Preparation(rows, config, tokenizer).run(), config.roles()
    if roles is not None:
        check_rows(roles, "data", [{"messages": row.messages} for row in prepared.rows])
    return prepared


@dataclass(frozen=True)
class _Task:
    """Instruction text with its source row."""

    source: Source
    text: str


class _Preparation:
    def __init__(self, rows: Sequence[Source], config: RetrainConfig, tokenizer: Any) -> None:
        self.config = config
        self.count = config.rows or len(rows)
        self.rng = Random(f"retrain/prepare/{config.seed}")
        self.own = config.replies == "self"
        self.marks: Marks = read_marks(tokenizer, config.roles() or RoleConfig())
        share = config.tool_share
        if share and self.marks.tool is None:
            raise ValueError(
                f"`tool_share`: expected 0 with a chat template that has no tool turns, got {share}. Set it "
                "to 0, or use another chat template."
            )
        self.tool_share = (TOOL_SHARE if self.marks.tool else 0.0) if share is None else share
        self.with_data = [s for s in rows if s.data or any(m["role"] == "tool" for m in s.messages)]
        self.continued = [s for s in self.with_data if s.reply]
        self.all = list(rows)
        self.goals = [_Task(s, text) for s in rows if 0 < len((text := _request(s)).split()) <= _GOAL_WORDS]
        alone = [goal for goal in self.goals if not goal.source.data]
        self.injected_goals = alone if len({goal.text for goal in alone}) > MOST else self.goals
        self.passages = list(dict.fromkeys(text for s in rows if (text := _passage(s))))
        self._decks: dict[str, list[Any]] = {}

    def run(self) -> Prepared:
        """Return all rows, shuffled."""
        counts = _apportion(self.count, [self.config.shares[kind] for kind in KINDS])
        self._check(dict(zip(KINDS, counts, strict=True)))
        found = []
        for kind, count in zip(KINDS, counts, strict=True):
            make = getattr(self, f"_{kind}")
            found += [replace(make(), id=f"{kind}/{i}") for i in range(count)]
        self.rng.shuffle(found)
        return Prepared(rows=tuple(found), tool_share=self.tool_share)

    def _check(self, counts: dict[str, int]) -> None:
        none = "got none. Give data with `input`, or set the share of this kind to 0."
        for kind in ("clean", "injected"):
            if counts[kind] and not self.with_data:
                raise ValueError(f"`data`: expected rows with an input or a tool's result for {kind!r} rows, {none}")
        if counts["injected"] and len({goal.text for goal in self.goals}) < 2:
            raise ValueError(
                f"`data`: expected at least two different instructions of at most {_GOAL_WORDS} words for 'injected' "
                f"rows, got {len(self.goals)}. Give more rows."
            )
        if counts["benign"] and not (self.goals and self.passages):
            raise ValueError(
                f"`data`: expected an instruction and a text of at most {_PASSAGE_WORDS} words for 'benign' rows, got "
                f"{len(self.goals)} instructions and {len(self.passages)} texts. Give more rows, or set the share of "
                "this kind to 0."
            )

    def _draw(self, name: str, pool: Sequence[Any]) -> Any:
        """Return the next entry of a shuffled pool, reshuffled when it is used up."""
        deck = self._decks.setdefault(name, [])
        if not deck:
            deck.extend(pool)
            self.rng.shuffle(deck)
        return deck.pop()

    # ----------------------------------------------------------------------------------------------------------- kinds

    def _clean(self) -> PreparedRow:
        source = self._draw("clean", self.with_data)
        messages, at = self._conversation(source)
        detail = f"data in the {messages[at]['role']} turn"
        if self.rng.random() < _DECOYED:
            text = f"{messages[at]['content']}\n{self.rng.choice(phrasing.DECOYS)}"
            messages = _with_content(messages, at, text)
            detail += ", harmless trigger words"
        return self._row("clean", detail, source, messages, source.reply, messages)

    def _injected(self) -> PreparedRow:
        source = self._draw("injected", self.with_data)
        messages, at = self._conversation(source)
        goals = []
        for _ in range(8 * MOST):
            goal = self._draw("goals", self.injected_goals)
            if goal.source is not source and goal.text != _request(source) and goal.text not in goals:
                goals.append(goal.text)
            if len(goals) == MOST:
                break
        if not goals:
            goals = [goal.text for goal in self.goals if goal.text != _request(source)][:1]
        role = messages[at]["role"]
        found = inject(messages[at]["content"], goals, role, self.marks, self.rng)
        injected = _with_content(messages, at, found.data)
        row = self._row("injected", f"{found.detail}, {role}", source, injected, source.reply, messages)
        return replace(row, live=found.live)

    def _benign(self) -> PreparedRow:
        goal: _Task = self._draw("benign goals", self.goals)
        passage = self._draw("passages", self.passages)
        data = f"{goal.text}\n\n{goal.source.data}" if goal.source.data else goal.text
        prompt: tuple[Message, ...] = ({"role": "user", "content": data},)
        kind, answered = self.rng.random(), goal.source.reply is not None or self.own
        if kind < _FOLLOWED and answered:
            messages, _ = self._turns(self.rng.choice(phrasing.FOLLOW), data)
            return self._row("benign", "follow", goal.source, messages, goal.source.reply, prompt)
        if _FOLLOWED <= kind < _FOLLOWED + _CONTINUED and answered and self.continued:
            source: Source = self._draw("continued", self.continued)
            messages, _ = self._conversation(source)
            reply: Message = {"role": "assistant", "content": source.reply or ""}
            return self._row("benign", "continue", goal.source, (*messages, reply, *prompt), goal.source.reply, prompt)
        task = process(passage, goal.text, self.rng)
        messages, _ = self._turns(task.order, task.data)
        return PreparedRow(
            id="",
            kind="benign",
            detail=f"process, {task.name}",
            source=goal.source.where,
            messages=messages,
            reply=task.reply,
        )

    def _plain(self) -> PreparedRow:
        source: Source = self._draw("plain", self.all)
        messages = source.messages
        if not messages:
            text = f"{source.instruction}\n\n{source.data}" if source.data else source.instruction
            messages = ({"role": "user", "content": text},)
            if self.rng.random() < 0.5:
                messages = ({"role": "system", "content": self.rng.choice(phrasing.GENERAL)}, *messages)
        return self._row("plain", "conversation", source, messages, source.reply, messages)

    # ----------------------------------------------------------------------------------------------------------- parts

    def _row(
        self,
        kind: str,
        detail: str,
        source: Source,
        messages: tuple[Message, ...],
        reply: str | None,
        prompt: tuple[Message, ...],
    ) -> PreparedRow:
        return PreparedRow(
            id="",
            kind=kind,
            detail=detail,
            source=source.where,
            messages=messages,
            reply=None if self.own else reply,
            prompt=prompt if self.own else None,
        )

    def _conversation(self, source: Source) -> tuple[tuple[Message, ...], int]:
        """Return the clean conversation of a row with data, and the index of the message with the data."""
        if source.messages:
            at = max(i for i, m in enumerate(source.messages) if m["role"] == "tool")
            return source.messages, at
        bare = self.rng.random() < _BARE
        frame = phrasing.TRUSTED[0] if bare else self.rng.choice(phrasing.TRUSTED[1:])
        return self._turns(frame.replace("{instruction}", source.instruction), source.data)

    def _turns(self, trusted: str, data: str) -> tuple[tuple[Message, ...], int]:
        """Return a system turn with the trusted text and a user or tool turn with the data, and the data's index."""
        system: Message = {"role": "system", "content": trusted}
        if self.rng.random() < self.tool_share:
            asked: Message = {"role": "user", "content": self.rng.choice(phrasing.LOOKUPS)}
            return (system, asked, {"role": "tool", "content": data}), 2
        return (system, {"role": "user", "content": data}), 1


def _request(source: Source) -> str:
    """Return the request of a row as one text; empty where its conversation has several user turns."""
    if source.instruction:
        return source.instruction
    users = [m["content"].strip() for m in source.messages if m["role"] == "user"]
    return users[0] if len(users) == 1 else ""


def _passage(source: Source) -> str:
    """Return a short text of a row to process; empty where it has none."""
    results = (m["content"] for m in source.messages if m["role"] == "tool")
    for text in (source.data, *results, source.reply or "", source.instruction):
        if 3 <= len(text.split()) <= _PASSAGE_WORDS:
            return text
    return ""


def _with_content(messages: tuple[Message, ...], at: int, content: str) -> tuple[Message, ...]:
    return (*messages[:at], {**messages[at], "content": content}, *messages[at + 1 :])


def _apportion(total: int, shares: Sequence[float]) -> list[int]:
    """Split `total` by `shares`, largest remainder first."""
    exact = [total * share / sum(shares) for share in shares]
    counts = [int(x) for x in exact]
    order = sorted(range(len(shares)), key=lambda i: (counts[i] - exact[i], i))
    for i in order[: total - sum(counts)]:
        counts[i] += 1
    return counts
