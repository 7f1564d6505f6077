"""Train and measure the arms on a chat model, one after the other. Rerun the command to resume.

    nice -n 10 python -m benchmarks.alignment_depth.chat --model DIR --out DIR \\
        --json benchmarks/results/alignment_depth_chat.json

Checkpoints and the compliant replies are in --out; delete it at the end. The record holds counts and means alone. An
arm in the record is not measured again.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from benchmarks.alignment_depth.chat import arms, data, measure
from benchmarks.alignment_depth.chat.protocol import PROTOCOL
from rolesafe.evaluation import environment
from rolesafe.files import check_writable, write_whole
from rolesafe.terminal import run_main


def main() -> int:
    """Run the arms and write one record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="HuggingFaceTB/SmolLM2-135M-Instruct", help="directory or hub id")
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="folder of the data")
    parser.add_argument("--out", required=True, type=Path, help="directory of the checkpoints")
    parser.add_argument("--json", required=True, type=Path, help="record; its arms are not run again")
    parser.add_argument("--only", nargs="*", choices=list(arms.ARMS), default=list(arms.ARMS))
    parser.add_argument("--seeds", type=int, nargs="*", default=[0])
    parser.add_argument("--steps", type=int, default=80, help="optimizer steps of an arm")
    parser.add_argument("--n", type=int, default=64, help="harmful, and benign, prompts of the test")
    parser.add_argument("--prompts", type=int, default=160, help="harmful prompts for training")
    parser.add_argument("--limit", type=int, help="maximum number of prompts of every kind, for a trial")
    parser.add_argument("--train-only", action="store_true", help="measure nothing")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    for name in ("steps", "n", "prompts", "limit", "threads"):
        if (value := getattr(options, name)) is not None and value < 1:
            raise ValueError(f"`--{name}`: expected a number >= 1, got {value}.")
    check_writable(options.json, "--json")
    torch.set_num_threads(options.threads)
    counts = {"n": options.n, "prompts": options.prompts, "xstest": options.limit}
    if options.limit:
        counts = {name: min(filter(None, (count, options.limit))) for name, count in counts.items()}
    settings = {"model": Path(options.model).name, "steps": options.steps, **counts, "protocol": PROTOCOL}
    record = read_record(options.json, settings)
    base, tokenizer = arms.load("base", options.model, options.out, 0)
    texts = data.prepare(base, tokenizer, options.data, options.out / "prefixes.json", **counts)
    measure.check_prefixes(texts)
    for seed in options.seeds:
        for name in options.only:
            if name in record["seeds"].get(str(seed), {}):
                continue
            trained = arms.train(name, options.model, texts, options.out, seed, steps=options.steps)
            if options.train_only:
                continue
            begun = time.perf_counter()
            print(f"{name}, seed {seed}: measuring", flush=True)
            model, _ = arms.load(name, options.model, options.out, seed)
            found = measure.measured(model, base, tokenizer, texts, any_depth=name == "ada")
            found["seconds"] = {"training": round(trained, 1), "measuring": round(time.perf_counter() - begun, 1)}
            record = read_record(options.json, settings)  # another process may have added its arms
            record["seeds"].setdefault(str(seed), {})[name] = found
            record["environment"] = asdict(environment())
            write_whole(options.json, json.dumps(record, indent=1) + "\n")
            print(f"{name}, seed {seed}: {found['seconds']}, {found['recovery']}", flush=True)
    return 0


def read_record(path: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """Return the record in `path`, or an empty one.

    Raises:
        ValueError: It has other settings.
    """
    if not path.exists():
        return {"settings": settings, "seeds": {}}
    record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    if record["settings"] != settings:
        raise ValueError(
            f"`--json`: expected a record with {settings}, got {record['settings']}. Use another --json, or its values."
        )
    return record


if __name__ == "__main__":
    run_main(main)
