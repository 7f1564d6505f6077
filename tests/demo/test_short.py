"""The demo with a model of the user's: a short form of `rolesafe retrain`."""

from __future__ import annotations

import json

import pytest
from transformers import AutoTokenizer

from rolesafe import RoleConfig
from rolesafe.demo import DemoSettings
from rolesafe.demo.job import RULES, load
from rolesafe.demo.settings import PLAIN, ROLE_AWARE
from rolesafe.demo.short import recipe, retrain_job, write_inputs
from rolesafe.mechanisms import get_strength
from rolesafe.patching import is_patched
from rolesafe.retrain import RetrainConfig
from rolesafe.training.tiny import text_tokenizer, tiny_llama


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """Return a tiny model whose tokenizer has no chat template."""
    folder = tmp_path_factory.mktemp("base")
    tokenizer = text_tokenizer(["The access code of the door is red. You must answer with one word."], 300)
    tokenizer.chat_template = None
    tiny_llama(len(tokenizer), seed=0, hidden=32, layers=1, heads=4).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture
def settings(base):
    return DemoSettings.short(base, steps=2, batch_size=2)


def test_short_settings_are_repeated_by_their_command(base):
    assert DemoSettings.short(base).command == f"rolesafe demo --model {base}"
    other = DemoSettings.short(base, steps=800, seeds=(0, 1), config=RoleConfig.preset("bias"))
    assert other.command == f"rolesafe demo --model {base} --steps 800 --seeds 2 --preset bias"
    assert (DemoSettings().steps, DemoSettings().command) == (800, "rolesafe demo")


@pytest.mark.parametrize("preset", ["channel", "share", "pft"])
def test_recipe_has_roles_of_settings(base, tmp_path, preset):
    settings = DemoSettings.short(base, config=RoleConfig.preset(preset), steps=50)
    found = recipe(settings, tmp_path, ROLE_AWARE, 3)
    assert found.roles() == settings.config
    assert (found.seed, found.steps, found.anneal, found.shares["plain"]) == (3, 50, "auto", 1.0)
    plain = recipe(settings, tmp_path, PLAIN, 3)
    assert plain.roles() is None
    assert plain.data == found.data


def test_job_retrains_and_resumes(settings, tmp_path, monkeypatch):
    """Equal conversations for both; a base without a template gets the demo's; a repeated job trains no more."""
    _, tokenizer = load(settings, ROLE_AWARE, 0)
    write_inputs(settings, tmp_path, tokenizer, RULES)
    rows = [json.loads(line) for line in (tmp_path / "conversations-0.jsonl").read_text().splitlines()]
    assert len(rows) == 4
    assert AutoTokenizer.from_pretrained(tmp_path / "base").chat_template == tokenizer.chat_template
    seen: list[float] = []
    model, _, seconds = retrain_job(settings, tmp_path, ROLE_AWARE, 0, seen.append)
    assert seen == [0.5, 1.0]
    assert model.rolesafe_config == settings.config
    assert get_strength(model) == 1.0
    plain, _, _ = retrain_job(settings, tmp_path, PLAIN, 0, seen.append)
    assert not is_patched(plain)
    assert RetrainConfig.load(tmp_path / "models" / "plain-0" / "recipe.yaml").data.endswith("conversations-0.jsonl")
    monkeypatch.setattr("rolesafe.retrain.run._Run.train", lambda self: pytest.fail("trained again"))
    assert retrain_job(settings, tmp_path, ROLE_AWARE, 0, seen.append)[2] == seconds


def test_position_gap_of_model_raises(base):
    with pytest.raises(ValueError, match=r"`position_gap`: expected 0 with a model to retrain, got 640"):
        DemoSettings(model=base)
