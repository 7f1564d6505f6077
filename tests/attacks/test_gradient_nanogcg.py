"""GCG against nanoGCG on the same tokens; skipped without nanoGCG, which is no dependency."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import processors

# nanoGCG pins a transformers older than ours, so the extra brings only what else it needs.
pytest.importorskip(
    "nanogcg",
    reason="nanogcg or its scipy is not installed: pip install -e '.[gcg]', then pip install --no-deps nanogcg==0.3.0",
)

from benchmarks import gcg as benchmark
from rolesafe.training.tiny import tiny_llama
from tests.attacks.gradient import pieces_tokenizer

BUDGET = benchmark.Budget(steps=3, width=64, topk=24, seeds=2, sampling_factor=8)


@pytest.fixture
def saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A random model with a tokenizer of pieces, saved like any other; one wanted reply."""
    monkeypatch.setattr(benchmark, "WANTED", benchmark.WANTED[:1])
    tokenizer = copy.deepcopy(pieces_tokenizer())
    # nanoGCG takes the beginning-of-text token out of a prompt and leaves it to the tokenizer to add it
    bos = (tokenizer.bos_token, tokenizer.bos_token_id)
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(f"{bos[0]} $A", special_tokens=[bos])
    model: Any = tiny_llama(len(tokenizer), seed=0, hidden=32, layers=2, heads=4, head_dim=8)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    return tmp_path


def test_gcg_reaches_nanogcg_loss_in_less_time(saved: Path) -> None:
    """A few steps of both from the same tokens, in every variant."""
    record = benchmark.compare(str(saved), BUDGET)
    assert record["complete"]
    assert set(record["variants"]) == set(benchmark.VARIANTS)
    for found in record["variants"].values():
        difference = found["loss_difference"]["nll"]
        assert difference["low"] <= 0 or difference["mean"] < 0.02
        for kind in ("rolesafe", "rolesafe without prefix"):
            assert found["largest_gap"][kind] < 1e-3
            assert found["reads_back"][kind] == found["turns"] == 2 * len(benchmark.REQUESTS)
            assert found["loss"][kind]["mean"] < found["start"]["mean"]
            assert found["time_ratio"][kind]["mean"] < 1
    assert len(record["runs"]) == 3 * 3 * 2 * len(benchmark.REQUESTS)
    json.dumps(record, allow_nan=False)


def test_compare_stopped_after_a_turn_is_incomplete(saved: Path) -> None:
    kept: list[dict[str, Any]] = []
    record = benchmark.compare(
        str(saved), BUDGET, variants=("mellowmax",), save=lambda r: kept.append(json.loads(json.dumps(r))),
        stopping=lambda: True,
    )  # fmt: skip
    assert [r["kind"] for r in kept[0]["runs"]] == list(benchmark.KINDS[::-1])
    assert kept == [record]
    assert not record["complete"]
    assert record["variants"]["mellowmax"]["loss_difference"]["nll"]["low"] is None
    benchmark.show(record)


def test_compare_with_unequal_budget_raises(saved: Path) -> None:
    with pytest.raises(ValueError, match="`topk`: expected at most"):
        benchmark.compare(str(saved), benchmark.Budget(topk=64))
    with pytest.raises(ValueError, match="`width`: expected at least 128"):
        benchmark.compare(str(saved), benchmark.Budget(width=64, topk=24))
