"""Support of all causal language models of the installed transformers, with the reason for each that `patch` refuses.

    python -m benchmarks.families   # write benchmarks/results/families.json

`tests/patching/test_every_family.py` runs every family that passes, and compares the record with its transformers.
"""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from textwrap import fill
from typing import Any

import transformers
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from rolesafe.files import write_whole
from rolesafe.patching.families import FAMILIES, GAPS, OWN_ATTENTION
from rolesafe.terminal import run_main

RESULTS = Path(__file__).parent / "results" / "families.json"
PASSES = "passes"


def result_of(kind: str, name: str) -> str:
    """Return the result of a model type with the causal class `name`.

    It is "passes", "as X" where the class holds a text model of type X alone, or the reason that `patch` raises.

    Raises:
        ValueError: Nothing is known about the type.
    """
    if kind in FAMILIES:
        return PASSES
    model = getattr(transformers, name)
    text = model.config_class.model_type
    if text in FAMILIES:
        return f"as {text}"
    reason = GAPS.get(text) or GAPS.get(kind)
    if reason is None and hasattr(importlib.import_module(model.__module__), "ALL_ATTENTION_FUNCTIONS"):
        raise ValueError(f"`kind`: expected a type out of FAMILIES or GAPS of rolesafe.patching.families, got {kind!r}")
    return (reason or f"Missing: its attention {OWN_ATTENTION}").removeprefix("Missing: ")


def record() -> dict[str, Any]:
    """Return the results of all types of the installed transformers."""
    types = sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.items())
    results = {kind: result_of(kind, name) for kind, name in types}
    return {"transformers": transformers.__version__, "families": results}


def block() -> str:
    """Return the generated part of docs/patch.md."""
    about = json.loads(RESULTS.read_text(encoding="utf-8"))
    results: dict[str, str] = about["families"]
    passing = [kind for kind, result in results.items() if result == PASSES]
    lines = [
        f"{len(passing)} model types pass the tests, of {len(results)} causal language models in transformers "
        f"{about['transformers']}:",
        "",
        fill(", ".join(f"`{kind}`" for kind in passing) + ".", 130, break_on_hyphens=False),
        "",
        "| model type | result |",
        "| :-- | :-- |",
    ]
    others: dict[str, list[str]] = {}
    for kind, result in results.items():
        if result != PASSES:
            others.setdefault(result, []).append(f"`{kind}`")
    rows = sorted((", ".join(kinds), result) for result, kinds in others.items())
    lines += [
        f"| {kinds} | {'patched' if result.startswith('as ') else 'raises:'} {result} |" for kinds, result in rows
    ]
    return "\n".join(lines)


def main() -> int:
    """Write the record and return the exit status."""
    write_whole(RESULTS, json.dumps(record(), indent=1) + "\n")
    return 0


if __name__ == "__main__":
    run_main(main)
