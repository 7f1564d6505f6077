"""Command `rolesafe retrain`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from rolesafe.terminal import INTERRUPTED


def retrain(
    model: Annotated[str | None, typer.Argument(help="Directory, hub id or .gguf file of a chat model.")] = None,
    data: Annotated[str | None, typer.Option(help="File or directory (.json, .jsonl, .csv), or hub id.")] = None,
    out: Annotated[
        Path | None, typer.Option(help="Directory for the result; an interrupted run resumes there.")
    ] = None,
    preset: Annotated[str | None, typer.Option(help="Preset of RoleConfig, or 'plain' for no role layer.")] = None,
    dedicated: Annotated[
        str | None, typer.Option(help="'first' heads of a layer, or 'chosen': those that the model needs least.")
    ] = None,
    held_out: Annotated[
        list[str] | None, typer.Option(help="Test set whose rows are not trained on; may be repeated.")
    ] = None,
    recipe: Annotated[Path | None, typer.Option(help="YAML of a RetrainConfig; options change it.")] = None,
    steps: Annotated[int | None, typer.Option(help="Optimizer steps.", min=1)] = None,
    epochs: Annotated[float | None, typer.Option(help="Passes over the rows; default: 1.")] = None,
    rows: Annotated[int | None, typer.Option(help="Rows to prepare; default: as many as the data has.", min=1)] = None,
    batch_size: Annotated[int | None, typer.Option(help="Rows of a forward pass.", min=1)] = None,
    gradient_accumulation: Annotated[int | None, typer.Option(help="Forward passes of a step.", min=1)] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Peak learning rate of the base parameters.")] = None,
    role_learning_rate: Annotated[float | None, typer.Option(help="Peak learning rate of the role parameters.")] = None,
    max_length: Annotated[int | None, typer.Option(help="Longest row in tokens.")] = None,
    bad_rows: Annotated[str | None, typer.Option(help="'error', or 'drop' to leave bad and long rows out.")] = None,
    dtype: Annotated[str | None, typer.Option(help="auto, bfloat16 or float32.")] = None,
    lora: Annotated[int | None, typer.Option(help="Rank of LoRA matrices; default: train all weights.", min=1)] = None,
    gradient_checkpointing: Annotated[
        bool | None, typer.Option("--gradient-checkpointing", help="Less memory, about a third more time.")
    ] = None,
    replies: Annotated[str | None, typer.Option(help="'given' by the data, or written by the model: 'self'.")] = None,
    replies_file: Annotated[Path | None, typer.Option(help="Keep the model's own replies in this file.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of preparation, order and training.")] = None,
    save_steps: Annotated[int | None, typer.Option(help="Steps between checkpoints.", min=1)] = None,
    results: Annotated[Path | None, typer.Option(help="JSON with figures for the model card.")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print five prepared rows and counts; train nothing.")
    ] = False,
) -> None:
    """Retrain a chat model with roles on your data, and write a checkpoint with a model card.

    Ctrl-C saves a checkpoint and exits with 130; the same command resumes. Formats and costs: docs/retrain-command.md.
    """
    from rolesafe.retrain.config import RECIPE_NAME, RetrainConfig

    given: dict[str, Any] = {
        "model": model,
        "data": data,
        "preset": preset,
        "dedicated": dedicated,
        "held_out": tuple(held_out) if held_out else None,
        "steps": steps,
        "epochs": epochs,
        "rows": rows,
        "batch_size": batch_size,
        "gradient_accumulation": gradient_accumulation,
        "learning_rate": learning_rate,
        "role_learning_rate": role_learning_rate,
        "max_length": max_length,
        "bad_rows": bad_rows,
        "dtype": dtype,
        "lora": lora,
        "gradient_checkpointing": gradient_checkpointing,
        "replies": replies,
        "seed": seed,
        "save_steps": save_steps,
    }
    changes = {name: value for name, value in given.items() if value is not None}
    # an option for one of the two replaces the recipe's value of the other
    for name, other in (("steps", "epochs"), ("epochs", "steps")):
        if name in changes and other not in changes:
            changes[other] = None
    if preset is not None:
        changes["role_config"] = {}
    if recipe is None and model is None and data is None and out is not None and (out / RECIPE_NAME).is_file():
        recipe = out / RECIPE_NAME  # resume, or add results to the card
    config = RetrainConfig.from_dict({}, **changes) if recipe is None else _load(recipe, changes)
    if dry_run:
        _preview(config)
        return
    if out is None:
        raise ValueError("`--out`: expected a directory for the result, got none. Give one, or pass --dry-run.")
    _train(config, out, results, replies_file)


def _load(recipe: Path, changes: dict[str, Any]) -> Any:
    from rolesafe.retrain.config import RetrainConfig

    try:
        return RetrainConfig.load(recipe, **changes)
    except OSError as error:
        raise ValueError(
            f"`--recipe`: expected a YAML file, got {str(recipe)!r}: {error.strerror}. Check the path."
        ) from error


def _preview(config: Any) -> None:
    from dataclasses import replace

    from rich.console import Console
    from transformers.utils import logging

    from rolesafe.retrain.batching import encode_rows
    from rolesafe.retrain.loading import check_base, load_tokenizer
    from rolesafe.retrain.progress import counting
    from rolesafe.retrain.run import load_data
    from rolesafe.retrain.show import print_preview
    from rolesafe.terminal import as_text

    logging.set_verbosity_error()
    check_base(config)
    tokenizer = load_tokenizer(config.model)
    sources, prepared = load_data(config, tokenizer)
    console = Console()
    print_preview(console, sources, prepared)
    known = [row for row in prepared.rows if row.reply is not None]
    with counting(Console(stderr=True), "encoding rows") as report:
        encoded = encode_rows(known, replace(config, bad_rows="drop"), tokenizer, progress=report)
    tokens = sum(len(row["input_ids"]) for row in encoded.rows)
    console.print(
        f"{len(encoded.rows):,} rows with a reply fit into {config.max_length} tokens, {tokens:,} tokens in all"
    )
    if left_out := encoded.dropped:
        console.print(as_text(f"{len(left_out):,} rows do not, the first one: {left_out[0]}"), soft_wrap=True)


def _train(config: Any, out: Path, results: Path | None, replies_file: Path | None) -> None:
    from rich.console import Console
    from transformers.utils import logging

    from rolesafe.retrain.card import read_results
    from rolesafe.retrain.run import retrain
    from rolesafe.terminal import as_text

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    figures = [] if results is None else _results(results, read_results)
    found = retrain(config, out, results=figures, replies_path=replies_file)
    if not found.complete:
        raise typer.Exit(INTERRUPTED)
    loss = "" if found.loss is None else f", loss {found.loss:.3f}"
    Console().print(
        as_text(f"{found.path}: {found.steps:,} steps, {found.tokens:,} tokens, {found.seconds:,.0f} s{loss}"),
        soft_wrap=True,
    )


def _results(path: Path, read: Any) -> Any:
    try:
        return read(path)
    except OSError as error:
        raise ValueError(
            f"`--results`: expected a JSON file, got {str(path)!r}: {error.strerror}. Check the path."
        ) from error
