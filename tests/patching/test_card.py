"""Model card of `push_to_hub`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import transformers.utils.hub as hub
from huggingface_hub import ModelCard
from huggingface_hub.errors import EntryNotFoundError

import rolesafe
from rolesafe import RoleConfig
from rolesafe.mechanisms import set_strength
from tests.models import role_model


@pytest.fixture
def pushed(monkeypatch, tmp_path):
    """Return a function that pushes a model to a made-up hub and returns the files as uploaded."""

    def push(model: Any, existing: str | None = None) -> Path:
        class Api:
            def create_repo(self, repo_id: str, **options: Any) -> Any:
                return type("Repo", (), {"repo_id": repo_id})

        def load(repo_id: Any, **options: Any) -> ModelCard:
            if isinstance(repo_id, Path):
                return original(repo_id, **options)
            if existing is None:
                raise EntryNotFoundError("no card")
            return ModelCard(existing)

        def upload(self: Any, working_dir: Any, repo_id: str, **options: Any) -> str:
            for file in Path(working_dir).iterdir():
                (tmp_path / file.name).write_bytes(file.read_bytes())
            return repo_id

        original = ModelCard.load
        monkeypatch.setattr(hub, "hf_api", Api)
        monkeypatch.setattr(ModelCard, "load", load)
        monkeypatch.setattr(hub.PushToHubMixin, "_upload_modified_files", upload)
        model.push_to_hub("somebody/some-model")
        monkeypatch.undo()
        return tmp_path

    return push


def test_card_names_base_mechanism_guarantees_and_loading(pushed):
    model = role_model("llama", RoleConfig.preset("channel", share=0.25))
    model.config.name_or_path = "meta-llama/Llama-3.2-1B"
    folder = pushed(model)
    card = ModelCard.load(folder / "README.md")
    assert card.data.library_name == "rolesafe"
    assert card.data.base_model == "meta-llama/Llama-3.2-1B"
    assert card.data.pipeline_tag == "text-generation"
    assert "role-aware" in card.data.tags
    for text in (
        "# somebody/some-model",
        "LlamaForCausalLM, from [meta-llama/Llama-3.2-1B]",
        'rolesafe.from_pretrained("somebody/some-model")',
        '"share": 0.25',
        "never see an unprivileged key",
        "at strength 1.",
    ):
        assert text in card.text, text
    assert "transformers model that has been pushed" not in card.text
    assert rolesafe.from_pretrained(folder).rolesafe_config == model.rolesafe_config


def test_card_of_lower_strength_says_so(pushed):
    model = role_model("llama", RoleConfig.preset("dedicated"))
    set_strength(model, 0.5)
    text = ModelCard.load(pushed(model) / "README.md").text
    assert "strength 0.5, where they do not" in text


def test_card_of_learned_bias_has_no_guarantee(pushed):
    assert "None for all texts" in ModelCard.load(pushed(role_model("llama", RoleConfig())) / "README.md").text


def test_own_card_keeps_its_text(pushed):
    own = "---\nlicense: mit\ntags: [mine]\n---\n# Mine\n\nMy text.\n"
    card = ModelCard.load(pushed(role_model("llama", RoleConfig()), own) / "README.md")
    assert card.text.strip() == "# Mine\n\nMy text."
    assert (card.data.license, card.data.library_name) == ("mit", "rolesafe")
    assert "mine" in card.data.tags


def test_card_of_an_earlier_push_is_written_anew(pushed):
    old = "---\nlicense: mit\n---\n<!-- written by rolesafe -->\n# old\n"
    card = ModelCard.load(pushed(role_model("llama", RoleConfig()), old) / "README.md")
    assert "# old" not in card.text
    assert card.data.license == "mit"
