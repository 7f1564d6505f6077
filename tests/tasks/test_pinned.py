"""Data of the demo's published numbers, pinned by digest."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

import rolesafe.tasks
from rolesafe.demo import job
from rolesafe.demo.settings import DemoSettings
from rolesafe.tasks import Example, generate, training_conversations, vocabulary


def sha(value: Any) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()


def rows(examples: list[Example]) -> list[dict[str, Any]]:
    """Return an example without `wanted`, a later field outside the conversation."""
    return [{name: value for name, value in asdict(e).items() if name != "wanted"} for e in examples]


def test_examples_have_the_pinned_digest() -> None:
    made = rows(generate("test", 180, 1000, job.RULES))
    assert sha(made) == "748778be013a51c8dde025a97129c8403150aeb88919c1c2119eccacaf8780e4"
    made = rows(generate("test", 60, 1001, job.RULES, difficulty=3))
    assert sha(made) == "4e70925badbf143ec2189a00cf2761c9e362ba81e5ca3cc4c402536bdbdea4b2"


def test_training_has_the_pinned_digest() -> None:
    made = training_conversations(64, 0, job.RULES)
    assert sha(made) == "5f8bc36af8f08786fdeab00294373132edfd97e9c85da8d75a6e9f937dc8ea8c"
    made = training_conversations(300, 2, job.RULES, difficulty=3, injections=(1, 3), system_last=0.3)
    assert sha(made) == "364cda0587d8ee746fb4b0ed94f4824995de03b47f0c2851cda03921e9171ec7"


def test_vocabulary_has_the_pinned_digest() -> None:
    words = vocabulary(job.RULES, triggers=False)
    assert len(words) == 198
    assert sha(words) == "f74fea107d635ccdf8566edd875eedb7b4db6e525e3cbcdbb9253bdbc364940a"
    assert set(words) < set(vocabulary(job.RULES)) < set(vocabulary())


def test_demo_uses_the_pinned_data(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    settings = DemoSettings(steps=2, batch_size=32, hidden=16, layers=1, heads=2)
    _, tokenizer = job.load(settings, "plain", 0)
    assert set(vocabulary(job.RULES, triggers=False)) <= set(tokenizer.get_vocab())
    assert not (set(vocabulary()) - set(vocabulary(job.RULES, triggers=False))) & set(tokenizer.get_vocab())

    trained: list[Any] = []

    def fit(model: Any, tokenizer: Any, rows: Any, *rest: Any, **more: Any) -> float:
        trained.extend(row["messages"] for row in rows)
        return 0.0

    evaluated: list[Any] = []

    class Enough(Exception):
        pass

    def generate_and_stop(*arguments: Any, **more: Any) -> Any:
        evaluated.extend(generate(*arguments, **more))
        raise Enough

    monkeypatch.setattr("rolesafe.training.fit", fit)
    monkeypatch.setattr(rolesafe.tasks, "generate", generate_and_stop)
    with pytest.raises(Enough):
        job.run_job(settings, tmp_path, ("plain", 0), lambda update: None)
    assert trained == training_conversations(64, 0, job.RULES)
    assert sha(rows(evaluated)) == "748778be013a51c8dde025a97129c8403150aeb88919c1c2119eccacaf8780e4"
