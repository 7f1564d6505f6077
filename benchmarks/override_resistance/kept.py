"""Attack results of an unfinished job on disk, so that an interrupted job does not repeat them."""

from __future__ import annotations

import json
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import Any

from rolesafe.attacks import AttackResult
from rolesafe.files import write_whole


class Kept:
    """Results of one job as JSON lines; the first line is the fingerprint of the model.

    Args:
        path: The file; results in it are read if they are of the same model.
        model: Fingerprint of the model.
    """

    def __init__(self, path: Path, model: str) -> None:
        self.path = path
        self.results: list[AttackResult] = []
        lines = path.read_bytes().decode("utf-8", errors="replace").splitlines() if path.exists() else []
        first, *rest = lines or [""]
        with suppress(ValueError, TypeError, KeyError, AttributeError):  # a cut line: its attack is repeated
            for line in rest if first == json.dumps(model) else ():
                self.results.append(AttackResult.from_dict(json.loads(line)))
        write_whole(path, json.dumps(model) + "\n" + "".join(map(_line, self.results)))

    def add(self, result: AttackResult) -> None:
        """Append a result."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(_line(result))

    def drop(self) -> None:
        """Delete the file; the record of a finished job has all results."""
        self.path.unlink(missing_ok=True)


def fingerprint(model: Any) -> str:
    """Return a digest of the weights of a model."""
    summary = sha256()
    for name, tensor in sorted(model.state_dict().items()):
        summary.update(name.encode() + tensor.detach().cpu().float().numpy().tobytes())
    return summary.hexdigest()[:16]


def _line(result: AttackResult) -> str:
    return json.dumps(result.to_dict()) + "\n"
