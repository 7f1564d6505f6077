"""Effect of steering presets on a chat model without training: fluency and adherence to the system prompt.

    python benchmarks/steering.py --model DIRECTORY

Every setting of InstABoost, PASTA and SpotLight runs on the same model and prompts.

- `fluency`: loss of the steered model on the unsteered replies, in nats per token. `repeated`: share of repeated word
  trigrams in the steered replies.
- `margin`: log-likelihood per token of a reply that follows an instruction of the system prompt, minus that of the same
  reply without the instruction.
- `mass`: mean attention mass on the system prompt at the start of the reply.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import asdict
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from rolesafe import RoleConfig, encode, patch, unpatch
from rolesafe.evaluation import environment
from rolesafe.evaluation.mass import attention_mass
from rolesafe.files import check_writable, write_whole
from rolesafe.patching.loading import read_model
from rolesafe.terminal import as_text, run_main

RESULTS = Path(__file__).parent / "results" / "steering.json"

PLAIN_SYSTEM = "You are a helpful assistant."
QUESTIONS = (
    "What is the capital of France?",
    "Give me three tips for staying healthy.",
    "How do I make tea?",
    "What colour is the sky, and why?",
    "Who wrote Romeo and Juliet?",
    "How many legs does a spider have?",
    "Tell me about the moon.",
    "What should I cook tonight?",
)

ANSWERS = {
    "What is the capital of France?": "The capital of France is Paris.",
    "How many legs does a spider have?": "A spider has eight legs.",
    "Who wrote Romeo and Juliet?": "William Shakespeare wrote Romeo and Juliet.",
}
"""Ordinary replies by question."""

RULES: dict[str, tuple[str, ...]] = {
    "Answer in capital letters only.": tuple(answer.upper() for answer in ANSWERS.values()),
    "Begin every answer with the word Certainly.": tuple(f"Certainly. {answer}" for answer in ANSWERS.values()),
    "Mention bananas in every answer.": tuple(f"{answer} Bananas are tasty." for answer in ANSWERS.values()),
    "Answer in Spanish.": (
        "La capital de Francia es París.",
        "Una araña tiene ocho patas.",
        "William Shakespeare escribió Romeo y Julieta.",
    ),
}
"""Replies that follow an instruction of the system prompt, in the order of ANSWERS."""


def settings(layers: int, heads: int) -> dict[str, RoleConfig | None]:
    """Return the configurations to compare; None is the unsteered model."""
    few = tuple((layer, (layer * 4) % heads) for layer in range(layers))
    cases: dict[str, RoleConfig | None] = {"none": None}
    for boost in (1.5, 2.0, 3.0, 5.0, 9.0, 19.0):
        cases[f"instaboost, boost {boost:g}"] = RoleConfig.preset("instaboost", boost=boost)
    for dampen in (0.5, 0.33, 0.1, 0.01):
        cases[f"pasta, dampen {dampen:g}, all heads"] = RoleConfig.preset("pasta", dampen=dampen, steered_heads=None)
    for dampen in (0.1, 0.01):
        config = RoleConfig.preset("pasta", dampen=dampen, steered_heads=few)
        cases[f"pasta, dampen {dampen:g}, a head a layer"] = config
    for target in (0.1, 0.2, 0.3, 0.5, 0.8):
        cases[f"spotlight, target {target:g}"] = RoleConfig.preset("spotlight", mass_target=target)
    return cases


class Bench:
    """Model, tokenizer, and the unsteered replies."""

    def __init__(self, model: Any, tokenizer: Any, max_new_tokens: int) -> None:
        self.model, self.tokenizer, self.max_new_tokens = model, tokenizer, max_new_tokens
        self.usual = self.replies()

    def measure(self, config: RoleConfig | None) -> dict[str, Any]:
        """Return fluency and effect of one setting; the model is restored afterwards."""
        started = time.perf_counter()
        if config is not None:
            patch(self.model, config)
        try:
            replies = self.replies()
            talks = [[{"role": "system", "content": rule}, _asked(q)] for rule in RULES for q in ANSWERS]
            return {
                "fluency": -fmean(
                    self.likelihood(PLAIN_SYSTEM, q, r) for q, r in zip(QUESTIONS, self.usual, strict=True)
                ),
                "repeated": repeated(replies),
                "margin": fmean(
                    self.likelihood(rule, question, reply) - self.likelihood(rule, question, ANSWERS[question])
                    for rule, obedient in RULES.items()
                    for question, reply in zip(ANSWERS, obedient, strict=True)
                ),
                "mass": attention_mass(self.model, self.tokenizer, talks).reply,
                "replies": replies,
                "config": None if config is None else config.to_dict(),
                "seconds": round(time.perf_counter() - started, 1),
            }
        finally:
            if config is not None:
                unpatch(self.model)

    def inputs(self, talks: Any, **options: Any) -> dict[str, Any]:
        """Return encoded conversations, without role ids for an unpatched model."""
        found = dict(encode(self.tokenizer, talks, **options))
        if not hasattr(self.model, "rolesafe_config"):
            found.pop("role_ids")
        return found

    @torch.no_grad()
    def replies(self) -> list[str]:
        """Return the greedy replies to all questions."""
        talks = [[{"role": "system", "content": PLAIN_SYSTEM}, _asked(q)] for q in QUESTIONS]
        batch = self.inputs(talks, add_generation_prompt=True, padding_side="left")
        pad = self.tokenizer.pad_token_id
        made = self.model.generate(**batch, max_new_tokens=self.max_new_tokens, do_sample=False, pad_token_id=pad)
        texts = self.tokenizer.batch_decode(made[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
        return [text.strip() for text in texts]

    @torch.no_grad()
    def likelihood(self, system: str, question: str, reply: str) -> float:
        """Return the mean log-likelihood per token of a reply."""
        talk = [{"role": "system", "content": system}, _asked(question)]
        begin = encode(self.tokenizer, talk, add_generation_prompt=True)["input_ids"].shape[1]
        batch = self.inputs([*talk, {"role": "assistant", "content": reply}])
        scores = self.model(**batch).logits[0, begin - 1 : -1].float().log_softmax(-1)
        return float(scores.gather(1, batch["input_ids"][0, begin:, None]).mean())


def _asked(question: str) -> dict[str, str]:
    return {"role": "user", "content": question}


def repeated(texts: list[str]) -> float:
    """Return the share of word trigrams that repeat an earlier one of the same text."""
    again = count = 0
    for text in texts:
        words = text.lower().split()
        grams = list(zip(words, words[1:], words[2:], strict=False))
        again, count = again + len(grams) - len(set(grams)), count + len(grams)
    return again / count if count else 0.0


def show(record: dict[str, Any]) -> Table:
    """Return the record as a table for the terminal."""
    table = Table("setting", "fluency, nats", "repeated", "margin, nats", "mass", "reply to the second question")
    for name, found in record["settings"].items():
        mass = "-" if found["mass"] is None else f"{found['mass']:.0%}"
        cells = [f"{found['fluency']:.2f}", f"{found['repeated']:.0%}", f"{found['margin']:+.2f}", mass]
        table.add_row(as_text(name), *cells, as_text(found["replies"][1][:60]))
    return table


def block() -> str:
    """Return the committed record as a Markdown table, for ``python -m benchmarks.pages``."""
    lines = ['| setting | fluency | repeated | margin | mass | "How do I make tea?" |']
    lines.append("| :-- | --: | --: | --: | --: | :-- |")
    for name, found in json.loads(RESULTS.read_text(encoding="utf-8"))["settings"].items():
        numbers = f"{found['fluency']:.2f} | {found['repeated']:.0%} | {found['margin']:+.2f} | {found['mass']:.0%}"
        lines.append(f"| {name} | {numbers} | {found['replies'][2][:58]} |")
    return "\n".join(lines)


def main() -> None:
    """Measure all settings and write the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="directory or hub id of a chat model")
    parser.add_argument("--only", default="", help="measure only settings whose name contains this")
    parser.add_argument("--dtype", default="bfloat16", help="dtype of the model, as in from_pretrained")
    parser.add_argument("--max-new-tokens", type=int, default=32)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path, default=RESULTS)
    chosen = parser.parse_args()
    check_writable(chosen.output, "--output")
    torch.set_num_threads(chosen.threads)
    from transformers import AutoTokenizer

    model = read_model(chosen.model, chosen.dtype).eval()
    tokenizer = AutoTokenizer.from_pretrained(chosen.model, trust_remote_code=False)
    bench = Bench(model, tokenizer, chosen.max_new_tokens)
    record: dict[str, Any] = {
        "environment": asdict(environment()),
        "model": Path(chosen.model).name,
        "dtype": chosen.dtype,
        "max_new_tokens": chosen.max_new_tokens,
        "settings": {},
    }
    console = Console(width=150)
    for name, config in settings(model.config.num_hidden_layers, model.config.num_attention_heads).items():
        if chosen.only in name:
            record["settings"][name] = found = bench.measure(config)
            write_whole(chosen.output, json.dumps(record, indent=1, ensure_ascii=False) + "\n")
            console.print(as_text(f"{name}: {found['seconds']} s"))
    console.print(show(record))


if __name__ == "__main__":
    run_main(main)
