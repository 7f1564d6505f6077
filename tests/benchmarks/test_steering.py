"""Steering benchmark, and its record of the presets. A real chat model is measured if ROLESAFE_CHAT_MODEL is set."""

from __future__ import annotations

import json
import os

import pytest

from benchmarks.steering import QUESTIONS, Bench, repeated, settings
from rolesafe import RoleConfig
from rolesafe.presets import PRESETS
from rolesafe.tasks import vocabulary
from rolesafe.training.tiny import tiny_llama, tiny_tokenizer
from tests.test_project import ROOT

CHAT_MODEL = os.environ.get("ROLESAFE_CHAT_MODEL", "")
FREE = tuple(name for name in PRESETS if not PRESETS[name].trained)
RECORD = json.loads((ROOT / "benchmarks" / "results" / "steering.json").read_text(encoding="utf-8"))["settings"]


def test_bench_measure_restores_the_model():
    tokenizer = tiny_tokenizer(vocabulary())
    model = tiny_llama(len(tokenizer), seed=0).eval()
    bench = Bench(model, tokenizer, max_new_tokens=3)
    before = bench.measure(None)
    steered = bench.measure(RoleConfig.preset("instaboost", boost=19.0))
    after = bench.measure(None)
    assert len(before["replies"]) == len(QUESTIONS)
    assert {**before, "seconds": 0} == {**after, "seconds": 0}
    assert steered["mass"] > before["mass"]


def test_repeated_counts_trigrams_by_text():
    assert repeated(["a b c a b c", "a b c"]) == 1 / 5
    assert repeated([""]) == 0.0


def test_settings_fit_models_of_any_shape():
    for layers, heads in ((1, 1), (30, 9)):
        for config in settings(layers, heads).values():
            for layer, head in (config and config.steered_heads) or ():
                assert (layer, head) < (layers, heads)


@pytest.mark.parametrize("name", FREE)
def test_record_untrained_preset_keeps_fluency(name):
    """The record shows nearly unsteered replies for the default of each preset."""
    config, plain = RoleConfig.preset(name), RECORD["none"]
    (found,) = [f for f in RECORD.values() if f["config"] and RoleConfig.from_dict(f["config"]) == config]
    assert found["repeated"] <= plain["repeated"] + 0.05
    assert found["fluency"] <= plain["fluency"] + 0.15
    assert name == "spotlight" or found["margin"] > plain["margin"]  # docs/steering.md says why
    assert "Paris" in found["replies"][0]


@pytest.mark.skipif(not CHAT_MODEL, reason="ROLESAFE_CHAT_MODEL names no chat model; it is not part of the project")
@pytest.mark.parametrize("name", FREE)
def test_untrained_preset_keeps_fluency(name):
    from transformers import AutoTokenizer

    from rolesafe.patching.loading import read_model

    bench = Bench(read_model(CHAT_MODEL).eval(), AutoTokenizer.from_pretrained(CHAT_MODEL), max_new_tokens=32)
    plain, found = bench.measure(None), bench.measure(RoleConfig.preset(name))
    assert found["repeated"] <= plain["repeated"] + 0.05
    assert found["fluency"] <= plain["fluency"] + 0.15
