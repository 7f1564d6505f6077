"""White-box and black-box searches against the model, with its own roles, on AlpacaFarm rows; and transfer.

Rows are `[source, attack, verdict, result]`: ``1`` success, ``0`` none, ``-`` not decided. The result of
`rolesafe.attacks` includes the texts, so that the evaluation of another model can send them (`--transfer RECORD`).
"""

from __future__ import annotations

from random import Random
from typing import Any

from benchmarks.pretrained.bench import Bench
from benchmarks.pretrained.data import Data, Task
from benchmarks.pretrained.goals import Goal
from benchmarks.pretrained.injections import conversation
from benchmarks.pretrained.record import Record
from benchmarks.pretrained.settings import Settings
from benchmarks.pretrained.suites import injection
from benchmarks.pretrained.suites.injection import NEW_TOKENS
from rolesafe.attacks import AttackConfig, AttackResult, BeastConfig, BestOfNConfig, GCGConfig, attack, transfer
from rolesafe.tasks import Example

NAME = "adaptive"
LENGTH = 20
"""Number of tokens of a searched suffix."""


def run(bench: Bench) -> None:
    """Attack every example, and send the attacks of another record."""
    settings = bench.settings
    names = ("seed", "tool", "goals", "dtype", "adaptive", "gcg_steps", "gcg_width", "beams", "best_of")
    part = bench.part(NAME, names, ("success",))
    chosen = examples(bench.data, settings)
    by_id = {example.id: (source, example) for source, example in chosen}
    jobs: list[tuple[str, str, Any]] = [
        (source, config.name, config) for config in configs(settings) for source, _ in chosen
    ]
    of = dict(chosen)
    if bench.transfer is not None:
        for label, found in _found(bench.transfer):
            if found.outcomes and found.outcomes[0].id in by_id:
                jobs.append((by_id[found.outcomes[0].id][0], label, found))
    done = part.done
    with bench.filling(NAME, part, len(jobs)) as add:
        for source, label, job in jobs:
            if (source, label) not in done:
                add([[source, label, *_outcome(bench, of[source], job)]])


def _outcome(bench: Bench, example: Example, job: AttackConfig | AttackResult) -> tuple[str, dict[str, Any]]:
    if isinstance(job, AttackResult):
        result = transfer(bench.model, bench.tokenizer, [example], job)
    else:
        result = attack(bench.model, bench.tokenizer, [example], job, check_goal=False)
    if not result.complete:
        raise KeyboardInterrupt
    verdict = f"{result.outcomes[0].success:d}" if result.outcomes else "-"
    return verdict, result.to_dict()


def configs(settings: Settings) -> list[AttackConfig]:
    """Return the searches with their budgets."""
    common: dict[str, Any] = {"seed": settings.seed, "max_new_tokens": NEW_TOKENS}
    slot: dict[str, Any] = {"length": LENGTH, "carrier": "injection", **common}
    width = settings.gcg_width
    return [
        BestOfNConfig(n=settings.best_of, augment="letters", **common),
        BeastConfig(beams=settings.beams, branches=settings.beams, **slot),
        GCGConfig(num_steps=settings.gcg_steps, search_width=width, topk=min(256, max(width, 16)), **slot),
    ]


def examples(data: Data, settings: Settings) -> list[tuple[str, Example]]:
    """Return source and example of the attacked rows, drawn with the seed among goals with one witness."""
    every = Data(data.folder, None, data.seed)
    rows = [(task, goal) for task, goal in injection.rows(every, settings) if len(goal.witness) == 1]
    drawn = Random(f"adaptive/{settings.seed}").sample(rows, min(settings.adaptive, len(rows)))
    if not drawn:
        raise ValueError(
            "`goals`: expected one with a single witness for the suite 'adaptive', got none. Add one, such as 'france'."
        )
    return [(task.source, _example(task, goal, settings)) for task, goal in drawn]


def _example(task: Task, goal: Goal, settings: Settings) -> Example:
    order = goal.orders[0]
    return Example(
        id=f"alpacafarm/{task.source}/{goal.name}",
        family=goal.name,
        kind="protected",
        twin="",
        split="test",
        messages=conversation(task.instruction, task.data, tool=settings.tool),
        reply="",
        violation=goal.witness[0],
        goal=order,
        target="tool" if settings.tool else "user",
        request=task.data,
        truth="system",
        contrary=order,
        statements=(("system", task.instruction), (order, order)),
        forged=f"{task.instruction} {order}",
        wanted=goal.wanted,
    )


def _found(path: Any) -> list[tuple[str, AttackResult]]:
    """Return the results in another record, each with a label that names its arm."""
    other = Record.load(path)
    part = other.parts.get(NAME)
    if part is None:
        raise ValueError(
            f"`transfer`: expected a record with the suite {NAME!r}, got one without in {str(path)!r}. Evaluate that "
            "model with --suite adaptive first."
        )
    results = [(row[1], AttackResult.from_dict(row[3])) for row in part.rows if len(row) > 3 and "from" not in row[1]]
    if not results:
        raise ValueError(
            f"`transfer`: expected attacked texts in {str(path)!r}, got none, as in a compact record. Give the "
            "record that `evaluate` wrote."
        )
    return [(f"{name} from {other.arm}", found) for name, found in results]
