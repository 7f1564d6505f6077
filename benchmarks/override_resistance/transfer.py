"""Transfer of attacks: texts found on one mechanism, sent to another. Shows whether a defence only misleads searches.

    python -m benchmarks.override_resistance.transfer --models runs/resistance/models --out runs/transfer

Missing models of the study are trained. Every search runs on the sources; the texts are sent to every target, with the
target's own roles. Counts go to OUT/transfer.json, search results to OUT/*.jsonl: rerun the command to resume.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from contextlib import closing
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from benchmarks.override_resistance.kept import Kept, fingerprint
from benchmarks.override_resistance.measure import attacks, examples_of, stratified
from benchmarks.override_resistance.settings import Study
from benchmarks.override_resistance.train import obtain
from rolesafe.attacks import AttackResult, attackable, transfer
from rolesafe.cli import run_command
from rolesafe.evaluation import Rate, environment, resistance
from rolesafe.evaluation.statistics import clustered_interval
from rolesafe.files import locked, write_whole
from rolesafe.terminal import INTERRUPTED, as_text, print_error
from rolesafe.workers import Job, Tell, Update, failures, progress_bars, updates

SEARCHES = ("gcg", "gcg-injection", "beam", "best-of-n", "worst-insertion")
"""Searches whose losses work on every source; the others need a role-aware model."""

console = Console()


def main(
    out: Annotated[Path, typer.Option(help="Directory for counts and found texts.")],
    models: Annotated[Path, typer.Option(help="Directory of the study's trained models.")],
    size: Annotated[str, typer.Option(help="As in the study.")] = "0.1M",
    sources: Annotated[list[str] | None, typer.Option("--source", help="Default: plain, pft.")] = None,
    targets: Annotated[list[str] | None, typer.Option("--target", help="Default: plain, pft, channel.")] = None,
    seeds: Annotated[int, typer.Option(help="As in the study.", min=1)] = 3,
    searched: Annotated[int, typer.Option(help="Examples of each seed.", min=1)] = 30,
    searches: Annotated[list[str] | None, typer.Option("--search", help=f"Default: {', '.join(SEARCHES)}.")] = None,
    quick: Annotated[bool, typer.Option(help="Few steps of everything, as a smoke test.")] = False,
    workers: Annotated[int | None, typer.Option(help="As in the study.", min=1)] = None,
) -> None:
    """Search on the sources, send the texts to the targets, and count successes."""
    sources, targets = sources or ["plain", "pft"], targets or ["plain", "pft", "channel"]
    study = Study(
        sizes=(size,),
        arms=tuple(dict.fromkeys([*sources, *targets])),
        seeds=tuple(range(seeds)),
        searched=searched,
        searches=tuple(searches or SEARCHES),
        quick=quick,
    )
    with locked(out, "out"):
        status = run(study, sources, targets, models, out, workers)
    raise typer.Exit(status)


def run(study: Study, sources: list[str], targets: list[str], models: Path, out: Path, workers: int | None) -> int:
    """Run all jobs, write the counts, and return the exit status."""
    (size,) = study.sizes
    jobs = [(size, source, seed) for source in sources for seed in study.seeds]
    failed, found, status = {}, {}, 0
    try:
        with (
            progress_bars(console, jobs, jobs) as tell,
            closing(updates(partial(send_job, study, tuple(targets), models, out), jobs, workers)) as news,
        ):
            for update in news:
                tell(update)
                if update.error is not None:
                    failed[update.job] = update
                elif update.stage == "done":
                    found[update.job] = update.run
    except KeyboardInterrupt:
        console.print("Interrupted: counting finished jobs. Rerun the command to resume.", style="yellow")
        status = INTERRUPTED
    counts = [count for job in jobs if job in found for count in found[job]]
    complete = len(found) == len(jobs)
    where = asdict(environment())
    record = {"environment": where, "settings": study.to_dict(), "complete": complete, "counts": counts}
    write_whole(out / "transfer.json", json.dumps(record, indent=1) + "\n")
    for line in table(counts).splitlines():
        console.print(as_text(line), soft_wrap=True)
    if failed:
        reasons = failures(failed, out / "failed")
        message = f"{len(failed)} of {len(jobs)} jobs failed: {reasons}. Rerun to repeat only these."
        status = print_error(message, 1)
    return status


def send_job(study: Study, targets: tuple[str, ...], models: Path, out: Path, job: Job, tell: Tell) -> None:
    """Search on one source with one seed, and send the texts to all targets."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    size, source, seed = job
    examples = stratified(attackable(examples_of(study, seed)), study.searched)
    model, tokenizer, _ = obtain(study, size, source, seed, models, lambda _: None)
    kept = Kept(out / f"{size}--{source}--{seed}.jsonl", fingerprint(model))
    results = []
    for i, config in enumerate(attacks(study, seed)[1]):
        tell(Update(job, config.name, 0.9 * i / len(study.searches)))
        (result,) = resistance(model, tokenizer, examples, [config], done=kept.results).results
        if result not in kept.results:
            kept.add(result)
        results.append(result)
    counts = []
    for target in targets:
        tell(Update(job, f"to {target}", 0.9))
        model, tokenizer, _ = obtain(study, size, target, seed, models, lambda _: None)
        counts += list(_counts(results, [transfer(model, tokenizer, examples, r) for r in results], job, target))
    tell(Update(job, "done", 1.0, counts))


def _counts(found: list[AttackResult], sent: list[AttackResult], job: Job, target: str) -> Iterator[dict[str, Any]]:
    """Yield, for each search and for all of them by example (search None): texts, successes on source and target.

    Texts that could not be sent to the target (too long, out of memory) are not counted.
    """
    size, source, seed = job
    won, here = ({(r.config.label, o.id): o.success for r in results for o in r.outcomes} for results in (found, sent))

    def count(search: str | None, names: list[list[tuple[str, str]]]) -> dict[str, Any]:
        lost = [any(won[name] for name in of_one) for of_one in names]
        wins = [any(won[name] and here[name] for name in of_one) for of_one in names]
        anyway = [any(here[name] for name in of_one) for of_one in names]
        where = {"size": size, "source": source, "target": target, "seed": seed, "search": search}
        return where | {"n": len(names), "won": sum(lost), "of_these": sum(wins), "of_all": sum(anyway)}

    for result in found:
        yield count(result.config.label, [[name] for name in won if name[0] == result.config.label and name in here])
    ids = dict.fromkeys(id for _, id in here)
    yield count(None, [[name for name in here if name[1] == id] for id in ids])


def table(counts: list[dict[str, Any]], trials: float = math.inf) -> str:
    """Return a Markdown table: for each source, examples lost there, and examples each target loses to its texts.

    Args:
        counts: As in OUT/transfer.json.
        trials: Effective number of independent trials behind each interval; default: all examples.
    """
    whole = [c for c in counts if c["search"] is None]
    targets = list(dict.fromkeys(c["target"] for c in whole))
    lines = [f"| texts found on | win there | {' | '.join(f'win on {t}' for t in targets)} |"]
    lines.append(f"| :-- | --: |{' --: |' * len(targets)}")
    for source in dict.fromkeys(c["source"] for c in whole):
        of = {t: [c for c in whole if (c["source"], c["target"]) == (source, t)] for t in targets}
        chosen = [(of[targets[0]], "won"), *((of[t], "of_all") for t in targets)]
        rates = [Rate(sum(c[key] for c in some), sum(c["n"] for c in some)) for some, key in chosen]
        lines.append(f"| {source} | {' | '.join(_cell(rate, trials) for rate in rates)} |")
    return "\n".join(lines)


def _cell(rate: Rate, trials: float) -> str:
    low, high = clustered_interval(rate, trials)
    return f"{rate.k} of {rate.n} ({100 * low:.1f} to {100 * high:.1f}%)"


if __name__ == "__main__":
    run_command(main)
