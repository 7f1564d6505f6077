"""Runs the jobs of the demo side by side, keeps what they tell, and writes the report."""

from __future__ import annotations

import shlex
from contextlib import closing, suppress
from functools import partial
from pathlib import Path

from rich.console import Console

from rolesafe.demo.job import load, run_job
from rolesafe.demo.settings import MODELS, ROLE_AWARE, DemoSettings
from rolesafe.evaluation import Results, Run, environment
from rolesafe.files import locked
from rolesafe.report import print_table, write_report
from rolesafe.report.chart import require_matplotlib
from rolesafe.terminal import as_text
from rolesafe.workers import Job, Tell, Update, failures, progress_bars, updates

RESULTS = "results.json"


class DemoError(RuntimeError):
    """Jobs failed; the message says which and why, on one line."""


def run_demo(
    settings: DemoSettings, directory: Path, *, workers: int | None = None, console: Console | None = None
) -> Results:
    """Train, attack and compare; write `results.json`, chart and page into `directory`.

    Finished jobs of an earlier run with the same settings in the same directory are kept. A job that fails, or whose
    process is killed, ends no other one. Ctrl-C ends the run and reports what is there, marked as partial.

    Args:
        settings: What to run.
        directory: Made where it does not exist; one run at a time writes into it.
        workers: Processes at a time, each on one core; default: one per core, at most one per job (one on a GPU).
        console: Where progress and the table go.

    Raises:
        ValueError: `directory` holds results of other settings or none that can be read, another run writes into it,
            it cannot be written, or there is no model to retrain.
        ImportError: matplotlib is missing.
        DemoError: A job failed; the report of the others is written.
        OSError: A file cannot be written, as on a full disk.
    """
    require_matplotlib()
    with locked(directory):
        return _run(settings, directory, workers, console or Console())


def _run(settings: DemoSettings, directory: Path, workers: int | None, console: Console) -> Results:
    runs = _earlier(settings, directory)
    jobs: list[Job] = [(name, seed) for seed in settings.seeds for name in MODELS]
    todo = [job for job in jobs if job not in runs]
    if settings.model is not None and todo:
        load(settings, ROLE_AWARE, settings.seeds[0])  # a model that cannot be read or patched ends the run here
    failed: dict[Job, Update] = {}
    _results(settings, jobs, runs).save(directory / RESULTS)  # from now on the directory is of these settings
    try:
        with (
            progress_bars(console, jobs, todo) as tell,
            closing(updates(partial(_work, settings, directory), todo, workers)) as told,
        ):
            for update in told:
                tell(update)
                if update.error is not None:
                    failed[update.job] = update
                elif update.run is not None:
                    runs[update.job] = update.run
                    if update.stage == "done":
                        console.print(as_text(_line(update.job, update.run)))
                    _results(settings, jobs, runs).save(directory / RESULTS)
    except KeyboardInterrupt:
        console.print(
            as_text(f"Interrupted: reporting what is there. To resume: {_again(settings, directory)}", "yellow")
        )
    with suppress(OSError):  # not there, or kept by a job that can go on
        (directory / "checkpoints").rmdir()
    results = _results(settings, jobs, runs)
    results.save(directory / RESULTS)
    if results.runs:
        paths = write_report(results, directory)
        print_table(results, console)
        console.print("Written:", *(as_text(path) for path in (directory / RESULTS, *paths)), sep="\n  ")
    if failed:
        raise DemoError(
            f"{len(failed)} of {len(jobs)} jobs failed: {failures(failed, directory / 'failed')}. To run only these "
            f"again: {_again(settings, directory)}"
        )
    return results


def _again(settings: DemoSettings, directory: Path) -> str:
    """The command that goes on in `directory`."""
    return f"{settings.command} --run-dir {shlex.quote(str(directory))}"


def _results(settings: DemoSettings, jobs: list[Job], runs: dict[Job, Run]) -> Results:
    return Results(
        runs=tuple(runs[job] for job in jobs if job in runs),
        environment=environment(),
        settings=settings.to_dict(),
        complete=all(job in runs and runs[job].complete for job in jobs),
    )


def _line(job: Job, run: Run) -> str:
    worst = "-" if run.worst_case is None else f"{run.worst_case.value:.0%}"
    return (
        f"{job[0]}, seed {job[1]}: trained in {run.train_seconds:.0f} s, "
        f"benign accuracy {run.utility.benign.value:.0%}, worst-case attack success {worst}"
    )


def _earlier(settings: DemoSettings, directory: Path) -> dict[Job, Run]:
    """Finished runs that lie in `directory` already."""
    path = directory / RESULTS
    if not path.exists():
        return {}
    try:
        found = Results.load(path)
    except ValueError as error:
        raise ValueError(
            f"`directory`: {error}; give another directory, or delete that file and its runs are done again"
        ) from error
    if found.settings != settings.to_dict():
        raise ValueError(
            f"`directory`: {path} is of a run with other settings; give another directory, or delete that file"
        )
    return {(run.model, run.seed): run for run in found.runs if run.complete}


def _work(settings: DemoSettings, directory: Path, job: Job, tell: Tell) -> None:
    name, seed = job
    run_job(settings, name, seed, directory, tell)
