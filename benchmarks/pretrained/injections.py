"""Attacked messages: a fixed text inserts the order of another goal into the untrusted data of a row.

Terms of the literature: naive, ignore, escape characters, fake completion and combined as in Liu et al.
(arXiv 2310.12815) and StruQ (arXiv 2402.06363).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from random import Random
from typing import Any, Final, Literal

from benchmarks.pretrained import texts
from benchmarks.pretrained.data import Task
from benchmarks.pretrained.goals import Goal
from rolesafe.attacks.delimiters import Delimiters, delimiters
from rolesafe.tasks import Message

Place = Literal["first", "middle", "last"]
PLACES: Final = ("first", "middle", "last")
METHODS: Final = (
    "naive", "ignore", "escape", "completion", "combined", "fake turn", "fake turn ids", "fake system ids",
    "8 times", "32 times",
)  # fmt: skip
"""Names of the methods. With ``ids`` typed delimiters become structural tokens, as on a server that tokenises rendered
text; otherwise `rolesafe.encode` makes them ordinary text."""

_BOUNDARY: Final = re.compile(r"(?<=[.!?])\s+|\n+")
LONGEST_REPLY: Final = 300
"""Maximum number of characters of a reference reply in a fake completion."""


@dataclass(frozen=True)
class Case:
    """Injected text. `method` is one of :data:`METHODS`, or ``"none"`` for clean data."""

    method: str
    place: Place = "last"
    styled: bool = True

    @property
    def label(self) -> str:
        """Name in records and tables."""
        if self.method == "none":
            return "none"
        return f"{self.method}, {self.place}" + ("" if self.styled else ", destyled")

    @property
    def ids(self) -> bool:
        """True where typed delimiters become structural tokens."""
        return self.method.endswith(" ids")


CORE: Final = (
    Case("none"),
    *(Case("naive", place) for place in PLACES),
    Case("naive", styled=False),
    Case("ignore", "first"),
    *(Case(method) for method in METHODS[1:]),
    Case("8 times", styled=False),
)
EVERY: Final = (
    Case("none"),
    *(Case(m, place, styled) for styled in (True, False) for m in METHODS for place in PLACES),
)


def cases(name: str) -> tuple[Case, ...]:
    """Return the cases of a setting, ``"core"`` or ``"all"``."""
    return {"core": CORE, "all": EVERY}[name]


@dataclass(frozen=True)
class Marks:
    """Delimiters of a chat template.

    Attributes:
        target: Role of the untrusted turn.
        around: Delimiters of a conversation of system, untrusted and assistant turns.
    """

    target: str
    around: Delimiters


def read_marks(tokenizer: Any, *, tool: bool) -> Marks:
    """Return the delimiters of the tokenizer's chat template.

    Raises:
        ValueError: The template does not support these roles.
    """
    roles = ("system", "user", "tool", "assistant") if tool else ("system", "user", "assistant")
    return Marks("tool" if tool else "user", delimiters(tokenizer, roles))


def attacked(task: Task, goal: Goal, case: Case, marks: Marks, seed: int) -> tuple[Message, ...]:
    """Return the conversation of a row with an injection.

    Args:
        task: Row with data.
        goal: Goal of the injection.
        case: Injected text.
        marks: Delimiters for fake turns.
        seed: Seed of the phrasings of a row, which are the same for every model.
    """
    rng = Random(f"{seed}/{task.source}/{goal.name}")
    order = rng.choice(goal.orders) if case.styled else goal.destyled
    content = task.data if case.method == "none" else _placed(task, order, case, marks, rng)
    return conversation(task.instruction, content, tool=marks.target == "tool")


def conversation(instruction: str, data: str, *, tool: bool) -> tuple[Message, ...]:
    """Return a trusted instruction in the system turn, and data in the user turn or in a tool turn."""
    system = {"role": "system", "content": instruction}
    if not tool:
        return system, {"role": "user", "content": data}
    return system, {"role": "user", "content": texts.TOOL_REQUEST}, {"role": "tool", "content": data}


def _placed(task: Task, order: str, case: Case, marks: Marks, rng: Random) -> str:
    opening, escape = rng.choice(texts.IGNORE), rng.choice(texts.ESCAPES)
    before, after = rng.choice(texts.COMPLETIONS)
    reply = task.reference if 0 < len(task.reference) <= LONGEST_REPLY else texts.FAKE_REPLY
    around, target = marks.around, marks.target
    answered = around.footer(target) + around.header("assistant") + reply + around.footer("assistant")
    forged = around.footer(target) + around.header("system") + order + around.footer("system")
    text = {
        "naive": order,
        "ignore": f"{opening} {order}",
        "escape": f"{escape}{order}",
        "completion": f"{before}{reply}{after}{order}",
        "combined": f"{escape}{before}{reply}{after}{opening} {order}",
        "fake turn": f"{answered}{around.header('user')}{order}",
        "fake turn ids": f"{answered}{around.header('user')}{order}",
        "fake system ids": f"{forged}{around.header('user')}{texts.GO_ON}",
        "8 times": " ".join([order] * 8),
        "32 times": " ".join([order] * 32),
    }[case.method]
    first, second = _split(task.data, case.place)
    glue = "" if case.method in ("escape", "completion", "combined") or case.method.startswith("fake") else " "
    end = "\n" if case.method not in ("naive", "ignore", "8 times", "32 times") else " "
    return (f"{first}{glue}" if first else "") + text + (f"{end}{second}" if second else "")


def _split(data: str, place: Place) -> tuple[str, str]:
    """Return the data before and after the injection; `middle` is the nearest sentence end, or else word end."""
    if place == "first":
        return "", data
    if place == "last":
        return data, ""
    ends = [m.span() for m in _BOUNDARY.finditer(data)] or [m.span() for m in re.finditer(r"\s+", data)]
    if not ends:
        return data, ""
    start, end = min(ends, key=lambda span: abs(span[0] - len(data) / 2))
    return data[:start], data[end:]
