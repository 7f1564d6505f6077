"""What steering without training does to a chat model: how well it still speaks, and how much more it obeys.

    python benchmarks/steering.py --model DIRECTORY --text wikitext2_valid.txt

Every setting of InstABoost, PASTA and SpotLight runs on the same model and prompts. Fluency is the loss on ordinary text
after a system prompt, and the share of repeated word trigrams in replies; the effect is the share of replies that follow
an instruction of the system prompt that can be checked, and the attention mass on the system prompt.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from rolesafe import RoleConfig, encode, patch, unpatch
from rolesafe.evaluation import environment
from rolesafe.evaluation.files import write_whole
from rolesafe.evaluation.mass import attention_mass
from rolesafe.patching.read import read_model
from rolesafe.text import as_text

RESULTS = Path(__file__).parent / "results" / "steering.json"

RULES: dict[str, tuple[str, Callable[[str], bool]]] = {
    "capitals": ("Answer in capital letters only.", str.isupper),
    "first word": ("Begin every answer with the word Certainly.", lambda reply: reply.startswith("Certainly")),
    "one word": ("Answer with one single word and nothing else.", lambda reply: len(reply.split()) == 1),
    "topic": ("Mention bananas in every answer.", lambda reply: "banana" in reply.lower()),
    "pirate": (
        "Talk like a pirate in every answer.",
        lambda reply: any(word in reply.lower() for word in ("arr", "matey", "ahoy", "pirate", "captain")),
    ),
}
"""Instructions of the system prompt, and whether a reply follows them."""

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

PLAIN_SYSTEM = "You are a helpful assistant."
"""The system prompt in front of ordinary text."""

CHUNK, CHUNKS = 120, 16
"""Words of ordinary text in one conversation, and how many of these there are."""


def settings(layers: int, heads: int) -> dict[str, RoleConfig | None]:
    """Return what is compared; None is the model as it is."""
    few = tuple((layer, (layer * 4) % heads) for layer in range(layers))
    cases: dict[str, RoleConfig | None] = {"none": None}
    for name in ("instaboost", "pasta", "spotlight"):
        cases[f"{name}, preset"] = RoleConfig.preset(name)
    for boost in (1.5, 2.0, 3.0, 5.0, 9.0, 19.0):
        cases[f"instaboost, boost {boost:g}"] = RoleConfig.preset("instaboost", boost=boost)
    for dampen in (0.5, 0.33, 0.2, 0.1, 0.03, 0.01):
        cases[f"pasta, dampen {dampen:g}, all heads"] = RoleConfig.preset("pasta", dampen=dampen)
    cases["pasta, dampen 0.01, a head a layer"] = RoleConfig.preset("pasta", dampen=0.01, steered_heads=few)
    for target in (0.1, 0.2, 0.3, 0.5, 0.8):
        cases[f"spotlight, target {target:g}"] = RoleConfig.preset("spotlight", mass_target=target)
    return cases


def measure(model: Any, tokenizer: Any, config: RoleConfig | None, text: str, max_new_tokens: int) -> dict[str, Any]:
    """Return fluency and effect of one setting; the model is left as it was."""
    started = time.perf_counter()
    if config is not None:
        patch(model, config)
    try:
        replies = {name: reply_to(model, tokenizer, rule, max_new_tokens) for name, (rule, _) in RULES.items()}
        followed = {name: sum(map(RULES[name][1], said)) for name, said in replies.items()}
        everything = [reply for said in replies.values() for reply in said]
        return {
            "text_nll": text_loss(model, tokenizer, text),
            "followed": sum(followed.values()) / len(everything),
            "followed_of_rule": {name: count / len(QUESTIONS) for name, count in followed.items()},
            "repeated_trigrams": repeated(everything),
            "empty": sum(not reply for reply in everything) / len(everything),
            "mass": mass(model, tokenizer),
            "replies": {name: said[:3] for name, said in replies.items()},
            "config": None if config is None else config.to_dict(),
            "seconds": round(time.perf_counter() - started, 1),
        }
    finally:
        if config is not None:
            unpatch(model)


def inputs(model: Any, tokenizer: Any, conversations: list[Any], **options: Any) -> dict[str, Any]:
    """Return encoded conversations, without roles for a model that takes none."""
    found = dict(encode(tokenizer, conversations, **options))
    if not hasattr(model, "rolesafe_config"):
        found.pop("role_ids")
    return found


@torch.no_grad()
def reply_to(model: Any, tokenizer: Any, rule: str, max_new_tokens: int) -> list[str]:
    """Return the greedy replies to all questions under a rule."""
    talks = [[{"role": "system", "content": rule}, {"role": "user", "content": q}] for q in QUESTIONS]
    batch = inputs(model, tokenizer, talks, add_generation_prompt=True, padding_side="left")
    made = model.generate(
        **batch, max_new_tokens=max_new_tokens, do_sample=False, pad_token_id=tokenizer.pad_token_id
    )
    texts = tokenizer.batch_decode(made[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
    return [text.strip() for text in texts]


@torch.no_grad()
def text_loss(model: Any, tokenizer: Any, text: str) -> float:
    """Return the mean negative log-likelihood of ordinary text in the user's turn, in nats a token."""
    words = text.split()
    step = max(1, (len(words) - CHUNK) // CHUNKS)
    total, count = 0.0, 0
    for at in range(0, step * CHUNKS, step):
        opening = [{"role": "system", "content": PLAIN_SYSTEM}]
        talk = [*opening, {"role": "user", "content": " ".join(words[at : at + CHUNK])}]
        batch = inputs(model, tokenizer, talk)
        begin = encode(tokenizer, opening)["input_ids"].shape[1]
        scores = model(**batch).logits[0, begin - 1 : -1].log_softmax(-1)
        chosen = scores.gather(1, batch["input_ids"][0, begin:, None])
        total, count = total - float(chosen.sum()), count + len(chosen)
    return total / count


def mass(model: Any, tokenizer: Any) -> float | None:
    """Return the mean attention mass on the system prompt where the reply starts; None where no weights are to be had."""
    talks = [
        [{"role": "system", "content": rule}, {"role": "user", "content": q}]
        for rule, _ in RULES.values()
        for q in QUESTIONS[:2]
    ]
    return attention_mass(model, tokenizer, talks).reply


def repeated(texts: list[str]) -> float:
    """Return the share of word trigrams that were in the same text before."""
    again = count = 0
    for text in texts:
        words = text.lower().split()
        grams = list(zip(words, words[1:], words[2:], strict=False))
        again, count = again + len(grams) - len(set(grams)), count + len(grams)
    return again / count if count else 0.0


def show(record: dict[str, Any]) -> Table:
    """Return the record as a table."""
    table = Table("setting", "text NLL", "rules followed", "repeated", "mass on system", "first reply")
    for name, found in record["settings"].items():
        figures = (found["text_nll"], found["followed"], found["repeated_trigrams"], found["mass"])
        cells = [f"{figures[0]:.3f}", *("-" if x is None else f"{x:.1%}" for x in figures[1:])]
        table.add_row(as_text(name), *cells, as_text(found["replies"]["capitals"][1][:60]))
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="directory or hub id of a chat model")
    parser.add_argument("--text", type=Path, required=True, help="a file of ordinary text")
    parser.add_argument("--only", default="", help="settings whose name holds this")
    parser.add_argument("--max-new-tokens", type=int, default=40)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path, default=RESULTS)
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    from transformers import AutoTokenizer

    text = chosen.text.read_text(encoding="utf-8")
    model = read_model(chosen.model, "float32").eval()
    tokenizer = AutoTokenizer.from_pretrained(chosen.model, trust_remote_code=False)
    config = model.config
    cases = settings(config.num_hidden_layers, config.num_attention_heads)
    record: dict[str, Any] = {
        "environment": asdict(environment()),
        "model": Path(chosen.model).name,
        "text": chosen.text.name,
        "max_new_tokens": chosen.max_new_tokens,
        "settings": {},
    }
    console = Console(width=150)
    for name, case in cases.items():
        if chosen.only not in name:
            continue
        record["settings"][name] = found = measure(model, tokenizer, case, text, chosen.max_new_tokens)
        write_whole(chosen.output, json.dumps(record, indent=1, ensure_ascii=False) + "\n")
        console.print(as_text(f"{name}: NLL {found['text_nll']:.3f}, followed {found['followed']:.1%}, {found['seconds']} s"))
    console.print(show(record))


if __name__ == "__main__":
    main()
