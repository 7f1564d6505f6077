"""Results of attacks on disk as they come, so that a job that was interrupted does not run them again."""

from __future__ import annotations

import json
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import Any

from rolesafe.attacks import AttackResult
from rolesafe.files import write_whole


class Kept:
    """Results of one job: a line of JSON with the fingerprint of the model, then one for each.

    Args:
        path: The file; what an earlier try left in it is read, if it attacked the same model.
        model: The fingerprint.
    """

    def __init__(self, path: Path, model: str) -> None:
        self.path = path
        self.results: list[AttackResult] = []
        lines = path.read_bytes().decode("utf-8", errors="replace").splitlines() if path.exists() else []
        first, *rest = lines or [""]
        with suppress(ValueError, TypeError, KeyError, AttributeError):  # cut short: what is missing is run again
            for line in rest if first == json.dumps(model) else ():
                self.results.append(AttackResult.from_dict(json.loads(line)))
        write_whole(path, json.dumps(model) + "\n" + "".join(map(_line, self.results)))

    def add(self, result: AttackResult) -> None:
        """Keep one more."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(_line(result))

    def drop(self) -> None:
        """The job is done: its record holds all of it."""
        self.path.unlink(missing_ok=True)


def fingerprint(model: Any) -> str:
    """What tells the weights of one model from those of another."""
    summary = sha256()
    for name, tensor in sorted(model.state_dict().items()):
        summary.update(name.encode() + tensor.detach().cpu().float().numpy().tobytes())
    return summary.hexdigest()[:16]


def _line(result: AttackResult) -> str:
    return json.dumps(result.to_dict()) + "\n"
