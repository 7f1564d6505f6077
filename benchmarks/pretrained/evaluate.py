"""Evaluation of one model: loading, suites, record."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from benchmarks.pretrained.bench import Bench, Report
from benchmarks.pretrained.data import Data
from benchmarks.pretrained.record import Record
from benchmarks.pretrained.settings import Settings
from benchmarks.pretrained.suites import SUITES
from benchmarks.pretrained.suites.ifeval import checkers
from rolesafe.files import check_writable, locked
from rolesafe.terminal import as_text

SAY_EVERY = 30.0
"""Seconds between two lines of progress without a terminal."""


def evaluate(
    model: str,
    path: Path,
    suites: Sequence[str],
    settings: Settings,
    *,
    folder: Path,
    arm: str | None = None,
    training_seed: int = 0,
    base: str | None = None,
    transfer: Path | None = None,
    device: str | None = None,
    batch_tokens: int = 8192,
    restart: bool = False,
    console: Console | None = None,
) -> Record:
    """Run the suites on a model, add the missing rows to its record, and return the record.

    Args:
        model: Directory or hub id, with or without a role layer.
        path: File of the record; an existing one is resumed.
        suites: Names in `SUITES`.
        settings: Settings of the evaluation.
        folder: Folder of the test sets.
        arm: Name in tables; default: the model's last path component.
        training_seed: Training seed of the checkpoint.
        base: Path of the untouched model, for KL and cost.
        transfer: Record of another model, the source of attacks sent to this one.
        device: Device of the model; default: a GPU if available, else the CPU.
        batch_tokens: Maximum number of tokens in a batch, replies included.
        restart: True to discard the earlier rows of these suites.
        console: Console of the progress; default: standard error.

    Raises:
        ValueError: An argument is out of range, a set is missing, or the record has another model or other settings.
        ImportError: `suites` contains IFEval and its checkers are not installed.
    """
    if unknown := [name for name in suites if name not in SUITES]:
        raise ValueError(f"`suite`: expected some of {tuple(SUITES)}, got {unknown[0]!r}. Choose among these.")
    if batch_tokens < 1:
        raise ValueError(f"`batch_tokens`: expected a number >= 1, got {batch_tokens}. Raise it.")
    check_writable(path, "--record")
    path.parent.mkdir(parents=True, exist_ok=True)
    with locked(path.parent / ".locks" / path.name, "record"):
        record = _opened(path, model, arm, training_seed)
        data = Data(folder, settings.limit, settings.seed)
        if not folder.is_dir():
            raise ValueError(f"`data`: expected a folder with the test sets, got {str(folder)!r}. Give it with --data.")
        for name in suites:  # fail before loading and hours of work
            for needed in SUITES[name].needs:
                data.path(needed)
        if "ifeval" in suites:
            checkers()
        if restart:
            for name in suites:
                record.parts.pop(name, None)
        bench = _bench(model, record, path, settings, data, base, transfer, device, batch_tokens)
        console = console or Console(file=sys.stderr)
        for note in record.about["notes"]:
            console.print(as_text(f"note: {note}", "yellow"))
        with _progress(console) as report:
            bench.report = report
            for name in SUITES:
                if name in suites:
                    SUITES[name].run(bench)
        return record


def _opened(path: Path, model: str, arm: str | None, training_seed: int) -> Record:
    if not path.exists():
        return Record(arm or Path(model).name, model, training_seed)
    record = Record.load(path)
    if record.model != model:
        raise ValueError(
            f"`record`: expected one of the model {model!r}, got one of {record.model!r} in {str(path)!r}. Give "
            "another file for each model."
        )
    record.arm, record.training_seed = arm or record.arm, training_seed
    return record


def _bench(
    model: str,
    record: Record,
    path: Path,
    settings: Settings,
    data: Data,
    base: str | None,
    transfer: Path | None,
    device: str | None,
    batch_tokens: int,
) -> Bench:
    from rolesafe.attacks.replies import role_config
    from rolesafe.audit.load import load
    from rolesafe.evaluation import environment

    loaded = load(model, device=device, dtype=settings.dtype)
    config = role_config(loaded.model)
    record.about = {
        "role layer": None if config is None else config.to_dict(),
        "dtype": str(loaded.model.dtype).removeprefix("torch."),
        "device": str(loaded.model.device),
        "notes": list(loaded.notes),
        "environment": asdict(environment()),
    }
    return Bench(
        model=loaded.model,
        tokenizer=loaded.tokenizer,
        settings=settings,
        data=data,
        record=record,
        path=path,
        batch_tokens=batch_tokens,
        base=base,
        transfer=transfer,
    )


@contextmanager
def _progress(console: Console) -> Iterator[Report]:
    """Show a bar for each suite with the time left, and yield the callback for progress."""
    columns = (
        TextColumn("{task.description:<12}", markup=False), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
        TextColumn("left"), TimeRemainingColumn(),
    )  # fmt: skip
    with Progress(*columns, console=console, refresh_per_second=2, speed_estimate_period=600.0) as progress:
        bars: dict[str, TaskID] = {}
        said = time.monotonic()

        def report(suite: str, done: int, total: int) -> None:
            nonlocal said
            if not console.is_terminal and (time.monotonic() - said > SAY_EVERY or done == total):
                said = time.monotonic()  # lines instead of a bar, for log files
                console.print(f"{suite}: {done} of {total}")
            if suite not in bars:
                bars[suite] = progress.add_task(suite, total=total, completed=done)
            progress.update(bars[suite], completed=done, total=total)

        yield report
