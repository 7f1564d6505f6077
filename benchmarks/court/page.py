"""Part of the documentation page on the court that comes from the record."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parents[1] / "results" / "court.json"


def block() -> str:
    """Return the Markdown of the record."""
    found = json.loads(RESULTS.read_text(encoding="utf-8"))
    speed, vetoes, tries = found["speed"], found["vetoes"], found["tries"]
    lines = [
        f"{found['environment']['hardware']}; vocabulary of {speed['vocabulary']:,} tokens, {speed['steps']:,} steps, "
        f"llguidance {found['environment']['llguidance']}.",
        "",
        "| phrases | compile | step of the automaton, p50 / p99 | step of the court, p50 / p99 | llguidance: compile | "
        "mask, p50 / p99 |",
        "| --: | --: | --: | --: | --: | --: |",
    ]
    lines += [
        f"| {row['phrases']:,} | {row['compile_ms']:.0f} ms | {_pair(row, 'automaton')} | {_pair(row, 'court')} | "
        f"{_engine(row['llguidance'])} |"
        for row in speed["rows"]
    ]
    every = vetoes["clean_texts"] + vetoes["texts_with_a_phrase"]
    lines += [
        "",
        f"Once per tokenizer: {speed['vocabulary_once_ms']:.0f} ms for its bytes, {speed['template_once_ms']:.0f} ms "
        "for the end token of its chat template.",
        "",
        f"- False vetoes: {vetoes['false_vetoes']} in {vetoes['steps']:,} tokens of {every:,} texts; "
        f"{vetoes['missed']} of {vetoes['texts_with_a_phrase']:,} texts with a phrase passed.",
        f"- Violations: {tries['violations']} in {tries['tries']:,} replies of {tries['steps']} tokens whose logits an "
        f"attacker sets; the first choice was vetoed in {tries['first_choices_vetoed']:,} steps.",
    ]
    return "\n".join(lines)


def _pair(row: dict[str, Any], name: str) -> str:
    return f"{row[f'{name}_p50_us']:.1f} / {row[f'{name}_p99_us']:.1f} \u00b5s"


def _engine(row: dict[str, Any] | None) -> str:
    if row is None:
        return "not installed | "
    if "error" in row:
        return f"{row['compile_ms']:.0f} ms | error"
    return f"{row['compile_ms']:.0f} ms | {row['mask_p50_us']:.0f} / {row['mask_p99_us']:,.0f} \u00b5s"
