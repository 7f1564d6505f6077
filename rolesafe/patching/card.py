"""Model card of a role-aware model on the hub: base, mechanism, guarantees, how to load it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard

from rolesafe.config import RoleConfig
from rolesafe.mechanisms import get_strength
from rolesafe.patching.patched import named_role_parameters
from rolesafe.presets import PRESETS
from rolesafe.terminal import one_line

CARD_NAME = "README.md"
LIBRARY = "rolesafe"
TAGS = ("role-aware", "instruction-hierarchy")

_MARK = "<!-- written by rolesafe -->"
_BLANK = "This is the model card of a 🤗 transformers model that has been pushed on the Hub."
"""Sentence of the card that transformers writes where there is none."""

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")

_LIMITS = (
    "The model follows text in a privileged turn: write access to that turn gives control.",
    "The guarantees are about attention, not about replies. Measure resistance for your use: `rolesafe audit`.",
    "Roles come from the messages. Call the model with `role_ids` of `rolesafe.encode`; text without roles raises.",
)


def write_card(model: Any, folder: Path, repo_id: str) -> None:
    """Write the model card of `model` into `folder`, in place of the blank one that transformers wrote there.

    A card that somebody wrote keeps its text; its metadata gets the library and the tags.
    """
    file = folder / CARD_NAME
    card: Any = ModelCard.load(file)
    kept = {"license": card.data.license, "tags": list(dict.fromkeys([*TAGS, *(card.data.tags or [])]))}
    if _BLANK in card.text or _MARK in card.text:
        card = ModelCard(card_text(model, repo_id))
    card.data.library_name = LIBRARY
    card.data.license, card.data.tags = kept["license"], kept["tags"]
    card.save(file)


def card_text(model: Any, repo_id: str) -> str:
    """Return the card of `model` in Markdown with its metadata."""
    config, base = model.rolesafe_config, str(model.config.name_or_path or "")
    on_hub = bool(_HUB_ID.fullmatch(base)) and not Path(base).exists() and base != repo_id
    count = sum(parameter.numel() for _, parameter in named_role_parameters(model))
    strength = get_strength(model)
    repo_id = _plain(repo_id)
    lines = [
        "---",
        *([f"base_model: {base}"] if on_hub else []),
        "pipeline_tag: text-generation",
        "---",
        _MARK,
        f"# {repo_id}",
        "A causal language model with role-aware attention: attention depends on the role of each token (system, user, "
        "tool, ...), which comes from the messages, never from the text.",
        "## Base",
        f"{type(model).__name__.removeprefix('RoleAware')}"
        + (f", from [{base}](https://huggingface.co/{base})" if on_hub else "")
        + f". The role layer has {count:,} parameters, at strength {strength:g}.",
        "## Mechanism",
        _mechanism(config),
        f"```json\n{json.dumps(_changes(config), indent=2)}\n```",
        "## Guarantees",
        _guarantees(config, strength),
        "## How to load",
        "```python\n"
        "import rolesafe  # pip install rolesafe\n"
        "from transformers import AutoTokenizer\n\n"
        f'model = rolesafe.from_pretrained("{repo_id}")\n'
        f'tokenizer = AutoTokenizer.from_pretrained("{repo_id}")\n'
        "batch = rolesafe.encode(tokenizer, messages, config=model.rolesafe_config, add_generation_prompt=True)\n"
        "model.generate(**batch)\n"
        "```",
        "`AutoModelForCausalLM` raises on this checkpoint: it would drop the role layer.",
        "## Limits",
        "\n".join(f"- {limit}" for limit in _LIMITS),
    ]
    return "\n\n".join(lines).replace("---\n\n", "---\n", 1).replace("\n\n---", "\n---", 1) + "\n"


def _plain(text: str) -> str:
    return one_line(text).replace("`", "").replace('"', "")


def _changes(config: RoleConfig) -> dict[str, Any]:
    """Return the roles and the settings that differ from the defaults."""
    plain, found = RoleConfig().to_dict(), config.to_dict()
    shown = ("roles", "privileged", "generated")
    return {name: value for name, value in found.items() if name in shown or value != plain.get(name)}


def _mechanism(config: RoleConfig) -> str:
    same = next((name for name in PRESETS if RoleConfig.preset(name).to_dict() == config.to_dict()), None)
    if same is None:
        return "Settings of `rolesafe.RoleConfig` that differ from the defaults, and the roles:"
    return f"Preset `{same}` of `rolesafe.RoleConfig`: {PRESETS[same].adds}."


def _guarantees(config: RoleConfig, strength: float) -> str:
    parts = {
        "dedicated": config.dedicated_heads,
        "added": config.added_heads,
        "share": config.share,
        "integrity": config.integrity,
    }
    lines = [f"- `{name}`: {PRESETS[name].guarantee}" for name, value in parts.items() if value]
    if not lines:
        return "None for all texts: how the model treats roles is learned."
    if strength < 1:
        lines.append(f"- These hold at strength 1; this checkpoint has strength {strength:g}, where they do not.")
    return "\n".join(lines)
