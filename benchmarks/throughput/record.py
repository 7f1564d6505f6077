"""The record of a run: one JSON file, written after every finished piece, from which a run resumes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rolesafe.files import read_json, write_whole

VERSION = 1
SAME = ("commit", "sources", "gpu", "torch", "triton")
"""Facts of the environment that must be equal for a run to resume from a file."""


class CannotResume(ValueError):
    """The file was made from other sources, or on another machine."""


class Record:
    """Results of a run so far.

    ``data`` holds `environment`, `settings`, `ceilings`, `gate` (verdicts), `cells` (by key: suite, shape, cases,
    ratios), `profile`, `targets`, `left_out` (keys that the budget did not reach), `messages` and `finished`.
    """

    def __init__(self, path: Path, environment: dict[str, Any], settings: dict[str, Any]) -> None:
        self.path = path
        self.data: dict[str, Any] = {
            "version": VERSION,
            "environment": environment,
            "settings": settings,
            "ceilings": {},
            "gate": [],
            "cells": {},
            "profile": {},
            "targets": [],
            "left_out": [],
            "messages": [],
            "finished": False,
        }

    def resume(self) -> None:
        """Take over the results in the file.

        Raises:
            CannotResume: They are of other sources or of another machine.
        """
        if not self.path.exists():
            return
        old = load(self.path)
        for name in SAME:
            had, have = old["environment"].get(name), self.data["environment"].get(name)
            if had != have:
                raise CannotResume(
                    f"`--resume`: expected a record with {name} {have!r}, got {had!r} in {self.path}; "
                    "choose another --output or leave --resume out"
                )
        for name in ("ceilings", "gate", "cells", "profile"):
            self.data[name] = old[name]

    def add_verdict(self, verdict: dict[str, Any]) -> None:
        """Store a verdict of the gate, in place of an earlier one of the same case."""
        same = ("case", "dtype", "shape")
        gate = self.data["gate"]
        gate[:] = [v for v in gate if any(v[name] != verdict[name] for name in same)] + [verdict]
        self.save()

    def has_verdict(self, case: str, dtype: str, shape: str) -> bool:
        """Return True where the case passed before; a failed one is checked again."""
        wanted = {"case": case, "dtype": dtype, "shape": shape, "status": "passed"}
        return any(all(v[name] == value for name, value in wanted.items()) for v in self.data["gate"])

    def add_cell(self, key: str, cell: dict[str, Any]) -> None:
        self.data["cells"][key] = cell
        self.save()

    @property
    def failures(self) -> list[dict[str, Any]]:
        """Failed verdicts of the gate."""
        return [v for v in self.data["gate"] if v["status"] == "failed"]

    def save(self) -> None:
        """Write the file as a whole."""
        write_whole(self.path, json.dumps(self.data, indent=1) + "\n")


def load(path: Path) -> dict[str, Any]:
    """Return the data of a record.

    Raises:
        ValueError: Another version wrote it.
    """
    data = read_json(path, "a record of the benchmark")
    if data.get("version") != VERSION:
        raise ValueError(f"{path}: expected a record of version {VERSION}, got {data.get('version')!r}")
    return data
