"""`fit`: batches by length, settings."""

from __future__ import annotations

import pytest

from rolesafe.training import FitSettings
from rolesafe.training.fit import grouped


def test_grouped_batches_by_length_without_loss():
    rows = [{"input_ids": list(range(1 + 37 * i % 101))} for i in range(400)]
    ordered = grouped(rows, 8, seed=0)
    assert sorted(map(id, ordered)) == sorted(map(id, rows))
    assert ordered == grouped(rows, 8, seed=0) != grouped(rows, 8, seed=1)
    batches = [[len(row["input_ids"]) for row in ordered[i : i + 8]] for i in range(0, 400, 8)]
    assert sum(max(batch) - min(batch) for batch in batches) / len(batches) < 20, "100 in random order"
    longest = [max(batch) for batch in batches]
    assert longest != sorted(longest, reverse=True), "long and short batches come mixed"
    spoken = [{"messages": [{"role": "user", "content": "word " * len(row["input_ids"])}]} for row in rows]
    assert [len(row["messages"][0]["content"]) // 5 for row in grouped(spoken, 8, seed=0)] == [
        len(row["input_ids"]) for row in ordered
    ]


def test_settings_out_of_range_raise():
    with pytest.raises(ValueError, match="`steps`: expected a number >= 1, got 0"):
        FitSettings(steps=0)
