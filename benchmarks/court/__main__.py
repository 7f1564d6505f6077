"""Measure the court on a tokenizer.

    python -m benchmarks.court --tokenizer DIR --text FILE [--clean FILE ...] [--tries N] [--steps N] [--json PATH]

`--text` gives the words of the phrases and the text of the timed steps. `--clean` are texts for false vetoes: plain
text or a JSON list of rows. Without `--json` the record is printed only.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer

from benchmarks.court import arms, generation, speed, tries, vetoes
from rolesafe.evaluation import environment
from rolesafe.evaluation.environment import checkout_commit
from rolesafe.files import check_writable, write_whole
from rolesafe.terminal import run_main

SECRET = "correct-horse-battery-staple"
PARTS = ("speed", "vetoes", "tries", "generation", "frozen", "arms")


def main() -> int:
    """Run the parts and write one record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokenizer", required=True, help="directory or hub id")
    parser.add_argument("--text", required=True, type=Path)
    parser.add_argument("--clean", nargs="*", type=Path, default=[])
    parser.add_argument("--only", nargs="*", choices=PARTS, default=PARTS)
    parser.add_argument("--tries", type=int, default=15_000)
    parser.add_argument("--steps", type=int, default=1_000_000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--model", help="directory or hub id; for the parts generation and frozen")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--train-steps", type=int, default=600, help="of the tiny models of the part arms")
    parser.add_argument("--examples", type=int, default=60, help="of the part arms")
    parser.add_argument("--json", type=Path, help="add the parts to this record")
    options = parser.parse_args()
    if options.json is not None:
        check_writable(options.json, "--json")
    torch.set_num_threads(1)
    tokenizer = AutoTokenizer.from_pretrained(options.tokenizer)
    text = options.text.read_text(encoding="utf-8")
    phrases = speed.draw_phrases(text, 1000)
    found: dict[str, Any] = {}
    if options.json is not None and options.json.exists():
        found = json.loads(options.json.read_text(encoding="utf-8"))
    try:
        engine = version("llguidance")
    except PackageNotFoundError:
        engine = None
    found["environment"] = {**asdict(environment()), "llguidance": engine}
    commit = checkout_commit()
    if "speed" in options.only:
        found["speed"] = speed.measure(tokenizer, text, options.repeats)
    if "vetoes" in options.only and options.clean:
        found["vetoes"] = vetoes.run(tokenizer, options.clean, phrases, options.steps)
    if "tries" in options.only:
        found["tries"] = tries.run(tokenizer, phrases, SECRET, options.tries)
    if "generation" in options.only and options.model:
        found["generation"] = generation.generation(options.model, tokenizer, phrases, options.rounds)
    if "frozen" in options.only and options.model:
        found["frozen"] = {"rows": generation.frozen(options.model, tokenizer, text, options.rounds)}
    if "arms" in options.only:
        found["arms"] = arms.run(options.train_steps, options.examples)
    for part in options.only:
        if part in found:
            found[part] = {**found[part], "commit": commit}
    content = json.dumps(found, indent=1) + "\n"
    print(content)
    if options.json is not None:
        write_whole(options.json, content)
    return 0


if __name__ == "__main__":
    run_main(main)
