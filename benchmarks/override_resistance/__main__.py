"""Run or resume the study and write its report.

    python -m benchmarks.override_resistance --out runs/resistance

Finished records are kept: rerun the command to resume after Ctrl-C. Trained models are kept in OUT/models; a study with
other attacks or a larger budget reuses them with --models.
"""

from __future__ import annotations

import json
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from benchmarks.override_resistance.arms import ARMS, BASELINES, PLAIN
from benchmarks.override_resistance.job import run_job
from benchmarks.override_resistance.run_report import write_comparison
from benchmarks.override_resistance.settings import SEARCHES, SIZES, TRIES, Study
from benchmarks.override_resistance.store import Store
from benchmarks.override_resistance.train import start
from rolesafe.attacks.forging import forge
from rolesafe.cli import run_command
from rolesafe.evaluation import Rate, Run
from rolesafe.evaluation.evidence import unlearned
from rolesafe.files import locked, read_json, write_whole
from rolesafe.terminal import INTERRUPTED, as_text, print_error
from rolesafe.workers import failures, progress_bars, updates

console = Console()


def main(
    out: Annotated[Path, typer.Option(help="Directory for records, models and the report.")],
    models: Annotated[Path | None, typer.Option(help="Directory of trained models; default: OUT/models.")] = None,
    sizes: Annotated[list[str] | None, typer.Option("--size", help=f"Model sizes: {', '.join(SIZES)}.")] = None,
    arms: Annotated[list[str] | None, typer.Option("--arm", help=f"Mechanisms: {', '.join(ARMS)}.")] = None,
    seeds: Annotated[int, typer.Option(help="Number of training seeds.", min=1)] = 3,
    first_seed: Annotated[int, typer.Option(help="First training seed.", min=0)] = 0,
    searches: Annotated[list[str] | None, typer.Option("--search", help=f"Searches: {', '.join(SEARCHES)}.")] = None,
    searched: Annotated[int | None, typer.Option(help="Examples per seed that searches attack.", min=0)] = None,
    candidate: Annotated[str | None, typer.Option(help="Arm whose targets are checked; default: channel.")] = None,
    base: Annotated[str | None, typer.Option(help="Checkpoint to retrain, for --size pretrained.")] = None,
    text: Annotated[str | None, typer.Option(help="File of ordinary text, for --size 30M.")] = None,
    examples: Annotated[int | None, typer.Option(help="Test examples per seed; half are attacked.")] = None,
    place: Annotated[str | None, typer.Option(help="Place of the system text in test examples: first, last.")] = None,
    gcg_steps: Annotated[int | None, typer.Option(help="Steps of gradient attacks.", min=1)] = None,
    gcg_width: Annotated[int | None, typer.Option(help="Candidates per step of gradient attacks.", min=1)] = None,
    quick: Annotated[bool, typer.Option(help="Few steps of everything, as a smoke test.")] = False,
    workers: Annotated[
        int | None, typer.Option(help="Parallel processes; default: one per core, 1 on a GPU.", min=1)
    ] = None,
) -> None:
    """Train every mechanism, attack all of them, and report."""
    given = {
        "sizes": sizes and tuple(sizes),
        "arms": arms and tuple(arms),
        "seeds": tuple(range(first_seed, first_seed + seeds)),
        "searches": searches and tuple(searches),
        "searched": searched,
        "candidate": candidate,
        "base": base,
        "text": text,
        "examples": examples,
        "place": place,
        "gcg_steps": gcg_steps,
        "gcg_width": gcg_width,
        "quick": quick,
    }
    study = Study(**{name: value for name, value in given.items() if value is not None})  # type: ignore[arg-type]
    with locked(out, "out"):
        status = run(study, out, models or out / "models", workers)
    raise typer.Exit(status)


def run(study: Study, out: Path, models: Path, workers: int | None = None) -> int:
    """Run the missing jobs, write the report (also after Ctrl-C), and return the exit status."""
    records = out / "records"
    records.mkdir(parents=True, exist_ok=True)
    _claim(study, out)
    store = Store(records)
    try:
        todo = [job for job in study.jobs if not ((found := store.load(job)) and found.complete)]
    except ValueError as error:
        raise ValueError(f"`out`: {error}. Move that file away, and its run is measured again.") from error
    # short jobs last, so that all workers end at about the same time
    todo.sort(key=lambda job: ARMS[job[1]].kind == "steering")
    failed, status = {}, 0
    try:
        with (
            progress_bars(console, study.jobs, todo) as tell,
            closing(updates(partial(run_job, study, records, models), todo, workers)) as news,
        ):
            for update in news:
                tell(update)
                if update.error is not None:
                    failed[update.job] = update
                elif update.stage == "done":
                    console.print(as_text(_line(update.run)))
    except KeyboardInterrupt:
        console.print("Interrupted: reporting finished measurements. Rerun the command to resume.", style="yellow")
        status = INTERRUPTED
    report(study, out)
    if failed:
        reasons = failures(failed, out / "failed")
        message = f"{len(failed)} of {len(study.jobs)} jobs failed: {reasons}. Rerun to repeat only these."
        status = print_error(message, 1)
    return status


def _claim(study: Study, out: Path) -> None:
    """Write the settings into `out`, or refuse an `out` with other settings."""
    path, mine = out / "study.json", json.loads(json.dumps(study.to_dict()))
    if path.exists():
        other = read_json(path, "a study's settings")
        different = [k for k in mine if mine[k] != other.get(k)]
        if different:
            raise ValueError(f"`out`: {path} is of a study with other {', '.join(different)}. Give another directory.")
    write_whole(path, json.dumps(mine, indent=1) + "\n")


def _line(run: Run) -> str:
    worst = "-" if run.worst_case is None else f"{run.worst_case.value:.0%}"
    line = f"{run.model} {run.size} seed {run.seed}: benign {run.utility.benign.value:.0%}, worst case {worst}"
    return f"{line} - {useless}" if (useless := unlearned([run])) else line


def report(study: Study, out: Path, forging_tries: int = TRIES) -> None:
    """Merge the records into results.json, and write the report."""
    store = Store(out / "records")
    try:
        results = store.read(study.jobs)
    except ValueError as error:
        console.print("Nothing to report:", as_text(error))
        return
    parts = {"baseline": PLAIN.name, "candidate": study.candidate}
    plan = {
        **{part: arm for part, arm in parts.items() if arm in results.models},
        "published": [b for b in BASELINES if b in results.models],
    }
    tokenizers = {(type(t).__name__, len(t)): t for t in (start(study, size, 0)[1] for size in results.sizes)}
    forged = [forge(tokenizer, forging_tries).rate for tokenizer in tokenizers.values()]
    settings = {
        **results.settings,
        "command": study.command,
        "comparison": plan,
    }
    results = replace(
        results, settings=settings, forging=Rate(sum(rate.k for rate in forged), sum(rate.n for rate in forged))
    )
    results.save(out / "results.json")
    for path in (out / "results.json", *write_comparison(results, out)):
        console.print(as_text(path, "dim"))


if __name__ == "__main__":
    run_command(main)
