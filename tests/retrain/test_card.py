"""Model card: figures, missing measurements, hostile names."""

from __future__ import annotations

import json

import pytest

from rolesafe.retrain import CardResult, RetrainConfig, write_card
from rolesafe.retrain.card import card_text, read_results

STATE = {
    "status": "complete", "counts": {"clean": 1, "injected": 2, "benign": 3, "plain": 4}, "dropped": 5, "steps": 6,
    "tokens": 7000, "seconds": 8.0, "loss": 1.25, "sources": 9, "data_digest": "d" * 64, "prepared_digest": "e" * 64,
    "versions": [["torch", "2"]], "hardware": "CPU",
}  # fmt: skip
RESULT = {"name": "SEP", "value": 0.5, "low": 0.4, "high": 0.6, "n": 1000}


@pytest.mark.parametrize(
    ("changes", "texts"),
    [
        ({}, ("rolesafe.from_pretrained", "all weights", "base_model: org/chat", "library_name: transformers")),
        ({"preset": "plain"}, ("AutoModelForCausalLM", "without a role layer")),
        ({"lora": 8}, ("load_retrained", "LoRA of rank 8", "library_name: peft")),
        ({"replies": "self"}, ("the base model's own",)),
    ],
)
def test_card_describes_the_training(changes, texts):
    card = card_text(RetrainConfig(model="org/chat", data="d.json", **changes), STATE)
    for text in (*texts, "7,000 tokens", "| injected | 2 |", "5 rows were left out", "Not yet measured", "torch 2"):
        assert text in card
    assert ("role_ids" in card) == (changes.get("preset") != "plain")


def test_card_has_results_with_intervals():
    card = card_text(RetrainConfig(model="m", data="d"), STATE, [CardResult(**RESULT), CardResult(**RESULT, base=0.25)])
    assert "| SEP | 0.5 (0.4 to 0.6) |  | 1,000 |\n| SEP | 0.5 (0.4 to 0.6) | 0.25 | 1,000 |" in card
    assert "Not yet measured" not in card


def test_card_escapes_names():
    config = RetrainConfig(model="a`\x1b[31m\nb", data="```\n# x")
    card = card_text(config, STATE, [CardResult(**{**RESULT, "name": "a|b\n<script>"})])
    assert "\x1b" not in card
    assert "a\\|b\\x0a&lt;script>" in card
    assert card.count("```") == 4


@pytest.mark.parametrize(
    "changes", [{"name": ""}, {"value": 0.7}, {"low": float("nan")}, {"n": 0}, {"base": "x"}, {"extra": 1}]
)
def test_results_with_bad_field_name_it(tmp_path, changes):
    path = tmp_path / "results.json"
    path.write_text(json.dumps({"results": [{**RESULT, **changes}]}))
    with pytest.raises(
        ValueError, match=rf"`results`: .*results.json.*{next(iter(changes)) if 'low' not in changes else 'low'}"
    ):
        read_results(path)


def test_results_are_read(tmp_path):
    path = tmp_path / "results.json"
    path.write_text(json.dumps({"results": [RESULT]}))
    assert read_results(path) == [CardResult(**RESULT)]
    path.write_text("{}")
    with pytest.raises(ValueError, match="`results`: expected a list"):
        read_results(path)


def test_card_of_an_unfinished_run_raises(tmp_path):
    with pytest.raises(ValueError, match="`out`: expected the directory of a retraining"):
        write_card(tmp_path)
    (tmp_path / "recipe.yaml").write_text("model: m\ndata: d\n")
    (tmp_path / "retrain_state.json").write_text('{"status": "begun"}')
    with pytest.raises(ValueError, match="`out`: expected a finished retraining"):
        write_card(tmp_path)
