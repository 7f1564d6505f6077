"""Command line of the evaluation; see `--help`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, cast

import typer

from benchmarks.pretrained import page as pages
from benchmarks.pretrained.arms import ARMS, BATCH, LENGTH, MODEL, RATE, STEPS, TRAINING
from benchmarks.pretrained.evaluate import evaluate as run
from benchmarks.pretrained.goals import DEFAULT
from benchmarks.pretrained.record import Record
from benchmarks.pretrained.settings import CASES, DATA, DTYPES, Settings
from benchmarks.pretrained.suites import SUITES
from benchmarks.pretrained.train import Plan
from benchmarks.pretrained.train import train as train_arms
from rolesafe.audit.load import Dtype
from rolesafe.cli import Commands
from rolesafe.terminal import INTERRUPTED, run_main

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
def arms() -> None:
    """List the arms of the comparison with the settings of their recipes."""
    for one in ARMS.values():
        typer.echo(f"{one.name:<10} {one.about}")
        for key, value in (one.changes or {}).items():
            typer.echo(f"{'':<13}{key}: {value}")


@app.command()
def train(
    out: Annotated[Path, typer.Option(help="Folder of checkpoints and records; an earlier run is resumed.")],
    chosen: Annotated[list[str] | None, typer.Option("--arm", help=f"Some of {', '.join(ARMS)}; default: all.")] = None,
    seeds: Annotated[list[int] | None, typer.Option("--seed", help="Training seeds; default: 0.", min=0)] = None,
    model: Annotated[str, typer.Option(help="Base model: directory, hub id or .gguf file.")] = MODEL,
    data: Annotated[Path, typer.Option(help="Folder with test sets and training data.", show_default=False)] = DATA,
    training: Annotated[
        str | None, typer.Option("--training-data", help=f"File or hub id; default: {TRAINING} in --data.")
    ] = None,
    steps: Annotated[int, typer.Option(help="Optimizer steps.", min=1)] = STEPS,
    batch_size: Annotated[int, typer.Option(help="Rows of a step.", min=1)] = BATCH,
    learning_rate: Annotated[float, typer.Option(help="Peak learning rate of the base parameters.")] = RATE,
    role_rate_factor: Annotated[
        float, typer.Option(help="Factor of each arm's learning rates of the role parameters, to tune all arms alike.")
    ] = 1.0,
    max_length: Annotated[int, typer.Option(help="Longest row in tokens.", min=8)] = LENGTH,
    dtype: Annotated[str, typer.Option(help="Dtype of training and evaluation.")] = "auto",
    suites: Annotated[
        list[str] | None, typer.Option("--suite", help="As for evaluate; default: all but adaptive.")
    ] = None,
    train_only: Annotated[bool, typer.Option("--train-only", help="Do not evaluate.")] = False,
    limit: Annotated[int | None, typer.Option(help="Maximum number of rows of each test set.", min=1)] = None,
    cases: Annotated[str, typer.Option(help=f"Injected texts: {' or '.join(CASES)}.")] = "core",
    tool: Annotated[bool, typer.Option(help="Untrusted data of training and tests in a tool turn.")] = True,
    secrets: Annotated[int, typer.Option(help="Number of secrets of the leak suite.", min=1)] = 200,
    ifeval_tokens: Annotated[int, typer.Option(help="Maximum length of an IFEval reply, in tokens.", min=1)] = 512,
    device: Annotated[str | None, typer.Option(help="Device of the evaluation; default: a GPU.")] = None,
    batch_tokens: Annotated[int, typer.Option(help="Maximum tokens of an evaluated batch.", min=1)] = 8192,
) -> None:
    """Train arms on the same base, data and steps, evaluate each, and write its record. Rerun to resume.

    The default budget is 120 steps of 8 rows, about 144,000 tokens an arm. Ctrl-C saves and exits with 130.
    """
    wanted = () if train_only else tuple(suites or (name for name in SUITES if name != "adaptive"))
    plan = Plan(
        out=out,
        data=data,
        arms=tuple(chosen or ARMS),
        seeds=tuple(seeds or (0,)),
        suites=wanted,
        settings=Settings(
            limit=limit, cases=cases, tool=tool, secrets=secrets, ifeval_tokens=ifeval_tokens, dtype=cast(Dtype, dtype)
        ),
        recipe={
            "model": model, "training": training, "steps": steps, "batch_size": batch_size, "dtype": dtype,
            "learning_rate": learning_rate, "max_length": max_length, "tool_share": float(tool),
        },
        factor=role_rate_factor,
    )  # fmt: skip
    if not train_arms(plan, device=device, batch_tokens=batch_tokens):
        raise typer.Exit(INTERRUPTED)


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
