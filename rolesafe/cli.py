"""Command line: `rolesafe demo`, `inspect`, `mechanisms`, `audit`, `depth`, `retrain`, `chat` and `serve`.

Exit statuses are those of :mod:`rolesafe.terminal`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text
from typer.core import TyperGroup

import rolesafe
from rolesafe.chat.command import chat
from rolesafe.retrain.command import retrain
from rolesafe.serve.command import serve
from rolesafe.terminal import INTERRUPTED, as_text, guard_terminal, one_line, print_error, run_main, status_of

UsageError: Any = typer.BadParameter.__bases__[0]
"""Error of typer for arguments that do not parse; from click in older versions."""


def run_command(function: Callable[..., Any]) -> NoReturn:
    """Run `function` as the only command of a script and exit, with the errors and statuses of `rolesafe`."""
    command = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    command.command()(function)
    run_main(lambda: _parsed(lambda: command(standalone_mode=False)))


def _parsed(command: Callable[[], Any]) -> Any:
    """Run a command and return its status; 2 if its arguments do not parse."""
    try:
        return command()
    except UsageError as error:
        return print_error(error.format_message(), 2)


class Commands(TyperGroup):
    """Commands with errors on one line and the exit statuses of :mod:`rolesafe.terminal`."""

    def main(self, args: Sequence[str] | None = None, *rest: Any, **options: Any) -> Any:
        """Run a command and exit with its status."""
        options["standalone_mode"] = False
        run = super().main
        sys.exit(status_of(lambda: _parsed(lambda: run(args, *rest, **options))))


app = typer.Typer(
    cls=Commands,
    add_completion=False,
    invoke_without_command=True,
    help="Role-aware attention for transformers: attention that depends on the role of each token.",
    pretty_exceptions_enable=False,
)

Preset = Annotated[str, typer.Option(help="Preset of RoleConfig, see `rolesafe mechanisms`.")]


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"rolesafe {rolesafe.__version__}")
        raise typer.Exit


@app.callback()
def options(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Role-aware attention for transformers: attention that depends on the role of each token."""
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())
        raise typer.Exit(2)


@app.command()
def demo(
    model: Annotated[
        str | None, typer.Option(help="Directory or hub id to retrain instead of a tiny model; a short 'retrain'.")
    ] = None,
    run_dir: Annotated[Path | None, typer.Option(help="Directory of the results; default: runs/<time>.")] = None,
    seeds: Annotated[
        int | None, typer.Option(help="Number of seeds, each for a pair of models; default: 3, with --model 1.", min=1)
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Training steps of each model.", min=1)] = None,
    batch_size: Annotated[int | None, typer.Option(help="Conversations per training step.", min=1)] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Peak learning rate of the base parameters.")] = None,
    role_learning_rate: Annotated[float | None, typer.Option(help="Peak learning rate of the role parameters.")] = None,
    examples: Annotated[int | None, typer.Option(help="Test examples; half of them are attacked.", min=6)] = None,
    position_gap: Annotated[int | None, typer.Option(help="Largest random gap between positions in training.")] = None,
    preset: Preset = "channel",
    workers: Annotated[int | None, typer.Option(help="Number of worker processes, one core each.", min=1)] = None,
) -> None:
    """Train a plain and a role-aware model on the same data, attack both, and report.

    Writes results.json, a chart and one self-contained HTML page. Ctrl-C reports the results so far and exits with 130.
    Rerun the command with the same --run-dir to resume.
    """
    from rolesafe.config import RoleConfig
    from rolesafe.demo import DemoError, DemoSettings, run_demo

    given = {
        "seeds": None if seeds is None else tuple(range(seeds)),
        "steps": steps,
        "batch_size": batch_size,
        "learning_rate": learning_rate,
        "role_learning_rate": role_learning_rate,
        "examples": examples,
        "position_gap": position_gap,
    }
    changes: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    changes["config"] = RoleConfig.preset(preset)
    settings = DemoSettings(**changes) if model is None else DemoSettings.short(model, **changes)
    directory = run_dir or Path("runs") / datetime.now().strftime("%Y%m%d-%H%M%S")
    try:
        results = run_demo(settings, directory, workers=workers)
    except DemoError as error:
        raise typer.Exit(print_error(error, 1)) from error
    if not results.complete:
        raise typer.Exit(INTERRUPTED)


@app.command()
def inspect(
    model: Annotated[str, typer.Argument(help="Directory or hub id; weights are not read.")],
    preset: Preset = "channel",
) -> None:
    """Show the parameters, layers and backend that a patch adds to a model. Writes nothing."""
    from rolesafe.config import RoleConfig
    from rolesafe.patching.inspect import inspect_model

    report = inspect_model(model, RoleConfig.preset(preset))
    table = Table(title=as_text(f"{model}: {report.architecture}"), show_header=False)
    for label, value in report.lines():
        table.add_row(as_text(label), as_text(value))
    Console().print(table)


@app.command()
def mechanisms(
    model: Annotated[str | None, typer.Argument(help="Directory or hub id; weights are not read.")] = None,
    layers: Annotated[int, typer.Option(help="Layers of a model without a path.", min=1)] = 32,
    hidden: Annotated[int, typer.Option(help="Hidden size of a model without a path.", min=1)] = 4096,
    heads: Annotated[int, typer.Option(help="Query heads of a model without a path.", min=1)] = 32,
) -> None:
    """List the presets with their parameters, guarantees and papers."""
    from rolesafe.config import RoleConfig
    from rolesafe.presets import PRESETS

    size = {"layers": layers, "hidden": hidden, "heads": heads}
    title = f"L={layers} layers, d={hidden} hidden size, H={heads} heads, R={len(RoleConfig().roles)} roles"
    counts: dict[str, int | str] = {n: RoleConfig.preset(n).count_parameters(**size) for n in PRESETS}
    if model is not None:
        from rolesafe.patching.inspect import count_presets

        kind, counts = count_presets(model)
        title = f"{model}: {kind}"
    table = Table(title=as_text(f"Presets of RoleConfig, counted for {title}"), show_lines=True)
    for name, ratio in (("preset", 3), ("adds", 6), ("parameters", 4), ("guarantee", 5)):
        table.add_column(name, ratio=ratio, min_width=10, overflow="fold")
    for name, preset in PRESETS.items():
        count = counts[name]
        known = f"{count:,}" if isinstance(count, int) else f"does not fit: {count}"
        formula = f" = {preset.parameters}" if isinstance(count, int) and model is None and count else ""
        needs = "needs training" if preset.trained else "works without training"
        table.add_row(
            Text.assemble((name, "bold"), f"\n{preset.paper}" if preset.paper else ""),
            as_text(preset.adds),
            Text(f"{one_line(known)}{formula}\n{needs}"),
            as_text(preset.guarantee),
        )
    Console().print(table)


@app.command()
def audit(
    model: Annotated[str, typer.Argument(help="Directory or hub id of a causal language model, patched or not.")],
    examples: Annotated[int, typer.Option(help="Number of examples; half of them are attacked.", min=2)] = 60,
    family: Annotated[list[str] | None, typer.Option(help="Task family; repeatable; default: all.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the examples and of the attacks.")] = 0,
    tau: Annotated[float, typer.Option(help="Accepted override risk.")] = 0.05,
    attack: Annotated[list[str] | None, typer.Option(help="Attack to run at all its points; repeatable.")] = None,
    strong: Annotated[bool, typer.Option("--strong", help="Include attacks that search with the model.")] = False,
    data: Annotated[tuple[str, str] | None, typer.Option("--set", help="Name and path of a published set.")] = None,
    preset: Annotated[str | None, typer.Option(help="Patch a plain model with this preset, untrained.")] = None,
    max_new_tokens: Annotated[int, typer.Option(help="Longest reply, in tokens.", min=1)] = 16,
    batch_size: Annotated[int, typer.Option(help="Most conversations in a batch.", min=1)] = 32,
    device: Annotated[str | None, typer.Option(help="Such as cpu or cuda; default: a GPU if available.")] = None,
    dtype: Annotated[str, typer.Option(help="auto (as saved), float32, bfloat16 or float16.")] = "auto",
    json: Annotated[Path | None, typer.Option(help="File for the whole report.")] = None,
    court: Annotated[Path | None, typer.Option(help="Articles of a court to break: JSON or YAML.")] = None,
    fail_on_risk: Annotated[
        bool, typer.Option("--fail-on-risk", help="Exit with 1 if a verdict is RISK or not measured.")
    ] = False,
) -> None:
    """Check the claims of "Token Democracy" on any model: one verdict each, with numbers.

    Ctrl-C prints the finished part, writes it to --json, and exits with 130. See docs/audit.md for the verdicts.
    """
    from rolesafe.audit.command import run_audit
    from rolesafe.evaluation.verdict import NotMeasured

    report = run_audit(
        model,
        settings={
            "examples": examples,
            "families": tuple(family or ()),
            "seed": seed,
            "tau": tau,
            "attacks": tuple(attack or ()),
            "strong": strong,
            "max_new_tokens": max_new_tokens,
            "batch_size": batch_size,
        },
        data=data,
        preset=preset,
        device=device,
        dtype=dtype,  # type: ignore[arg-type]  # checked by `load`
        json_path=json,
        court=court,
    )
    if not report.complete:
        raise typer.Exit(INTERRUPTED)
    if fail_on_risk and any(v.passed is False or isinstance(v.measured, NotMeasured) for v in report.verdicts):
        raise typer.Exit(1)


@app.command()
def depth(
    model: Annotated[str, typer.Argument(help="Directory or hub id of a causal language model, patched or not.")],
    against: Annotated[str | None, typer.Option(help="Base model, before the alignment.")] = None,
    examples: Annotated[int, typer.Option(help="Number of protected examples.", min=1)] = 12,
    family: Annotated[list[str] | None, typer.Option(help="Task family; repeatable; default: all.")] = None,
    data: Annotated[tuple[str, str] | None, typer.Option("--set", help="Name and path of a published set.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of examples, rollouts and attacks.")] = 0,
    samples: Annotated[int, typer.Option(help="Rollouts of each conversation.", min=1)] = 16,
    max_new_tokens: Annotated[int, typer.Option(help="Longest rollout, in tokens.", min=1)] = 32,
    forced: Annotated[list[int] | None, typer.Option(help="Number of forced tokens; repeatable.", min=1)] = None,
    length: Annotated[list[int] | None, typer.Option(help="Tokens of an inserted span; repeatable.", min=1)] = None,
    recovery: Annotated[list[str] | None, typer.Option(help="Word that begins a refusal; repeatable.")] = None,
    strength: Annotated[float | None, typer.Option(help="Strength of the deep objective, for a prediction.")] = None,
    discount: Annotated[float, typer.Option(help="Its discount.")] = 1.0,
    target: Annotated[float, typer.Option(help="Recovery probability that counts as recovered.")] = 0.5,
    tolerance: Annotated[float, typer.Option(help="Variance of harm that counts as decided.")] = 0.01,
    batch_size: Annotated[int, typer.Option(help="Most rows in a batch.", min=1)] = 32,
    device: Annotated[str | None, typer.Option(help="Such as cpu or cuda; default: a GPU if available.")] = None,
    dtype: Annotated[str, typer.Option(help="auto (as saved), float32, bfloat16 or float16.")] = "auto",
    json: Annotated[Path | None, typer.Option(help="File of the report; an interrupted one is continued.")] = None,
    page: Annotated[Path | None, typer.Option(help="File of an HTML page with charts; needs matplotlib.")] = None,
) -> None:
    """Measure how many tokens deep the alignment of a model goes.

    Ctrl-C prints the finished part and exits with 130; the same command with --json resumes. See docs/depth.md.
    """
    from rolesafe.depth_report.command import run_depth

    given = {"forced": forced, "lengths": length, "recovery": recovery, "families": family}
    report = run_depth(
        model,
        settings={
            "examples": examples,
            "seed": seed,
            "samples": samples,
            "max_new_tokens": max_new_tokens,
            "strength": strength,
            "discount": discount,
            "target": target,
            "tolerance": tolerance,
            "batch_size": batch_size,
            **{name: tuple(value) for name, value in given.items() if value},
        },
        against=against,
        data=data,
        device=device,
        dtype=dtype,  # type: ignore[arg-type]  # checked by `load`
        json_path=json,
        page_path=page,
    )
    if not report.complete:
        raise typer.Exit(INTERRUPTED)


app.command()(retrain)
app.command()(chat)
app.command()(serve)


def main() -> None:
    """Entry point of the console script."""
    guard_terminal()
    app()


if __name__ == "__main__":
    main()
