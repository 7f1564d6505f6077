"""Results of attacks on disk as they come, so that a job that was interrupted does not run them again."""

from __future__ import annotations

import json
from pathlib import Path

from rolesafe.attacks import AttackResult
from rolesafe.evaluation.files import write_whole


class Kept:
    """Results of one job, a line of JSON each.

    Args:
        path: The file; what an earlier try left in it is read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.results: list[AttackResult] = []
        for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
            try:
                values = json.loads(line)
            except json.JSONDecodeError:
                break  # cut short: the last one
            self.results.append(AttackResult.from_dict(values))
        if path.exists():
            write_whole(path, "".join(map(_line, self.results)))

    def add(self, result: AttackResult) -> None:
        """Keep one more."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(_line(result))

    def drop(self) -> None:
        """The job is done: its record holds all of it."""
        self.path.unlink(missing_ok=True)


def _line(result: AttackResult) -> str:
    return json.dumps(result.to_dict()) + "\n"
