"""Train and measure the arms of the study, one after the other. Rerun the command to resume.

    nice -n 10 python -m benchmarks.alignment_depth --out DIR --json benchmarks/results/alignment_depth.json

Weights of finished arms are in DIR; an arm in the record is not measured again.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.alignment_depth import arms, measure
from rolesafe.evaluation import environment
from rolesafe.files import check_writable, write_whole
from rolesafe.terminal import run_main


def main() -> int:
    """Run the arms and write one record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", required=True, type=Path, help="directory of the weights")
    parser.add_argument("--json", required=True, type=Path, help="record; its arms are not run again")
    parser.add_argument("--seeds", type=int, nargs="*", default=[0])
    parser.add_argument("--only", nargs="*", choices=list(arms.ARMS), default=list(arms.ARMS))
    parser.add_argument("--n", type=int, default=60, help="conversations of each kind")
    options = parser.parse_args()
    check_writable(options.json, "--json")
    record: dict[str, Any] = {"n": options.n, "seeds": {}}
    if options.json.exists():
        record = json.loads(options.json.read_text(encoding="utf-8"))
        if record["n"] != options.n:
            raise ValueError(f"`--n`: expected {record['n']} as in the record, got {options.n}. Use another --json.")
    record["environment"] = asdict(environment())
    words = arms.tokenizer()
    for seed in options.seeds:
        known = record["seeds"].setdefault(str(seed), {})
        for name in _needed(options.only):
            if name in known:
                continue
            start = time.perf_counter()
            model = arms.train(name, words, options.out, seed)
            trained = time.perf_counter() - start
            if name not in options.only:
                continue
            base = arms.build("base", words, options.out, seed)
            found = measure.measured(model, base, words, options.n, seed, any_depth=name == "ada")
            known[name] = {**asdict(arms.ARMS[name]), **found, "seconds": round(trained, 1)}
            write_whole(options.json, json.dumps(record, indent=1) + "\n")
            print(f"seed {seed}: {name}: {round(time.perf_counter() - start)} s", flush=True)
    return 0


def _needed(chosen: list[str]) -> list[str]:
    """Return the arms of `chosen` and those that they start from, in the order of training."""
    wanted = {"base", *chosen}
    for name in reversed(arms.ARMS):
        if name in wanted and arms.ARMS[name].start:
            wanted.add(arms.ARMS[name].start)
    return [name for name in arms.ARMS if name in wanted]


if __name__ == "__main__":
    run_main(main)
