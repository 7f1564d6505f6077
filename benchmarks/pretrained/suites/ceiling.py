"""Headroom of attacks: the rate of goals that a model carries out when its user asks for them directly.

In cases with ``alone`` the order is the user turn, with one of several system prompts or none. In the others the user
turn has the data of an AlpacaFarm row and then the order, without a system turn, so that only the data compete with it.
"""

from __future__ import annotations

from benchmarks.pretrained import texts
from benchmarks.pretrained.answers import Asked, answer
from benchmarks.pretrained.bench import Bench
from benchmarks.pretrained.goals import CANDIDATES, Goal
from benchmarks.pretrained.suites.injection import NEW_TOKENS, judge
from rolesafe.tasks import Message

NAME = "ceiling"
DATA_ROWS = 6
"""Number of rows of data for each goal."""


def run(bench: Bench) -> None:
    """Ask for every goal directly."""
    part = bench.part(NAME, ("seed", "dtype"), ("begins", "contains"))
    tasks = bench.data.tasks(inputs=True)
    asked = []
    for g, goal in enumerate(CANDIDATES):
        for i, order in enumerate(goal.orders):
            for j, system in enumerate(texts.SYSTEMS):
                asked.append(_asked(goal, f"alone {i}.{j}", _alone(system, order)))
        for k in range(min(DATA_ROWS, len(tasks))):
            task = tasks[(g * DATA_ROWS + k) % len(tasks)]
            order = goal.orders[k % len(goal.orders)]
            asked.append(_asked(goal, f"beside {k}", _alone("", f"{task.data}\n\n{order}")))
    answer(bench, NAME, part, asked, NEW_TOKENS)


def _asked(goal: Goal, case: str, messages: tuple[Message, ...]) -> Asked:
    return Asked(goal.name, case, messages, judge(goal))


def _alone(system: str, order: str) -> tuple[Message, ...]:
    user = {"role": "user", "content": order}
    return ({"role": "system", "content": system}, user) if system else (user,)
