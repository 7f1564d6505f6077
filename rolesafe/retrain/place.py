"""Output directory of a retraining: checks before a run, conditions of a resume, atomic moves of the result."""

from __future__ import annotations

import csv
import io
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from rolesafe.files import read_json
from rolesafe.retrain.card import STATE_NAME
from rolesafe.retrain.config import RECIPE_NAME, RetrainConfig
from rolesafe.retrain.progress import MARKER

CHECKPOINTS: Final = "checkpoints"
REPLIES_NAME: Final = "own_replies.jsonl"
LOSSES_NAME: Final = "losses.csv"
SAVING: Final = ".saving"
KEPT: Final = 2
"""Number of checkpoints kept: one is complete while the next is written."""
_COLUMNS: Final = ("step", "loss", "learning_rate", "grad_norm", "tokens", "seconds")
_GB: Final = 1e9


def read_state(out: Path, config: RetrainConfig) -> dict[str, Any] | None:
    """Return the state of the retraining in `out`; ``None`` where there is none.

    Raises:
        ValueError: `out` contains other files, or a retraining of another recipe.
    """
    if not (out / RECIPE_NAME).is_file():
        if others := sorted(f.name for f in out.iterdir() if f.name not in (".lock", REPLIES_NAME)):
            raise ValueError(
                f"`out`: expected a new or empty directory, or that of an earlier run, got {str(out)!r} with "
                f"{others[0]!r}. Give another directory."
            )
        return None
    before = RetrainConfig.load(out / RECIPE_NAME)
    if before != config:
        old, new = before.to_dict(), config.to_dict()
        changed = [f"{name} was {old[name]!r}, is {new[name]!r}" for name in old if old[name] != new[name]]
        raise ValueError(
            f"`out`: expected the recipe of the run in {str(out)!r}, got another one: {'; '.join(changed)}. Give "
            "that recipe to resume, or another directory."
        )
    if not (out / STATE_NAME).is_file():
        return None
    return read_json(out / STATE_NAME, "the state of a retraining")


def check_same(state: Mapping[str, Any] | None, found: Mapping[str, Any]) -> None:
    """Raise where the data, their preparation or the base model changed since the start of the run."""
    names = {
        "data_digest": "data",
        "prepared_digest": "prepared rows",
        "rows_digest": "replies",
        "base": "base model",
    }
    for name, noun in names.items():
        if state is not None and name in state and name in found and state[name] != found[name]:
            raise ValueError(
                f"`out`: expected the {noun} of the start of the run, got a change: digest {state[name]!r:.20}, now "
                f"{found[name]!r:.20}. Restore the {noun} to resume, or give another directory."
            )


def check_space(out: Path, trained: int, frozen: int, saves_all: bool) -> None:
    """Raise where the disk has too little space for the checkpoints.

    Args:
        out: Existing directory.
        trained: Number of bytes of the trained parameters.
        frozen: Number of bytes of the frozen parameters.
        saves_all: True where checkpoints include the frozen parameters.

    Raises:
        ValueError: The free space is too small.
    """
    # AdamW keeps two moments for each trained parameter
    each = 3 * trained + (frozen if saves_all else 0)
    need = (KEPT + 1) * each + trained + (frozen if saves_all else 0)
    free = shutil.disk_usage(out).free
    if free < need:
        raise ValueError(
            f"`out`: expected {need / _GB:.1f} GB free for checkpoints and the model, got {free / _GB:.1f} GB in "
            f"{str(out)!r}. Free space, or give another directory."
        )


def last_checkpoint(out: Path) -> Path | None:
    """Return the newest complete checkpoint, and delete incomplete ones."""
    found: dict[int, Path] = {}
    for folder in (out / CHECKPOINTS).glob("checkpoint-*"):
        number = folder.name.removeprefix("checkpoint-")
        if (folder / MARKER).is_file() and number.isdigit():
            found[int(number)] = folder
        else:
            shutil.rmtree(folder, ignore_errors=True)
    return found[max(found)] if found else None


def losses_csv(history: Iterable[Mapping[str, Any]]) -> str:
    """Return the logged losses as CSV: step, loss, learning rate, gradient norm, tokens and seconds so far."""
    text = io.StringIO()
    rows = csv.DictWriter(text, _COLUMNS, extrasaction="ignore", lineterminator="\n")
    rows.writeheader()
    rows.writerows(entry for entry in history if "loss" in entry)
    return text.getvalue()


def move_in(scratch: Path, out: Path, last: Sequence[str] = ()) -> None:
    """Move all files of `scratch` into `out`, those named in `last` at the end.

    Raises:
        OSError: A file cannot be moved.
    """
    files = sorted(f for f in scratch.iterdir() if f.name not in last)
    for file in [*files, *(scratch / name for name in last if (scratch / name).exists())]:
        target = out / file.name
        if target.is_dir():
            shutil.rmtree(target)
        file.replace(target)
    scratch.rmdir()
