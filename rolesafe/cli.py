"""The command line: `rolesafe demo`, `rolesafe inspect` and `rolesafe mechanisms`."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

app = typer.Typer(
    add_completion=False, no_args_is_help=True, help="rolesafe: tokens with standing.", pretty_exceptions_enable=False
)

Preset = Annotated[str, typer.Option(help="Role configuration: a preset of RoleConfig.")]


@app.command()
def demo(
    model: Annotated[str | None, typer.Option(help="Directory or hub id to retrain instead of a tiny model.")] = None,
    run_dir: Annotated[Path | None, typer.Option(help="Where results go; default: runs/<time>.")] = None,
    seeds: Annotated[int, typer.Option(help="Pairs of models to train.", min=1)] = 3,
    steps: Annotated[int | None, typer.Option(help="Training steps of each model.", min=1)] = None,
    batch_size: Annotated[int | None, typer.Option(help="Conversations in a step.", min=1)] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Of the base parameters, at its peak.")] = None,
    role_learning_rate: Annotated[float | None, typer.Option(help="Of the role parameters, at its peak.")] = None,
    examples: Annotated[int | None, typer.Option(help="Test examples; half of them are attacked.", min=6)] = None,
    position_gap: Annotated[int | None, typer.Option(help="Largest random jump of positions in training.")] = None,
    preset: Preset = "channel",
    workers: Annotated[int | None, typer.Option(help="Processes at a time, one core each.", min=1)] = None,
) -> None:
    """Train a plain model and its role-aware twin on the same data, attack both, and report.

    Writes results.json, a chart and one self-contained HTML page. Ctrl-C reports what is there; the same command with
    the same --run-dir goes on from it.
    """
    from rolesafe.config import RoleConfig
    from rolesafe.demo import DemoSettings, run_demo
    from rolesafe.demo.run import DemoError

    given = {
        "steps": steps,
        "batch_size": batch_size,
        "learning_rate": learning_rate,
        "role_learning_rate": role_learning_rate,
        "examples": examples,
        "position_gap": position_gap,
    }
    try:
        settings = DemoSettings(
            model=model,
            seeds=tuple(range(seeds)),
            config=RoleConfig.preset(preset),
            **{name: value for name, value in given.items() if value is not None},  # type: ignore[arg-type]
        )
        run_demo(settings, run_dir or Path("runs") / datetime.now().strftime("%Y%m%d-%H%M%S"), workers=workers)
    except (ValueError, DemoError) as error:
        raise _fail(error) from error


@app.command()
def inspect(
    model: Annotated[str, typer.Argument(help="Directory or hub id; its weights are not read.")],
    preset: Preset = "channel",
) -> None:
    """Show what a patch would add to a model: parameters, layers, backends. Nothing is trained or written."""
    from rolesafe.config import RoleConfig
    from rolesafe.patching.inspect import inspect_model

    try:
        report = inspect_model(model, RoleConfig.preset(preset))
    except (ValueError, OSError) as error:
        raise _fail(error) from error
    table = Table(title=f"{model}: {report.architecture}", show_header=False)
    for label, value in report.lines():
        table.add_row(label, value)
    Console().print(table)


@app.command()
def mechanisms(
    model: Annotated[str | None, typer.Argument(help="Directory or hub id to count for; weights are not read.")] = None,
    layers: Annotated[int, typer.Option(help="Layers of the model to count for, where none is named.", min=1)] = 32,
    hidden: Annotated[int, typer.Option(help="Its hidden size.", min=1)] = 4096,
    heads: Annotated[int, typer.Option(help="Its query heads.", min=1)] = 32,
) -> None:
    """List the presets: what each adds, what it costs, what it guarantees, who published it."""
    from rolesafe.config import RoleConfig
    from rolesafe.presets import PRESETS

    size = {"layers": layers, "hidden": hidden, "heads": heads}
    title = f"L={layers} layers, d={hidden} hidden size, H={heads} heads, R={len(RoleConfig().roles)} roles"
    counts: dict[str, int | str] = {n: RoleConfig.preset(n).count_parameters(**size) for n in PRESETS}
    if model is not None:
        from rolesafe.patching.inspect import count_presets

        try:
            kind, counts = count_presets(model)
        except (ValueError, OSError) as error:
            raise _fail(error) from error
        title = f"{model}: {kind}"
    table = Table(title=Text(f"Presets of RoleConfig, counted for {title}"), show_lines=True)
    for name, ratio in (("preset", 3), ("what it adds", 6), ("parameters", 4), ("guarantee", 5)):
        table.add_column(name, ratio=ratio, min_width=10, overflow="fold")
    for name, preset in PRESETS.items():
        count = counts[name]
        known = f"{count:,}" if isinstance(count, int) else f"does not fit: {count}"
        formula = f" = {preset.parameters}" if isinstance(count, int) and model is None and count else ""
        needs = "needs training" if preset.trained else "works without training"
        table.add_row(
            Text.assemble((name, "bold"), f"\n{preset.paper}" if preset.paper else ""),
            Text(preset.adds),
            Text(f"{known}{formula}\n{needs}"),
            Text(preset.guarantee),
        )
    Console().print(table)


@app.command()
def audit(
    model: Annotated[str, typer.Argument(help="Directory or hub id of a causal language model, patched or not.")],
    examples: Annotated[int, typer.Option(help="Examples; half of them are attacked.", min=2)] = 60,
    family: Annotated[list[str] | None, typer.Option(help="A task family; may be repeated. Default: all.")] = None,
    seed: Annotated[int, typer.Option(help="Of the examples and of the attacks.")] = 0,
    tau: Annotated[float, typer.Option(help="Override risk that is accepted.")] = 0.05,
    attack: Annotated[list[str] | None, typer.Option(help="An attack at all its points; may be repeated.")] = None,
    strong: Annotated[bool, typer.Option("--strong", help="Attacks that search with the model, too.")] = False,
    data: Annotated[tuple[str, str] | None, typer.Option("--set", help="Name and path of a published set.")] = None,
    preset: Annotated[str | None, typer.Option(help="Patch a plain model for a look; it is not trained.")] = None,
    max_new_tokens: Annotated[int, typer.Option(help="Longest reply, in tokens.", min=1)] = 16,
    batch_size: Annotated[int, typer.Option(help="Most conversations in a batch.", min=1)] = 32,
    device: Annotated[str | None, typer.Option(help="Such as cpu or cuda; default: a GPU where there is one.")] = None,
    dtype: Annotated[str, typer.Option(help="auto (as saved), float32, bfloat16 or float16.")] = "auto",
    json: Annotated[Path | None, typer.Option(help="Write the whole report to this file.")] = None,
    fail_on_risk: Annotated[
        bool, typer.Option("--fail-on-risk", help="Exit with 1 if a verdict is RISK, or could not be checked.")
    ] = False,
) -> None:
    """Check the claims of "Token Democracy" on any model: one verdict each, with numbers.

    Ctrl-C keeps and prints what is finished. What the verdicts mean is in docs/audit.md.
    """
    from rolesafe.audit.command import run_audit

    try:
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
            dtype=dtype,
            json_path=json,
        )
    except (ValueError, OSError, ImportError) as error:
        raise _fail(error) from error
    if fail_on_risk and any(v.standing == "bad" or not v.measured for v in report.verdicts):
        raise typer.Exit(1)


def _fail(error: Exception) -> typer.Exit:
    Console(stderr=True).print(Text("error: ", style="bold red"), Text(str(error)), sep="", soft_wrap=True)
    return typer.Exit(1)


def main() -> None:
    """Entry point of the console script."""
    app()


if __name__ == "__main__":
    main()
