"""Command line of the evaluation; see `--help`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, cast

import typer

from benchmarks.pretrained import page as pages
from benchmarks.pretrained.evaluate import evaluate as run
from benchmarks.pretrained.goals import DEFAULT
from benchmarks.pretrained.record import Record
from benchmarks.pretrained.settings import CASES, DATA, DTYPES, Settings
from benchmarks.pretrained.suites import SUITES
from rolesafe.audit.load import Dtype
from rolesafe.cli import Commands
from rolesafe.terminal import run_main

_TIMES = "\n\n".join(f"{name}: {suite.about}. {suite.time}." for name, suite in SUITES.items())
_HELP = f"""Evaluate a checkpoint: plain, retrained, or role-aware.

The record keeps every row; rerun the command to resume. Models evaluated with the same --seed and --limit get the same
rows, as a comparison requires.

Suites, with estimated times of all rows for SmolLM2-135M in float32 on one idle CPU core. Use --dtype bfloat16 on a GPU
or on a processor with bfloat16 units; other processors are many times slower with it.

{_TIMES}
"""

app = typer.Typer(
    cls=Commands, add_completion=False, help="Evaluation of pretrained chat models.", pretty_exceptions_enable=False
)


@app.command(help=_HELP)
def evaluate(
    model: Annotated[str, typer.Argument(help="Directory or hub id.")],
    record: Annotated[Path, typer.Option(help="JSON file of all rows; an existing one is resumed.")],
    suites: Annotated[
        list[str] | None, typer.Option("--suite", help=f"Some of {', '.join(SUITES)}; default: all but adaptive.")
    ] = None,
    data: Annotated[Path, typer.Option(help="Folder with the test sets.", show_default=False)] = DATA,
    arm: Annotated[str | None, typer.Option(help="Name in tables; default: the model's name.")] = None,
    training_seed: Annotated[int, typer.Option(help="Training seed of the checkpoint.", min=0)] = 0,
    base: Annotated[str | None, typer.Option(help="The untouched model, for KL and cost.")] = None,
    transfer: Annotated[Path | None, typer.Option(help="Record of another model; its attacks are sent.")] = None,
    limit: Annotated[int | None, typer.Option(help="Maximum number of rows of each set.", min=1)] = None,
    seed: Annotated[int, typer.Option(help="Seed of rows, goals and phrasings.", min=0)] = 0,
    cases: Annotated[str, typer.Option(help=f"Injected texts: {' or '.join(CASES)}.")] = "core",
    tool: Annotated[bool, typer.Option(help="Untrusted data in a tool turn.")] = False,
    goals: Annotated[list[str] | None, typer.Option("--goal", help="Goals of injections; default: all.")] = None,
    dtype: Annotated[str, typer.Option(help=f"Dtype of the weights: {', '.join(DTYPES)}.")] = "auto",
    device: Annotated[str | None, typer.Option(help="Such as cpu or cuda; default: a GPU where there is one.")] = None,
    batch_tokens: Annotated[int, typer.Option(help="Maximum tokens of a batch, replies included.", min=1)] = 8192,
    secrets: Annotated[int, typer.Option(help="Number of secrets of the leak suite.", min=1)] = 200,
    ifeval_tokens: Annotated[int, typer.Option(help="Maximum length of an IFEval reply, in tokens.", min=1)] = 512,
    adaptive: Annotated[int, typer.Option(help="Number of examples of each adaptive attack.", min=1)] = 8,
    gcg_steps: Annotated[int, typer.Option(help="Number of GCG steps.", min=1)] = 100,
    gcg_width: Annotated[int, typer.Option(help="Number of candidates of a GCG step.", min=1)] = 64,
    beams: Annotated[int, typer.Option(help="Number of BEAST beams, and of branches of each.", min=1)] = 8,
    best_of: Annotated[int, typer.Option(help="Number of variants of best-of-n.", min=1)] = 64,
    restart: Annotated[bool, typer.Option(help="Discard earlier rows of the given suites.")] = False,
) -> None:
    """Evaluate a checkpoint."""
    settings = Settings(
        limit=limit, seed=seed, cases=cases, tool=tool, goals=tuple(goals or DEFAULT),
        dtype=cast(Dtype, dtype), secrets=secrets, ifeval_tokens=ifeval_tokens, adaptive=adaptive,
        gcg_steps=gcg_steps, gcg_width=gcg_width, beams=beams, best_of=best_of,
    )  # fmt: skip
    chosen = suites or [name for name in SUITES if name != "adaptive"]
    run(
        model, record, chosen, settings, folder=data, arm=arm, training_seed=training_seed, base=base,
        transfer=transfer, device=device, batch_tokens=batch_tokens, restart=restart,
    )  # fmt: skip


@app.command()
def page(
    records: Annotated[Path, typer.Option(help="Folder of records.")] = pages.RECORDS,
    against: Annotated[str | None, typer.Option(help="Reference arm of the tests: plain training.")] = None,
    candidate: Annotated[str | None, typer.Option(help="Arm of the mechanism, checked against the targets.")] = None,
    published: Annotated[str | None, typer.Option(help="Arm of the best published mechanism.")] = None,
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
    """Copy records without the replies, because replies may quote the test sets."""
    for path in records:
        Record.load(path).without_replies().save(out / path.name)
        typer.echo(f"{out / path.name}")


if __name__ == "__main__":
    run_main(lambda: app())
