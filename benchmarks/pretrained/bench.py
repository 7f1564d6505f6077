"""One evaluation: the model, what it is measured with, and where rows go."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from benchmarks.pretrained.data import Data
from benchmarks.pretrained.record import Part, Record
from benchmarks.pretrained.settings import Settings

Tell = Callable[[str, int, int], None]
"""Called with a suite, the number of rows that are there, and their total."""

SAVE_EVERY = 20.0
"""Seconds between two writes of the record: what a kill may cost."""


def _silent(suite: str, done: int, total: int) -> None:
    pass


@dataclass
class Bench:
    """What suites work with.

    Attributes:
        model: In evaluation mode, patched or not.
        tokenizer: Its tokenizer.
        settings: Of the evaluation.
        data: The test sets.
        record: Where rows go.
        path: File of the record.
        batch_tokens: Most tokens in a batch, replies included.
        base: Path of the untouched model, for KL and cost.
        transfer: Record whose found attacks are sent to this model.
        tell: Progress.
    """

    model: Any
    tokenizer: Any
    settings: Settings
    data: Data
    record: Record
    path: Path
    batch_tokens: int = 8192
    base: str | None = None
    transfer: Path | None = None
    tell: Tell = _silent
    _saved: float = field(default=0.0, repr=False)

    def part(self, suite: str, names: Sequence[str], verdicts: Sequence[str], **more: Any) -> Part:
        """Return the rows of a suite; `names` are the settings that decide them, `more` further facts."""
        return self.record.part(suite, {**self.settings.of(tuple(names)), **more}, verdicts)

    @contextmanager
    def filling(self, suite: str, part: Part, total: int) -> Iterator[Callable[[list[list[Any]]], None]]:
        """Yield a function that appends rows; the record is written from time to time and at the end, in any case."""
        part.total = total
        start, before = time.perf_counter(), part.seconds

        def add(rows: list[list[Any]]) -> None:
            part.rows += rows
            part.seconds = round(before + time.perf_counter() - start, 1)
            self.tell(suite, len(part.rows), total)
            if time.monotonic() - self._saved > SAVE_EVERY:
                self.save()

        self.tell(suite, len(part.rows), total)
        try:
            yield add
            part.rows.sort(key=lambda row: (row[1], len(row[0]), row[0]))
        finally:
            self.save()

    def save(self) -> None:
        """Write the record."""
        self.record.save(self.path)
        self._saved = time.monotonic()

    @cached_property
    def base_model(self) -> Any:
        """The untouched model, on the same device and in the same dtype."""
        from rolesafe.audit.load import load

        if self.base is None:
            raise ValueError("`base`: expected the untouched model for KL, got none. Give it with --base MODEL.")
        device = str(self.model.device)
        return load(self.base, device=device, dtype=str(self.model.dtype).removeprefix("torch.")).model
