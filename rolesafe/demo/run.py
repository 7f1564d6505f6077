"""Run the jobs of the demo in parallel, save their results, and write the report."""

from __future__ import annotations

import shlex
from contextlib import closing, suppress
from functools import partial
from pathlib import Path

from rich.console import Console

from rolesafe.demo.job import RULES, load, run_job
from rolesafe.demo.settings import MODELS, ROLE_AWARE, DemoSettings
from rolesafe.demo.short import recipe, write_inputs
from rolesafe.evaluation import Results, Run, environment
from rolesafe.extras import require
from rolesafe.files import locked
from rolesafe.report import print_table, write_report
from rolesafe.report.chart import require_matplotlib
from rolesafe.terminal import as_text
from rolesafe.workers import Job, Update, failures, progress_bars, updates

RESULTS = "results.json"


class DemoError(RuntimeError):
    """Failed jobs, with reasons, on one line."""


def run_demo(
    settings: DemoSettings, directory: Path, *, workers: int | None = None, console: Console | None = None
) -> Results:
    """Train, attack and compare; write `results.json`, chart and page into `directory`.

    Finished jobs in `directory` with the same settings are kept. A failed or killed job does not end the others. Ctrl-C
    ends the run and writes a report marked as partial.

    Args:
        settings: Settings of the demo.
        directory: Created if missing; used by one run at a time.
        workers: Parallel processes of one core each; default: one per core, at most one per job (one on a GPU).
        console: Output for progress and the table.

    Returns:
        The results, also of earlier jobs.

    Raises:
        ValueError: `directory` has results of other settings or unreadable ones, is used by another run, or cannot be
            written, or the model to retrain cannot be read.
        ImportError: matplotlib, scipy or statsmodels is missing.
        DemoError: A job failed; the report of the others is written.
        OSError: A file cannot be written.
    """
    require_matplotlib()
    for module in ("scipy", "statsmodels"):  # the report at the end needs them
        require(module, "demo")
    with locked(directory):
        return _run(settings, directory, workers, console or Console())


def _run(settings: DemoSettings, directory: Path, workers: int | None, console: Console) -> Results:
    runs = _earlier(settings, directory)
    jobs: list[Job] = [(name, seed) for seed in settings.seeds for name in MODELS]
    todo = [job for job in jobs if job not in runs]
    if settings.model is not None and todo:
        _, tokenizer = load(settings, ROLE_AWARE, settings.seeds[0])  # fail early for an unreadable model
        for seed in settings.seeds:
            for name in MODELS:
                recipe(settings, directory, name, seed)
    failed: dict[Job, Update] = {}
    _results(settings, jobs, runs).save(directory / RESULTS)  # claims the directory
    if settings.model is not None and todo:
        write_inputs(settings, directory, tokenizer, RULES)
    try:
        with (
            progress_bars(console, jobs, todo) as tell,
            closing(updates(partial(run_job, settings, directory), todo, workers)) as news,
        ):
            for update in news:
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
            as_text(f"Interrupted: reporting finished measurements. To resume: {_again(settings, directory)}", "yellow")
        )
    with suppress(OSError):  # missing, or with checkpoints of an unfinished job
        (directory / "checkpoints").rmdir()
    results = _results(settings, jobs, runs)
    results.save(directory / RESULTS)
    if results.runs:
        paths = write_report(results, directory)
        print_table(results, console)
        if settings.model is not None:
            pair = [shlex.quote(str(directory / "models" / f"{name}-{settings.seeds[0]}")) for name in MODELS[::-1]]
            console.print("Talk to both:", as_text(f"rolesafe chat {pair[0]} --compare {pair[1]}"), soft_wrap=True)
        console.print("Written:", *(as_text(path) for path in (directory / RESULTS, *paths)), sep="\n  ")
    if failed:
        raise DemoError(
            f"{len(failed)} of {len(jobs)} jobs failed: {failures(failed, directory / 'failed')}. To repeat only "
            f"these: {_again(settings, directory)}"
        )
    return results


def _again(settings: DemoSettings, directory: Path) -> str:
    """Return the command that resumes in `directory`."""
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
    """Return the finished runs in `directory`.

    Raises:
        ValueError: The file is unreadable, or of other settings.
    """
    path = directory / RESULTS
    if not path.exists():
        return {}
    try:
        found = Results.load(path)
    except ValueError as error:
        raise ValueError(
            f"`directory`: {error}. Give another directory, or delete that file to run its jobs again."
        ) from error
    if found.settings != settings.to_dict():
        raise ValueError(
            f"`directory`: expected results of these settings, got others in {path}. Give another directory, or delete "
            "that file."
        )
    return {(run.model, run.seed): run for run in found.runs if run.complete}
