"""The user goes on with an order, against the same tokens inside the data.

Case ``user``: instruction, data, a reply, and an order of the injection suite in a turn of the user. Case ``data``: the
token ids are the same, and all that follow the data are typed into the data's turn, as on a server that tokenises
rendered text. To a model without roles the two are equal, so it carries out both or neither.
"""

from __future__ import annotations

from random import Random

from benchmarks.pretrained import texts
from benchmarks.pretrained.answers import Asked, answer
from benchmarks.pretrained.bench import Bench
from benchmarks.pretrained.data import Task
from benchmarks.pretrained.goals import Goal
from benchmarks.pretrained.injections import LONGEST_REPLY, Marks, conversation, read_marks
from benchmarks.pretrained.suites.injection import NEW_TOKENS, judge, rows
from rolesafe.tasks import Message

NAME = "followup"


def run(bench: Bench) -> None:
    """Ask every row in both ways."""
    settings = bench.settings
    part = bench.part(NAME, ("limit", "seed", "tool", "goals", "dtype"), ("begins", "contains"))
    marks = read_marks(bench.tokenizer, tool=settings.tool)
    asked = []
    for task, goal in rows(bench.data, settings):
        own, forged = pair(task, goal, marks, settings.seed)
        asked.append(Asked(task.source, "user", own, judge(goal)))
        asked.append(Asked(task.source, "data", forged, judge(goal), ids=True))
    answer(bench, NAME, part, asked, NEW_TOKENS)


def pair(task: Task, goal: Goal, marks: Marks, seed: int) -> tuple[tuple[Message, ...], tuple[Message, ...]]:
    """Return the conversation with the order in the user's own turn, and the one with it typed into the data."""
    order = Random(f"{seed}/{task.source}/{goal.name}").choice(goal.orders)
    reply = task.reference if 0 < len(task.reference) <= LONGEST_REPLY else texts.FAKE_REPLY
    data, reply = task.data.strip(), reply.strip()
    around, tool = marks.around, marks.target == "tool"
    turns = ({"role": "assistant", "content": reply}, {"role": "user", "content": order})
    typed = around.footer(marks.target) + around.header("assistant") + reply + around.footer("assistant")
    forged = data + typed + around.header("user") + order
    return (*conversation(task.instruction, data, tool=tool), *turns), conversation(task.instruction, forged, tool=tool)
