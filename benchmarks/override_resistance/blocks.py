"""Generated parts of pages about the study; ``python -m benchmarks.pages`` writes them."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from functools import cache
from pathlib import Path

from benchmarks.override_resistance import compact
from benchmarks.override_resistance import table as tables
from benchmarks.override_resistance.clusters import clusters, nearest, sentences, template
from benchmarks.override_resistance.data import conversations
from benchmarks.override_resistance.measure import attacks, examples_of, stratified
from benchmarks.override_resistance.rejudge import rejudged
from benchmarks.override_resistance.run_report.markdown import target_lines
from benchmarks.override_resistance.settings import Study
from benchmarks.override_resistance.table import ROWS, cell, is_fixed, trials
from benchmarks.override_resistance.targets import Plan, verdicts
from benchmarks.override_resistance.transfer import table as table_of_counts
from rolesafe.attacks import Rate, attackable, attacked
from rolesafe.evaluation import Results, Run
from rolesafe.evaluation.statistics import effective_trials, losing_seeds_bound

RECORDS = Path(__file__).parents[1] / "results"


@cache
def load(name: str) -> Results:
    """Return the record of a name, ``"main"`` for that of the whole study."""
    return compact.load(RECORDS / f"override_resistance{'' if name == 'main' else '_' + name}.json")


@cache
def labels(name: str) -> dict[str, str]:
    """Return the template of every example in a record."""
    return clusters(load(name).settings, load(name).seeds)


@cache
def caption(name: str) -> str:
    """Return the source of a table: file, commit, seeds, examples and their effective number, judge."""
    results = load(name)
    commits = " / ".join(part[:7] for part in (results.environment.commit or "unknown").split(" / "))
    seeds = ", ".join(map(str, results.seeds))
    counts = []
    for kind, row in (("fixed texts", ROWS["all fixed texts"]), ("searches", ROWS["**worst case**"])):
        runs = results.of(results.sizes[0], results.models[0])
        n = sum((row.rate(run) or Rate(0, 0)).n for run in runs)
        worth = trials(row, runs, n, results.settings, labels(name))
        if n and (kind == "fixed texts" or results.settings["searched"]):
            counts.append(f"{kind} on n = {n}, worth {worth:.0f} independent ones")
    judged = any(point.right for run in results.runs for point in run.attacks)
    judge = "judged by the second judge" if judged else "judged by the first judge"
    file = f"override_resistance{'' if name == 'main' else '_' + name}.json"
    complete = "" if results.complete else ", not finished"
    return f"`{file}`, commit {commits}, seeds {seeds}{complete}: {'; '.join(counts)}; {judge}."


def table(name: str, size: str) -> str:
    """Return the table of one size of a record."""
    return f"{caption(name)}\n\n{tables.table(load(name), size, labels(name))}"


def targets(name: str) -> str:
    """Return the table of the targets, with intervals by template."""
    results = load(name)
    found = [verdicts(results, size, Plan.of(results), labels(name)) for size in results.sizes]
    return "\n".join(target_lines(list(zip(*found, strict=True)), results.sizes))


def seeds(name: str, size: str) -> str:
    """Return examples lost to fixed texts and to all attacks by seed, and the bound where no seed lost any."""
    results = load(name)
    head = f"| lost, by seed | {' | '.join(map(str, results.seeds))} |"
    lines = [head, f"| :-- |{' --: |' * len(results.seeds)}"]
    clean = []
    for model in results.models:
        for kind, choose in (("fixed texts", is_fixed), ("all attacks", None)):
            runs = {run.seed: run for run in results.of(size, model)}
            cells = [_lost(runs[s].worst(choose)) if s in runs and runs[s].complete else "-" for s in results.seeds]
            if set(cells) != {"-"}:
                lines.append(f"| {model}, {kind} | {' | '.join(cells)} |")
            if kind == "all attacks" and all(one.startswith("0 of") for one in cells):
                clean.append((model, len(cells)))
    bounds = [
        f"`{model}` lost nothing with {n} of {n} seeds: up to {losing_seeds_bound(n):.0%} of seeds may lose something "
        "(95%)."
        for model, n in clean
    ]
    return "\n".join([*lines, *(["", *bounds] if bounds else [])])


def _lost(found: dict[str, bool]) -> str:
    return f"{sum(found.values())} of {len(found)}" if found else "-"


def rows(name: str, size: str, models: str, *wanted: str) -> str:
    """Return some rows of a table for some mechanisms, with the caption."""
    results, chosen = load(name), models.split(" ")
    head = ["examples lost", *(f"`{model}`" if model == "channel" else model for model in chosen)]
    lines = [head, [":--", *["--:"] * len(chosen)]]
    for row in wanted:
        cells = [cell(ROWS[_ROW[row]], results.of(size, model), results.settings, labels(name)) for model in chosen]
        lines.append([row, *cells])
    return f"{caption(name)}\n\n" + "\n".join(f"| {' | '.join(line)} |" for line in lines)


_ROW = {"fixed texts": "all fixed texts", "fixed texts and searches": "**worst case**"}


def transferred() -> str:
    """Return the table of texts found on one model and sent to another."""
    record = json.loads((RECORDS / "transfer.json").read_text(encoding="utf-8"))
    study = Study(searched=30)
    asked = [e for seed in study.seeds for e in stratified(attackable(examples_of(study, seed)), study.searched)]
    worth = effective_trials(map(template, asked))
    where = f"`transfer.json`, commit {record['environment']['commit'][:7]}, seeds 0, 1, 2; judged by the first judge."
    return f"{where}\n\n{table_of_counts(record['counts'], worth)}"


def budget() -> str:
    """Return the table of GCG with a larger and the usual budget, on the same examples."""
    lines = ["| lost to GCG | n | 100 steps of 64 | 250 steps of 512 |", "| :-- | --: | --: | --: |"]

    def won(run: Run) -> dict[str, bool]:
        return run.worst(
            lambda p: p.attack == "gcg" and p.parameters["objective"] == "ce" and p.parameters["length"] == 20
        )

    for arm in ("plain", "pft", "channel"):
        pairs = [
            (won(a), won(b)) for a, b in zip(load("gcg").of("0.1M", arm), load("deep").of("0.1M", arm), strict=True)
        ]
        few, many = (sum(one[i][id] for one in pairs for id in one[0]) for i in (1, 0))
        lines.append(f"| {arm} | {sum(len(a) for a, _ in pairs)} | {few} | {many} |")
    return "\n".join([caption("gcg"), "", *lines])


def facts() -> str:
    """Return counts of templates, distinct inputs, unreadable codes, test sentences near training, and noise."""
    from rolesafe import RoleConfig
    from rolesafe.roles.encoding import encode_one
    from rolesafe.tasks import vocabulary
    from rolesafe.training.tiny import tiny_llama, tiny_tokenizer

    study = Study()
    tokenizer = tiny_tokenizer(vocabulary(study.families))
    model = tiny_llama(len(tokenizer), seed=0)
    asked = attackable(examples_of(study, 0))
    every = [e for seed in study.seeds for e in attackable(examples_of(study, seed))]
    points = [config for config in attacks(study, 0)[0] if config.name != "none"]
    distinct: Counter[int] = Counter()
    unread: dict[str, list[int]] = {}
    for example in asked:
        sent = set()
        for config in points:
            one = encode_one(
                tokenizer, attacked(tokenizer, example, config, None, model), config=RoleConfig(),
                add_generation_prompt=True,
            )  # fmt: skip
            sent.add((tuple(one.input_ids), tuple(one.role_ids)))
            if config.name == "encoded":
                unread.setdefault(config.parameters["code"], []).append(one.input_ids.count(tokenizer.unk_token_id))
        distinct[len(sent)] += 1
    codes = [code for code, counts in unread.items() if min(counts) > 0]
    trained = conversations(study, study.sizes[0], 0)
    known = sentences(trained)
    near = Counter(nearest(s, known) for s in sentences(e.messages for e in asked))
    far = ", ".join(f"{words} for {n}" for words, n in sorted(near.items()))
    kinds = [len(set(map(template, some))) for some in (asked, every)]
    lines = [
        f"- **Examples.** The {len(asked)} attacked examples of seed 0 are {kinds[0]} templates of system text and "
        f"attacker's message, with other places and secrets in them; the {len(every)} of three seeds are {kinds[1]}, "
        f"worth {effective_trials(map(template, every)):.0f} independent ones.",
        f"- **Attacks.** The {len(points)} points of {len({c.name for c in points})} fixed attacks are {min(distinct)} "
        f"to {max(distinct)} distinct inputs: several differ in white space only, which the tokenizer does not keep.",
        f"- **Vocabulary.** {len(tokenizer)} tokens. {len(codes)} of {len(unread)} encoded attacks "
        f"({', '.join(codes)}) reach the model as unknown tokens; the other one keeps the words and reverses their "
        "order, which nothing in training does. None of them tests the reading of a code.",
        f"- **Test and training.** With places and secrets left open the test examples of seed 0 have "
        f"{sum(near.values())} sentences. Their distance to the nearest training sentence, in words: {far}.",
        f"- **Noise in training.** {study.noise:.0%} of the training rows have 1 to 24 random words of the vocabulary "
        "in the attacker's message, which is what GCG writes here. All arms are trained against it.",
    ]
    return "\n".join(lines)


BLOCKS: dict[str, Callable[..., str]] = {
    "table": table,
    "targets": targets,
    "seeds": seeds,
    "rows": rows,
    "transfer": transferred,
    "budget": budget,
    "facts": facts,
    "rejudged": lambda: rejudged([RECORDS / "demo.json", RECORDS / "demo_fresh_seeds.json"]),
}
