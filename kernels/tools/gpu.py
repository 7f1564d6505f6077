"""Run all that needs a GPU in a few minutes: checks, tuning, the benchmark with the new tiles.

    python -m tools.gpu --out DIR [--minutes 9] [--skip-tune] [--only TEXT]

Every part runs even when an earlier one fails; failures are listed at the end, and the exit status is 1. DIR takes
JSON: checks, tuning (raw measurements; the gain of each tile is printed), the new launch table, throughput and a
summary. Where time is short, see --skip-checks, --skip-benchmarks and --skip-tune.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rolesafe_kernels import launch
from rolesafe_kernels.launch import INTERPRET, architecture

from rolesafe.files import write_whole
from rolesafe.terminal import run_main
from rolesafe.workers import Lost, results
from tools import PRELOAD, ROOT
from tools.checks import all_checks, run_check
from tools.environment import environment
from tools.offline import source_hash

CHECK_LIMIT = 150.0
"""Seconds of one check, compilation included."""
BENCHMARK = 120.0
"""Seconds kept for the benchmark after tuning."""
FULL_BENCHMARK = 300.0
"""Seconds from which all of the benchmark is run."""


class Failed(Exception):
    """A part of the run did not succeed."""


def check(out: Path, only: str, until: float) -> None:
    """Run all checks with `only` in their name, in parallel."""
    names = [name for name in all_checks() if only in name]
    workers = max(1, min(12, (os.cpu_count() or 2) - 2))
    records: list[dict[str, Any]] = []
    jobs = [(name,) for name in names]
    for (name,), found in results(run_check, jobs, workers, limit=CHECK_LIMIT, until=until, preload=PRELOAD):
        lost = isinstance(found, Lost)
        records.append({"name": name, "ok": False, "seconds": 0.0, "detail": found.reason} if lost else found)
        last = records[-1]
        status = "ok" if last["ok"] else "WRONG " + last["detail"]
        print(f"[{len(records)}/{len(names)}] {name} {last['seconds']:.0f} s: {status}", flush=True)
        write_whole(out / "checks.json", json.dumps(records, indent=1) + "\n")
    bad = [record["name"] for record in records if not record["ok"]]
    if bad:
        raise Failed(f"{len(bad)} of {len(names)} checks: {', '.join(bad)}")
    if not names:
        raise Failed(f"`--only`: expected a part of a check's name, got {only!r}")


def python(arguments: list[str], limit: float) -> None:
    """Run a Python process in the repository; kill its process group after `limit` seconds."""
    path = os.pathsep.join([str(ROOT), str(ROOT / "kernels"), *filter(None, [os.environ.get("PYTHONPATH")])])
    setting = {**os.environ, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen([sys.executable, *arguments], cwd=ROOT, env=setting, start_new_session=True)
    try:
        status = process.wait(max(limit, 1.0))
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        raise Failed(f"{' '.join(arguments[:3])}: not done after {limit:.0f} s") from None
    if status:
        raise Failed(f"{' '.join(arguments[:3])}: exit status {status}")


def benchmark(out: Path, limit: float, commit: str | None) -> None:
    """Run the benchmark: all of it where there is time, else the quick part."""
    budget = max(limit - 15, 1.0)
    arguments = ["-m", "benchmarks.throughput", "--output", str(out / "throughput.json"), "--budget", f"{budget:.0f}"]
    arguments += [] if budget >= FULL_BENCHMARK else ["--quick"]
    python([*arguments, *([] if commit is None else ["--commit", commit])], limit)


def tune(out: Path, budget: float) -> None:
    """Rewrite the launch table; a second try goes on from the log where the first one died."""
    log, end = out / "tuning.jsonl", time.monotonic() + budget
    try:
        for attempt in range(2):
            left = end - time.monotonic()
            try:
                python(["-m", "tools.tune", "--log", str(log), "--budget", f"{left - 15:.0f}"], left)
                return
            except Failed:
                if attempt or end - time.monotonic() < 60:
                    raise
    finally:
        table = launch.TABLES / f"sm_{architecture(torch.device('cuda'))}.json"
        if table.exists():
            shutil.copy(table, out / table.name)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for the results")
    parser.add_argument("--minutes", type=float, default=9.0)
    parser.add_argument("--skip-tune", action="store_true")
    parser.add_argument("--skip-checks", action="store_true")
    parser.add_argument("--skip-benchmarks", action="store_true")
    parser.add_argument("--only", default="", metavar="TEXT", help="only the checks with TEXT in their name")
    parser.add_argument("--commit", help="commit to record instead of the one that is checked out")
    parser.add_argument("--benchmark-seconds", type=float, default=BENCHMARK, help="kept for the benchmark")
    chosen = parser.parse_args(arguments)
    if INTERPRET or not torch.cuda.is_available():
        print("gpu: expected a CUDA device and no TRITON_INTERPRET; without a GPU run `make test`", file=sys.stderr)
        return 2
    out: Path = chosen.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    begin = time.monotonic()
    end = begin + 60 * chosen.minutes

    def left() -> float:
        return end - time.monotonic()

    kept = 0.0 if chosen.skip_benchmarks else chosen.benchmark_seconds
    parts: dict[str, Callable[[], None]] = {}
    if not chosen.skip_checks:
        parts["checks"] = lambda: check(out, chosen.only, begin + 0.4 * (end - begin))
    if not chosen.skip_tune:
        parts["tuning"] = lambda: tune(out, left() - kept)
    if not chosen.skip_benchmarks:
        parts["throughput"] = lambda: benchmark(out, left(), chosen.commit)
    about = environment(torch.device("cuda"), chosen.commit) | {"cores": os.cpu_count(), "kernels": source_hash()}
    failures = {}
    print(json.dumps(about, indent=1), flush=True)
    for name, part in parts.items():
        print(f"== {name}, {left():.0f} s left", flush=True)
        try:
            part()
        except Exception as error:  # the other parts run in any case
            failures[name] = f"{type(error).__name__}: {error}"
            print(f"{name} FAILED: {failures[name]}", flush=True)
    took = round(time.monotonic() - begin)
    summary = {"environment": about, "seconds": took, "failures": failures}
    write_whole(out / "summary.json", json.dumps(summary, indent=1) + "\n")
    print(f"== {took} s")
    for name, failure in failures.items():
        print(f"FAILED {name}: {failure}")
    return int(bool(failures))


if __name__ == "__main__":
    run_main(main)
