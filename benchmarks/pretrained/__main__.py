"""The command line of the evaluation; see `--help`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from benchmarks.pretrained import page as pages
from benchmarks.pretrained.evaluate import evaluate as run
from benchmarks.pretrained.goals import DEFAULT
from benchmarks.pretrained.record import Record
from benchmarks.pretrained.settings import CASES, DATA, DTYPES, Settings
from benchmarks.pretrained.suites import SUITES
from rolesafe.cli import Commands
from rolesafe.terminal import run_main

_TIMES = "\n\n".join(f"{name}: {suite.about}. {suite.time}." for name, suite in SUITES.items())
_HELP = f"""Evaluate a checkpoint: plain, retrained, or role-aware.

Every row is kept in the record; rerun the command to resume. Give the same --seed and --limit for all models that are
compared: they get the same rows.

Suites, with estimated times of all rows for SmolLM2-135M in float32 on one CPU core of its own. Use --dtype bfloat16 on
a GPU, or on a processor with bfloat16 units; other processors are many times slower in it.

{_TIMES}
"""

app = typer.Typer(
    cls=Commands, add_completion=False, help="Evaluation of pretrained chat models.", pretty_exceptions_enable=False
)


@app.command(help=_HELP)
def evaluate(
    model: Annotated[str, typer.Argument(help="Directory or hub id.")],
    record: Annotated[Path, typer.Option(help="JSON file for all rows; an existing one is resumed.")],
    suites: Annotated[
        list[str] | None, typer.Option("--suite", help=f"Some of {', '.join(SUITES)}; default: all but adaptive.")
    ] = None,
    data: Annotated[Path, typer.Option(help="Folder with the test sets.", show_default=False)] = DATA,
    arm: Annotated[str | None, typer.Option(help="Name in tables; default: the model's name.")] = None,
    training_seed: Annotated[int, typer.Option(help="Training seed of the checkpoint.", min=0)] = 0,
    base: Annotated[str | None, typer.Option(help="The untouched model, for KL and cost.")] = None,
    transfer: Annotated[Path | None, typer.Option(help="Record whose found attacks are sent to this model.")] = None,
    limit: Annotated[int | None, typer.Option(help="Most rows of each set.", min=1)] = None,
    seed: Annotated[int, typer.Option(help="Draws rows, goals and phrasings.", min=0)] = 0,
    cases: Annotated[str, typer.Option(help=f"Injected texts: {' or '.join(CASES)}.")] = "core",
    tool: Annotated[bool, typer.Option(help="Untrusted data in a tool turn.")] = False,
    goals: Annotated[list[str] | None, typer.Option("--goal", help="Goals of injections; default: all.")] = None,
    dtype: Annotated[str, typer.Option(help=f"Of the weights: {', '.join(DTYPES)}.")] = "auto",
    device: Annotated[str | None, typer.Option(help="Such as cpu or cuda; default: a GPU where there is one.")] = None,
    batch_tokens: Annotated[int, typer.Option(help="Most tokens in a batch, replies included.", min=1)] = 8192,
    secrets: Annotated[int, typer.Option(help="Secrets of the leak suite.", min=1)] = 200,
    ifeval_tokens: Annotated[int, typer.Option(help="Longest IFEval reply, in tokens.", min=1)] = 512,
    adaptive: Annotated[int, typer.Option(help="Examples of each adaptive attack.", min=1)] = 8,
    gcg_steps: Annotated[int, typer.Option(help="Steps of GCG.", min=1)] = 100,
    gcg_width: Annotated[int, typer.Option(help="Candidates of a GCG step.", min=1)] = 64,
    beams: Annotated[int, typer.Option(help="Beams of BEAST, and branches of each.", min=1)] = 8,
    best_of: Annotated[int, typer.Option(help="Variants of best-of-n.", min=1)] = 64,
    restart: Annotated[bool, typer.Option(help="Measure the given suites anew.")] = False,
) -> None:
    """Evaluate a checkpoint."""
    settings = Settings(
        limit=limit, seed=seed, cases=cases, tool=tool, goals=tuple(goals or DEFAULT), dtype=dtype, secrets=secrets,
        ifeval_tokens=ifeval_tokens, adaptive=adaptive, gcg_steps=gcg_steps, gcg_width=gcg_width, beams=beams,
        best_of=best_of,
    )  # fmt: skip
    chosen = suites or [name for name in SUITES if name != "adaptive"]
    run(
        model, record, chosen, settings, folder=data, arm=arm, training_seed=training_seed, base=base,
        transfer=transfer, device=device, batch_tokens=batch_tokens, restart=restart,
    )  # fmt: skip


@app.command()
def page(
    records: Annotated[Path, typer.Option(help="Folder of records.")] = pages.RECORDS,
    against: Annotated[str | None, typer.Option(help="Arm that the others are tested against: plain training.")] = None,
    candidate: Annotated[str | None, typer.Option(help="Arm whose targets are checked.")] = None,
    published: Annotated[str | None, typer.Option(help="Best published mechanism, for a target.")] = None,
    file: Annotated[Path, typer.Option(help="Markdown page with markers.")] = pages.PAGE,
    show: Annotated[bool, typer.Option("--print", help="Print the tables instead of writing the page.")] = False,
) -> None:
    """Write the tables of several records, side by side, between the markers of a Markdown page."""
    found = pages.read(records)
    plan = pages.Plan(against=against, candidate=candidate, published=published)
    if show:
        typer.echo(pages.tables(found, plan))
    else:
        pages.write(file, found, plan)
        typer.echo(f"{file}")


@app.command()
def compact(
    records: Annotated[list[Path], typer.Argument(help="Records with replies.")],
    out: Annotated[Path, typer.Option(help="Folder for the small copies.")] = pages.RECORDS,
) -> None:
    """Copy records without replies, which may quote the test sets."""
    for path in records:
        Record.load(path).without_replies().save(out / path.name)
        typer.echo(f"{out / path.name}")


if __name__ == "__main__":
    run_main(lambda: app())
