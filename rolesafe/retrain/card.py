"""Model card of a retraining: README.md in the checkpoint directory."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rolesafe.arguments import is_integer, is_number
from rolesafe.config import RoleConfig
from rolesafe.files import read_json, write_whole
from rolesafe.retrain.config import KINDS, PLAIN, RECIPE_NAME, RetrainConfig
from rolesafe.retrain.recipe import dump_yaml
from rolesafe.terminal import one_line

CARD_NAME = "README.md"
STATE_NAME = "retrain_state.json"
CHOICE = "dedicated_heads"
"""Entry of the state: pairs (layer, head) that were chosen."""

_LIMITS = (
    "Resistance is measured only for the tests above; other attacks were not tried.",
    "Fixed attack texts are easier to resist than attacks that adapt to the model.",
)
_ROLE_LIMITS = (
    "The model follows text in a privileged turn: write access to that turn gives control.",
    "The guarantees of the role layer (`rolesafe mechanisms`) are about attention, not about replies.",
    "Roles come from the messages: call the model with `role_ids` of `rolesafe.encode`, never with one text "
    "of all turns.",
)


@dataclass(frozen=True, kw_only=True)
class CardResult:
    """Measured figure of a model card.

    Attributes:
        name: Name of the measure, with the test set, such as ``"AlpacaFarm, naive injection: success"``.
        value: Measured value.
        low: Lower end of its 95% interval.
        high: Upper end of its 95% interval.
        n: Number of trials.
        base: Same figure of the base model; ``None`` where it is not measured.

    Raises:
        ValueError: A field has the wrong type, or `value` is outside of its interval.
    """

    name: str
    value: float
    low: float
    high: float
    n: int
    base: float | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name.strip():
            raise ValueError(f"`name`: expected a text, got {self.name!r}. Name the measure and the test set.")
        for name in ("value", "low", "high"):
            if not is_number(getattr(self, name)):
                raise ValueError(f"`{name}`: expected a number, got {getattr(self, name)!r}. Give a finite one.")
        if not self.low <= self.value <= self.high:
            raise ValueError(
                f"`value`: expected a number in its interval [{self.low}, {self.high}], got {self.value}. Correct the "
                "interval."
            )
        if not is_integer(self.n, 1):
            raise ValueError(f"`n`: expected an integer >= 1, got {self.n!r}. Give the number of trials.")
        if self.base is not None and not is_number(self.base):
            raise ValueError(f"`base`: expected a number or None, got {self.base!r}. Leave it out if unknown.")


def read_results(path: str | os.PathLike[str]) -> list[CardResult]:
    """Read results from a JSON file: ``{"results": [{"name", "value", "low", "high", "n", "base"}, ...]}``.

    Raises:
        ValueError: The file has another format.
        OSError: The file cannot be read.
    """
    found = read_json(path, "results of a model card").get("results")
    if not isinstance(found, list) or not all(isinstance(entry, dict) for entry in found):
        raise ValueError(
            f"`results`: expected a list of objects under 'results' in {os.fspath(path)!r}, got {found!r:.80}. "
            "Correct the file."
        )
    try:
        return [CardResult(**entry) for entry in found]
    except (TypeError, ValueError) as error:
        raise ValueError(f"`results`: {os.fspath(path)}: {error}") from error


def write_card(out: str | os.PathLike[str], results: Sequence[CardResult] = ()) -> Path:
    """Write the model card of a finished retraining, replacing an earlier one.

    Args:
        out: Directory that :func:`rolesafe.retrain.retrain` wrote.
        results: Measured figures; without any, the card states "Not yet measured".

    Returns:
        Path of the card.

    Raises:
        ValueError: `out` contains no finished retraining.
        OSError: The card cannot be written.
    """
    folder = Path(out)
    if not (folder / STATE_NAME).is_file() or not (folder / RECIPE_NAME).is_file():
        raise ValueError(f"`out`: expected the directory of a retraining, got {str(folder)!r}. Give another directory.")
    state = read_json(folder / STATE_NAME, "the state of a retraining")
    if state.get("status") != "complete":
        raise ValueError(f"`out`: expected a finished retraining in {str(folder)!r}, got an unfinished one. Resume it.")
    text = card_text(RetrainConfig.load(folder / RECIPE_NAME), state, results)
    return write_whole(folder / CARD_NAME, text)


def card_text(config: RetrainConfig, state: Mapping[str, Any], results: Sequence[CardResult] = ()) -> str:
    """Return the Markdown of a model card.

    Args:
        config: Recipe.
        state: State that the retraining wrote.
        results: Measured figures.
    """
    roles = config.preset != PLAIN
    front: dict[str, Any] = {
        "library_name": "peft" if config.lora else "transformers",
        "pipeline_tag": "text-generation",
    }
    if not Path(config.model).exists():
        front["base_model"] = config.model
    front["tags"] = ["rolesafe", "prompt-injection"] if roles else ["rolesafe"]
    layer = f"with the role layer `{config.preset}`" if roles else "without a role layer (plain supervised fine-tuning)"
    if roles and (floor := config.roles().share_floor):  # type: ignore[union-attr]
        layer += f" and a reserved share of at least {floor:g} in each head that is not dedicated"
    if chosen := state.get(CHOICE):
        layer += f" and {len(chosen):,} dedicated heads, those that the base model needed least"
    how = f"LoRA of rank {config.lora}" if config.lora else "all weights"
    counts = state["counts"]
    total = sum(counts.values())
    dropped = state["dropped"]
    lines = [
        f"---\n{dump_yaml(front)}---",
        f"# {_code(Path(config.model).name or config.model)} retrained with rolesafe",
        f"{_code(config.model)}, retrained {layer}: {how}, {state['steps']:,} steps, {state['tokens']:,} tokens, "
        f"{state['seconds']:,.0f} seconds, last loss {state['loss']:.3f}. The license of the base model and "
        "of the data applies.",
        "## How to load",
        _how_to_load(roles, bool(config.lora)),
        "## Data",
        f"{_code(Path(config.data).name or config.data)}: {state['sources']:,} rows, SHA-256 `{state['data_digest']}`. "
        f"Prepared: {total:,} rows, SHA-256 `{state['prepared_digest']}`; {dropped:,} rows were left out. Replies are "
        + ("the base model's own, greedy." if config.replies == "self" else "those of the data."),
        "| kind | rows |\n| --- | --- |\n" + "\n".join(f"| {kind} | {counts.get(kind, 0):,} |" for kind in KINDS),
        "## Results",
        _table(results),
        "## Limits",
        "\n".join(f"- {limit}" for limit in (*_LIMITS, *(_ROLE_LIMITS if roles else ()))),
        "## Recipe",
        f"Seed {config.seed}, for preparation, order and training. `rolesafe retrain --recipe {RECIPE_NAME} --out DIR` "
        f"repeats it.\n\n```yaml\n{_fenced(config.to_yaml())}```",
        "Versions: "
        + ", ".join(f"{name} {version}" for name, version in state["versions"])
        + f". {state['hardware']}.",
    ]
    return "\n\n".join(lines) + "\n"


def with_choice(config: RetrainConfig, state: Mapping[str, Any]) -> RoleConfig | None:
    """Return the role configuration of a retraining, with the dedicated heads that it chose; None without roles.

    Raises:
        ValueError: The choice is no list of pairs.
    """
    roles = config.roles()
    if roles is None or CHOICE not in state:
        return roles
    return RoleConfig.from_dict({**roles.to_dict(), CHOICE: state[CHOICE]})


def _how_to_load(roles: bool, adapter: bool) -> str:
    if adapter:
        code = 'from rolesafe.retrain import load_retrained\n\nmodel, tokenizer = load_retrained("DIRECTORY")'
    elif roles:
        code = (
            "import rolesafe\nfrom transformers import AutoTokenizer\n\n"
            'model = rolesafe.from_pretrained("DIRECTORY")\ntokenizer = AutoTokenizer.from_pretrained("DIRECTORY")'
        )
    else:
        code = (
            "from transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
            'model = AutoModelForCausalLM.from_pretrained("DIRECTORY")\n'
            'tokenizer = AutoTokenizer.from_pretrained("DIRECTORY")'
        )
    if roles:
        code += (
            "\nbatch = rolesafe.encode(tokenizer, messages, config=model.rolesafe_config, add_generation_prompt=True)\n"
            "model.generate(**batch)"
        )
        code = code if "import rolesafe\n" in code else f"import rolesafe\n{code}"
    return f"```python\n{code}\n```"


def _table(results: Sequence[CardResult]) -> str:
    if not results:
        return "Not yet measured. `rolesafe retrain --out DIRECTORY --results FILE` adds results to this card."
    rows = ["| | this model (95% interval) | base model | n |", "| --- | --- | --- | --- |"]
    for result in results:
        base = "" if result.base is None else f"{result.base:.4g}"
        figure = f"{result.value:.4g} ({result.low:.4g} to {result.high:.4g})"
        rows.append(f"| {_cell(result.name)} | {figure} | {base} | {result.n:,} |")
    return "\n".join(rows)


def _cell(text: str) -> str:
    return one_line(text).replace("|", "\\|").replace("<", "&lt;")


def _code(text: str) -> str:
    return f"`{one_line(text).replace('`', '')}`"


def _fenced(text: str) -> str:
    return text.replace("```", "'''")


def save_state(folder: Path, state: Mapping[str, Any]) -> None:
    """Write the state of a retraining.

    Raises:
        OSError: The file cannot be written.
    """
    write_whole(folder / STATE_NAME, json.dumps(dict(state), indent=1, allow_nan=False) + "\n")
