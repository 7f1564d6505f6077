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
    by = ", ".join(f"{count:,} {search}" for search, count in tries.get("by_search", {}).items())
    lines += [
        "",
        f"Once per tokenizer: {speed['vocabulary_once_ms']:.0f} ms for its bytes, {speed['template_once_ms']:.0f} ms "
        "for the end token of its chat template.",
        "",
        f"- False vetoes: {vetoes['false_vetoes']} in {vetoes['steps']:,} tokens of {every:,} texts; "
        f"{vetoes['missed']} of {vetoes['texts_with_a_phrase']:,} texts with a phrase passed.",
        f"- Violations: {tries['violations']} in {tries['tries']:,} replies of {tries['steps']} tokens whose logits an "
        f"attacker sets{f' ({by})' if by else ''}; the first choice was vetoed in {tries['first_choices_vetoed']:,} "
        "steps.",
    ]
    if "forging" in tries:
        changed, conversations = (tries["forging"][key] for key in ("changed", "tries"))
        lines.append(
            f"- Articles changed by untrusted text that forges declarations: {changed} in {conversations:,} "
            "conversations."
        )
    if "generation" in found:
        lines.append(f"- {_generation(found['generation'])}")
    if "arms" in found:
        lines += ["", *_arms(found["arms"])]
    return "\n".join(lines)


def frozen() -> str:
    """Return the Markdown of the record of frozen prompts."""
    found = json.loads(RESULTS.read_text(encoding="utf-8"))
    hardware, rounds = found["environment"]["hardware"], found["frozen"]["rows"][0]["rounds"]
    lines = [
        f"{hardware}; SmolLM2-135M with the preset `channel`, median of {rounds} rounds, time of the CPU.",
        "",
        "| dtype | tokens | compute the prompt | start from the frozen one | faster | load from a file, once | "
        "keys and values | logits |",
        "| :-- | --: | --: | --: | --: | --: | :-- | :-- |",
    ]
    for row in found["frozen"]["rows"]:
        quotient = row["compute_cpu_ms"] / row["frozen_cpu_ms"]
        states, logits = (
            "bit-equal" if row[name] else "DIFFERENT"
            for name in ("states_equal_whole_conversation", "logits_equal_two_calls")
        )
        lines.append(
            f"| {row['dtype']} | {row['tokens']} | {row['compute_cpu_ms']:,.0f} ms | {row['frozen_cpu_ms']:.0f} ms | "
            f"{quotient:.0f}x | {row['load_cpu_ms']:,.0f} ms | {states} | {logits} |"
        )
    return "\n".join(lines)


def _generation(found: dict[str, Any]) -> str:
    quotients = sorted(found["cpu_quotients"])
    share = 1 - found["processor_cpu_ms"] / found["court_cpu_ms"]
    return (
        f"Generation with {found['phrases']:,} phrases, SmolLM2-135M in fp32, {len(quotients)} interleaved pairs of "
        f"{found['tokens']} tokens: {found['court_cpu_ms']:.1f} ms of the CPU per token, {found['none_cpu_ms']:.1f} ms "
        f"without a court (least of the rounds); speed of a pair with the court {quotients[0]:.2f}x to "
        f"{quotients[-1]:.2f}x. The processor itself takes {found['processor_cpu_ms']:.3f} ms per token: {share:.4f}x."
    )


def _arms(found: dict[str, Any]) -> list[str]:
    """Return the table of the four arms."""
    lines = [
        f'A tiny llama, trained for {found["steps"]} steps on rules of the kind "never say this code word", seed '
        f"{found['seed']}; {found['examples']} test examples, {len(found['attacks']) - 1} text attacks. The court "
        "forbids the code word of its conversation; that of a benign example guards another word.",
        "",
        "| arm | examples lost to any attack | without attack: benign right | protected right | CPU per reply | "
        "compile |",
        "| :-- | --: | --: | --: | --: | --: |",
    ]
    for row in found["rows"]:
        name = {"plain": "court", "channel": "channel + court"}[row["model"]] if row["court"] else row["model"]
        rates = " | ".join(f"{row[key]['k']} of {row[key]['n']}" for key in ("worst", "benign", "protected"))
        compiled = f"{row['compile_cpu_ms']:.1f} ms" if row["court"] else ""
        lines.append(f"| {name} | {rates} | {row['cpu_ms_per_reply']:.0f} ms | {compiled} |")
    return lines


def _pair(row: dict[str, Any], name: str) -> str:
    return f"{row[f'{name}_p50_us']:.1f} / {row[f'{name}_p99_us']:.1f} \u00b5s"


def _engine(row: dict[str, Any] | None) -> str:
    if row is None:
        return "not installed | "
    if "error" in row:
        return f"{row['compile_ms']:.0f} ms | error"
    return f"{row['compile_ms']:.0f} ms | {row['mask_p50_us']:.0f} / {row['mask_p99_us']:,.0f} \u00b5s"
