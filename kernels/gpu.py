"""All that needs a GPU, in one run of a few minutes: checks, a few lines, tuning, the lines again, the benchmark.

    python kernels/gpu.py --out DIR [--minutes 9] [--skip-tune] [--only TEXT]

Every part runs even when an earlier one fails; what failed is listed at the end, and the exit status is 1. DIR takes
JSON: checks, lines (benchmark lines before and after tuning), throughput, tuning (raw measurements), the new launch
table and a summary. Where the lease is too short for all, see --skip-checks, --skip-benchmarks and --skip-tune.

    B batch, H = 32 query heads, G = 8 key/value heads, T queries, S keys, D head dim
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from gpu_checks import ROOT, all_jobs, run_job
from rolesafe_kernels import launch, role_attention
from rolesafe_kernels.crew import Crew, Lost
from rolesafe_kernels.files import run_main, write_whole
from rolesafe_kernels.launch import INTERPRET, architecture
from rolesafe_kernels.offline import source_hash
from rolesafe_kernels.timing import Inputs, Shape, make_inputs, time_rounds
from rolesafe_kernels.tune import gpu

CHECK_LIMIT = 150.0
"""Seconds of one check, compilation included."""
LINES = 60.0
"""Seconds that the lines may take."""
BENCHMARK = 120.0
"""Seconds kept for the benchmark after tuning."""
FULL_BENCHMARK = 300.0
"""Seconds from which all of the benchmark is run."""


class Failed(Exception):
    """A part of the run did not succeed."""


def environment(commit: str | None) -> dict[str, Any]:
    """What the numbers depend on. `commit`: what to say instead of the checkout's own, as for a copy of another."""
    return {
        **gpu(),
        "capability": architecture(torch.device("cuda")),
        "multiprocessors": torch.cuda.get_device_properties(0).multi_processor_count,
        "cuda": torch.version.cuda,
        "python": platform.python_version(),
        "cores": os.cpu_count(),
        "kernels": source_hash(),
        "commit": commit or head() or "unknown",
    }


def head() -> str | None:
    """The commit that is checked out; None where there is no history, or no git."""
    try:
        found = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False)
    except OSError:
        return None
    return found.stdout.strip() if found.returncode == 0 else None


def check(out: Path, only: str, until: float) -> None:
    """All checks whose name holds `only`, in parallel."""
    names = [name for name in all_jobs() if only in name]
    crew = Crew(run_job, max(1, min(12, (os.cpu_count() or 2) - 2)))
    records: list[dict[str, Any]] = []
    for name, result in crew.run(names, CHECK_LIMIT, until):
        lost = isinstance(result, Lost)
        records.append({"name": name, "ok": False, "seconds": 0.0, "detail": result.reason} if lost else result)
        last = records[-1]
        said = "ok" if last["ok"] else "WRONG " + last["detail"]
        print(f"[{len(records)}/{len(names)}] {name} {last['seconds']:.0f} s: {said}", flush=True)
        write_whole(out / "checks.json", json.dumps(records, indent=1) + "\n")
    crew.close()
    bad = [record["name"] for record in records if not record["ok"]]
    if bad:
        raise Failed(f"{len(bad)} of {len(names)} checks: {', '.join(bad)}")
    if not names:
        raise Failed(f"`--only`: no check has {only!r} in its name")


def python(arguments: list[str], limit: float) -> None:
    """A Python process in the repository, ended with all it started after `limit` seconds."""
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


def throughput(out: Path, limit: float, commit: str | None) -> None:
    """The benchmark against the peers: all of it where there is time, else the quick part."""
    budget = max(limit - 15, 1.0)
    arguments = ["-m", "benchmarks.throughput", "--output", str(out / "throughput.json"), "--budget", f"{budget:.0f}"]
    arguments += [] if budget >= FULL_BENCHMARK else ["--quick"]
    python([*arguments, *([] if commit is None else ["--commit", commit])], limit)


def tune(out: Path, budget: float) -> None:
    """Rewrites the launch table; a second try goes on from the log where the first one died."""
    log, end = out / "tuning.jsonl", time.monotonic() + budget
    try:
        for attempt in range(2):
            left = end - time.monotonic()
            arguments = ["-m", "rolesafe_kernels.tune", "--log", str(log), "--budget", f"{left - 15:.0f}"]
            try:
                python(arguments, left)
                return
            except Failed:
                if attempt or end - time.monotonic() < 60:
                    raise
    finally:
        table = launch.TABLES / f"sm_{architecture(torch.device('cuda'))}.json"
        if table.exists():
            shutil.copy(table, out / table.name)


def lines() -> dict[str, float]:
    """Milliseconds (p50) of the calls that matter most: 32k tokens in bf16, causal, the roles of a chat."""
    found: dict[str, float] = {}
    cuda = torch.device("cuda")
    crew = Crew(warm, max(1, min(12, (os.cpu_count() or 2) - 2)))
    for job, result in crew.run([(dim, t, name) for t in (256, 1) for dim in (128, 64) for name in ROLE_AWARE], 90.0):
        if isinstance(result, Lost):
            print(f"compiling {job}: {result.reason}")
    crew.close()
    for dim in (128, 64):
        for shape in (Shape(8, 4096, 4096), Shape(2, 16_384, 16_384), Shape(16, 1, 32_768), Shape(1, 1, 32_768)):
            x = make_inputs(shape, torch.bfloat16, dim, cuda)
            for name, run in calls(x, backward=shape.length > 1).items():
                for _ in range(2):
                    run()
                found[f"D{dim} {shape.name} {name}"] = median(time_rounds([run], 15)[0])
    return found


ROLE_AWARE = ("channel", "bias", "plain")


def warm(job: tuple[int, int, str]) -> None:
    """Compile the kernels of a line, in a process of a `Crew`: (head dim, T, name)."""
    dim, length, name = job
    x = make_inputs(Shape(1, length, 256), torch.bfloat16, dim, torch.device("cuda"))
    for line, run in calls(x, backward=length > 1).items():
        if line.startswith(name):
            run()


def calls(x: Inputs, backward: bool) -> dict[str, Callable[[], Any]]:
    """What `lines` times: forward, and with `backward` both passes (fwd+bwd)."""
    share = torch.full((x.q.shape[1],), 0.2, device=x.q.device, requires_grad=True)
    q, k, v, bias = (t.detach().requires_grad_() for t in (x.q, x.k, x.v, x.bias))
    roles: dict[str, Any] = {"q_roles": x.q_roles, "k_roles": x.k_roles}
    causal = x.q.shape[2] > 1
    operations: dict[str, Callable[[], torch.Tensor]] = {
        "sdpa": partial(F.scaled_dot_product_attention, q, k, v, is_causal=causal, enable_gqa=True),
        "plain": partial(role_attention, q, k, v),
        "bias": partial(role_attention, q, k, v, **roles, bias=bias),
        "channel": partial(
            role_attention, q, k, v, **roles, bias=bias, share=share, dedicated=x.q.shape[1] // 4, integrity=True
        ),
    }

    def both(operation: Callable[[], torch.Tensor], leaves: tuple[torch.Tensor, ...]) -> None:
        torch.autograd.grad(operation(), leaves, x.grad)

    found: dict[str, Callable[[], Any]] = {
        f"{name} fwd": torch.no_grad()(operation) for name, operation in operations.items()
    }
    if backward:
        leaves = {"sdpa": (q, k, v), "plain": (q, k, v), "bias": (q, k, v, bias), "channel": (q, k, v, bias, share)}
        found |= {f"{name} fwd+bwd": partial(both, operation, leaves[name]) for name, operation in operations.items()}
    return found


def lines_in_fresh_process(out: Path, when: str, limit: float) -> None:
    """`lines` with the launch table as it now stands, added to lines.json."""
    python([str(Path(__file__)), "--out", str(out), "--lines", when], limit)


def read_lines(out: Path) -> dict[str, dict[str, float]]:
    path = out / "lines.json"
    found: dict[str, dict[str, float]] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return found


def write_lines(out: Path, when: str) -> None:
    found = read_lines(out) | {when: lines()}
    write_whole(out / "lines.json", json.dumps(found, indent=1) + "\n")


def teraflops(name: str, ms: float) -> str:
    """TFLOP/s as for plain causal attention; nothing for decode, which moves bytes."""
    dim, batch, length, keys, _, passes = name.split()
    if length == "T1":
        return ""
    work = 2 * int(batch[1:]) * 32 * int(length[1:]) * int(keys[1:]) * int(dim[1:]) * (3.5 if "bwd" in passes else 1)
    return f"{work / ms / 1e9:.0f}"


def show(out: Path) -> None:
    """The short table that comes last."""
    found = read_lines(out)
    before, after = found.get("before", {}), found.get("after", {})
    print(f"{'':36}{'ms':>9}{'TFLOP/s':>9}{'tuned':>9}{'TFLOP/s':>9}")
    for name in dict.fromkeys([*before, *after]):
        cells = ""
        for one in (before, after):
            ms = one.get(name)
            cells += f"{'':18}" if ms is None else f"{ms:9.3f}{teraflops(name, ms):>9}"
        print(f"{name:36}{cells}")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for the results")
    parser.add_argument("--minutes", type=float, default=9.0)
    parser.add_argument("--skip-tune", action="store_true")
    parser.add_argument("--skip-checks", action="store_true")
    parser.add_argument("--skip-benchmarks", action="store_true")
    parser.add_argument("--only", default="", metavar="TEXT", help="only the checks with this in their name")
    parser.add_argument("--commit", help="what to write down instead of the commit that is checked out")
    parser.add_argument("--benchmark-seconds", type=float, default=BENCHMARK, help="kept for the benchmark")
    parser.add_argument("--lines", choices=("before", "after"), help=argparse.SUPPRESS)
    chosen = parser.parse_args(arguments)
    if INTERPRET or not torch.cuda.is_available():
        print("gpu: expected a CUDA device and no TRITON_INTERPRET; without a GPU run `make test`", file=sys.stderr)
        return 2
    out: Path = chosen.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    if chosen.lines:
        write_lines(out, chosen.lines)
        return 0
    begin = time.monotonic()
    end = begin + 60 * chosen.minutes
    left = lambda: end - time.monotonic()  # noqa: E731
    kept = 0.0 if chosen.skip_benchmarks else chosen.benchmark_seconds
    parts: dict[str, Callable[[], None]] = {}
    if not chosen.skip_checks:
        parts["checks"] = lambda: check(out, chosen.only, begin + 0.4 * (end - begin))
    if not chosen.skip_tune:
        if not chosen.skip_benchmarks:
            parts["lines"] = lambda: lines_in_fresh_process(out, "before", min(LINES, left() - kept))
        parts["tuning"] = lambda: tune(out, left() - kept - (0.0 if chosen.skip_benchmarks else LINES))
    if not chosen.skip_benchmarks:
        parts["lines after tuning"] = lambda: lines_in_fresh_process(out, "after", min(LINES, left() - kept))
        parts["throughput"] = lambda: throughput(out, left(), chosen.commit)
    about, failures = environment(chosen.commit), {}
    print(json.dumps(about, indent=1), flush=True)
    for name, part in parts.items():
        print(f"== {name}, {left():.0f} s left", flush=True)
        try:
            part()
        except Exception as error:  # whatever happens to one part, the others run
            failures[name] = f"{type(error).__name__}: {error}"
            print(f"{name} FAILED: {failures[name]}", flush=True)
    took = round(time.monotonic() - begin)
    record = {"environment": about, "seconds": took, "failures": failures, "lines": read_lines(out)}
    write_whole(out / "summary.json", json.dumps(record, indent=1) + "\n")
    print(f"== {took} s")
    show(out)
    for name, failure in failures.items():
        print(f"FAILED {name}: {failure}")
    return int(bool(failures))


if __name__ == "__main__":
    run_main(main)
