"""The command line: `rolesafe demo` and `rolesafe inspect`."""

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


def _fail(error: Exception) -> typer.Exit:
    Console(stderr=True).print(Text("error: ", style="bold red"), Text(str(error)), sep="", soft_wrap=True)
    return typer.Exit(1)


def main() -> None:
    """Entry point of the console script."""
    app()


if __name__ == "__main__":
    main()
