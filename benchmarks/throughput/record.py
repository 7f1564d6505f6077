"""The record of a run: one JSON file, written after every finished piece, from which a run resumes."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rolesafe.files import read_json, write_whole

VERSION = 2
SAME = ("commit", "sources", "gpu", "torch", "triton")
"""Facts of the environment that must be equal for a run to resume from a file."""


class CannotResume(ValueError):
    """The file was made from other sources, or on another machine."""


class Record:
    """Results of a run so far.

    ``data`` holds `environment`, `settings`, `ceilings`, `gate` (verdicts), `cells` (by key: suite, shape, cases,
    ratios), `profile`, `not_measured` (reasons by key), `lost` (keys of cells that crashed or took too long), `running`
    (key of the cell that is being measured), `targets` and `messages`.
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
            "not_measured": {},
            "lost": [],
            "running": None,
            "targets": [],
            "messages": [],
        }

    def resume(self) -> None:
        """Take over the results in the file. A cell that the run before ended in counts as lost.

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
                    f"`--out`: expected a record with {name} {have!r}, got {had!r} in {self.path}. Pass another folder."
                )
        for name in ("ceilings", "gate", "cells", "profile", "lost"):
            self.data[name] = old[name]
        if old["running"] is not None:
            self.data["lost"].append(old["running"])
        reasons = {**old["not_measured"], old["running"]: "an earlier call ended while it was measured"}
        self.data["not_measured"] = {key: reasons.get(key, "lost") for key in self.data["lost"]}

    def add_verdict(self, verdict: dict[str, Any]) -> None:
        """Store a verdict of the gate, in place of an earlier one of the same case."""
        same = ("case", "dtype", "shape")
        gate = self.data["gate"]
        gate[:] = [v for v in gate if any(v[name] != verdict[name] for name in same)] + [verdict]
        self.save()

    def drop_verdicts(self, shape: str) -> None:
        """Remove the verdicts on one shape."""
        kept = [v for v in self.data["gate"] if v["shape"] != shape]
        if len(kept) < len(self.data["gate"]):
            self.data["gate"] = kept
            self.save()

    def plan(self, keys: Sequence[str], reason: str) -> None:
        """List `keys` as not measured until they are: for `reason`, or for their own where they were lost."""
        known = {key: self.data["not_measured"].get(key, reason) for key in self.data["lost"]}
        self.data["not_measured"] = {key: known.get(key, reason) for key in keys if not self.has(key)}
        self.save()

    def begin(self, key: str) -> None:
        """Note that a cell is being measured."""
        self.data["running"] = key
        self.save()

    def add_cell(self, key: str, cell: dict[str, Any], kind: str = "cells") -> None:
        """Store a measured cell, or a profile."""
        self.data[kind][key] = cell
        self.data["not_measured"].pop(key, None)
        self.data["lost"] = [other for other in self.data["lost"] if other != key]
        self.data["running"] = None
        self.save()

    def leave_out(self, key: str, reason: str, lost: bool = False) -> None:
        """Store the reason why a cell is not measured. `lost`: it crashed or took too long."""
        self.data["not_measured"][key] = reason
        if lost and key not in self.data["lost"]:
            self.data["lost"].append(key)
        self.data["running"] = None
        self.save()

    def has(self, key: str) -> bool:
        """Return True for a cell or a profile that is measured."""
        return key in self.data["cells"] or key in self.data["profile"]

    @property
    def failures(self) -> list[dict[str, Any]]:
        """Failed verdicts of the gate."""
        return [v for v in self.data["gate"] if v["status"] == "failed"]

    def save(self) -> None:
        """Write the file as a whole."""
        write_whole(self.path, render(self.data))


def render(data: Mapping[str, Any]) -> str:
    """Return JSON with a line for each item of each field: one that a reader and a diff can follow."""
    lines = []
    for name, value in data.items():
        text = json.dumps(value)
        if isinstance(value, dict) and value:
            items = ",\n".join(f"  {json.dumps(key)}: {json.dumps(item)}" for key, item in value.items())
            text = f"{{\n{items}\n }}"
        elif isinstance(value, list) and value:
            items = ",\n".join(f"  {json.dumps(item)}" for item in value)
            text = f"[\n{items}\n ]"
        lines.append(f" {json.dumps(name)}: {text}")
    body = ",\n".join(lines)
    return f"{{\n{body}\n}}\n"


def load(path: Path) -> dict[str, Any]:
    """Return the data of a record.

    Raises:
        ValueError: Another version wrote it.
    """
    data = read_json(path, "a record of the benchmark")
    if data.get("version") != VERSION:
        raise ValueError(f"{path}: expected a record of version {VERSION}, got {data.get('version')!r}")
    return data
