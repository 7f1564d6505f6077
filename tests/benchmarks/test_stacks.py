"""Training steps in other libraries: the code of every stack is short, and the timed lines run."""

from __future__ import annotations

import json

import pytest
import torch

from benchmarks import stacks


@pytest.mark.parametrize("name", stacks.STACKS)
def test_glue_has_at_most_three_lines(name: str) -> None:
    stack = stacks.STACKS[name]
    assert len(stack.glue) <= 3
    assert stack.glue[0] == stacks.PATCH
    assert all("rolesafe" not in line and "Role" not in line.replace("RoleTrainer", "") for line in stack.plain)


def test_step_times_has_every_model() -> None:
    threads = torch.get_num_threads()
    times = stacks.step_times("Trainer", (None, "channel"), steps=stacks.WARMUP + 1)
    assert torch.get_num_threads() == threads
    assert list(times) == [None, "channel"]
    assert all(len(own) == 1 and own[0] > 0 for own in times.values())


def test_table_shows_record_and_what_is_missing(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    record = {"stacks": {"DDP": {"seconds": {"plain": 2.0, "bias": 2.1, "channel": 2.4}}}}
    (tmp_path / "stacks.json").write_text(json.dumps(record))
    monkeypatch.setattr(stacks, "RESULTS", tmp_path / "stacks.json")
    rows = {line.split(" | ")[0].strip("| "): line for line in stacks.block().splitlines()[2:]}
    assert set(rows) == set(stacks.STACKS)
    assert rows["DDP"].endswith("| 2 | 1.05x | 1.20x |")
    assert rows["FSDP2"].endswith("| 3 | not yet measured | not yet measured |")
