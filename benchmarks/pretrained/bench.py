"""State of one evaluation: model, test sets, settings and record."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, cast

from benchmarks.pretrained.data import Data
from benchmarks.pretrained.record import Part, Record
from benchmarks.pretrained.settings import Settings

Report = Callable[[str, int, int], None]
"""Callback for the name of a suite, its number of rows so far, and their total."""

SAVE_EVERY = 20.0
"""Seconds between two writes of the record, the most that a kill loses."""


def _silent(suite: str, done: int, total: int) -> None:
    pass


@dataclass
class Bench:
    """Context of the suites.

    Attributes:
        model: Model in evaluation mode, patched or plain.
        tokenizer: Tokenizer of the model.
        settings: Settings of the evaluation.
        data: Published test sets.
        record: Record of the rows.
        path: File of the record.
        batch_tokens: Maximum number of tokens in a batch, replies included.
        base: Path of the untouched model, for KL and cost.
        transfer: Record of another model, the source of attacks sent to this one.
        report: Callback for progress.
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
    report: Report = _silent
    _saved: float = field(default=0.0, repr=False)

    def part(self, suite: str, names: Sequence[str], verdicts: Sequence[str], **more: Any) -> Part:
        """Return the rows of a suite, which depend on the settings in `names` and on the facts in `more`."""
        return self.record.part(suite, {**self.settings.of(tuple(names)), **more}, verdicts)

    @contextmanager
    def filling(self, suite: str, part: Part, total: int) -> Iterator[Callable[[list[list[Any]]], None]]:
        """Yield a function that appends rows; write the record periodically and at the end, also after an error."""
        part.total = total
        start, before = time.perf_counter(), part.seconds

        def add(rows: list[list[Any]]) -> None:
            part.rows += rows
            part.seconds = round(before + time.perf_counter() - start, 1)
            self.report(suite, len(part.rows), total)
            if time.monotonic() - self._saved > SAVE_EVERY:
                self.save()

        self.report(suite, len(part.rows), total)
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
        """Untouched model, on the same device and in the same dtype."""
        from rolesafe.audit.load import Dtype, load

        if self.base is None:
            raise ValueError("`base`: expected the untouched model for KL, got none. Give it with --base MODEL.")
        dtype = cast(Dtype, str(self.model.dtype).removeprefix("torch."))
        return load(self.base, device=str(self.model.device), dtype=dtype).model
