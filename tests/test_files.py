"""Files of records."""

from __future__ import annotations

import multiprocessing
from pathlib import Path

from rolesafe.files import write_whole


def write_often(path: str, letter: str) -> None:
    for _ in range(200):
        write_whole(path, letter * 1000)


def test_write_whole_of_two_processes_is_atomic(tmp_path: Path) -> None:
    """Case: two trainings of one size and seed encode the same rows."""
    path = tmp_path / "rows"
    context = multiprocessing.get_context("spawn")
    writers = [context.Process(target=write_often, args=(str(path), letter)) for letter in "ab"]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert [writer.exitcode for writer in writers] == [0, 0]
    assert path.read_text(encoding="utf-8") in ("a" * 1000, "b" * 1000)
    assert [found.name for found in tmp_path.iterdir()] == ["rows"]
