"""Speed and memory of role-aware attention on a CPU, beside PyTorch's plain attention.

    python benchmarks/attention_cpu.py [--output FILE] [--lengths 2048 4096] [--rounds N] [--threads N]

Time: the cases take turns, so a change of clock or load meets all of them; a ratio is the median over rounds of the
time of a case by that of plain attention in the same round. The bias as a (H, T, S) tensor is timed forward only.
Memory: every case runs in a fresh process, before anything is timed. Its increase is the rise of the peak resident size
over what the process held when its inputs were made; its whole is that peak.
A case is timed only after it agreed with the specification (`impl="reference"`) on a short input.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402
from rich.console import Console  # noqa: E402
from rich.table import Table  # noqa: E402
from torch import Tensor  # noqa: E402

from rolesafe import role_attention  # noqa: E402
from rolesafe.files import check_writable, write_whole  # noqa: E402
from rolesafe.terminal import run_main  # noqa: E402

HEADS, DIM, ROLES = 8, 64, 5
RESULTS = ROOT / "benchmarks" / "results" / "attention_cpu.json"

PARTS: dict[str, dict[str, Any]] = {
    "roles off": {},
    "bias": {"bias": True},
    "bias + share": {"bias": True, "share": True},
    "half dedicated": {"dedicated": HEADS // 2},
    "channel": {"bias": True, "share": True, "dedicated": HEADS // 2, "integrity": True},
}
CASES = ("plain", "materialised bias", *PARTS)


def chat_roles(length: int) -> Tensor:
    """(1, L): 5% system, then six turns of user and assistant."""
    roles = torch.full((1, length), 2)
    system = length // 20
    for turn in range(6):
        start = system + turn * (length - system) // 6
        roles[:, start:] = 2 + turn % 2
    roles[:, :system] = 0
    return roles


class Inputs:
    """q, k, v (1, H, L, D), roles, table and share of one length."""

    def __init__(self, length: int, gradients: bool) -> None:
        torch.manual_seed(0)
        self.tokens = [torch.randn(1, HEADS, length, DIM, requires_grad=gradients) for _ in range(3)]
        self.roles = chat_roles(length)
        self.bias = torch.randn(HEADS, ROLES, ROLES, requires_grad=gradients)
        self.share = torch.full((HEADS,), 0.2, requires_grad=gradients)

    def call(self, case: str, impl: str = "sdpa") -> Tensor:
        """(1, H, L, D): output of one case."""
        q, k, v = self.tokens
        if case == "plain":
            return F.scaled_dot_product_attention(q, k, v, is_causal=True)
        if case == "materialised bias":
            pairs = self.bias[:, self.roles[0].unsqueeze(1), self.roles[0].unsqueeze(0)].unsqueeze(0)
            future = torch.ones(q.shape[2], q.shape[2], dtype=torch.bool).triu(1)
            return F.scaled_dot_product_attention(q, k, v, pairs.masked_fill(future, float("-inf")))
        parts = dict(PARTS[case])
        bias = self.bias if parts.pop("bias", False) else None
        share = self.share if parts.pop("share", False) else None
        return role_attention(q, k, v, self.roles, self.roles, bias=bias, share=share, impl=impl, **parts)

    def run(self, case: str) -> None:
        """One timed run: forward, and backward where gradients are on."""
        out = self.call(case)
        if out.requires_grad:
            out.backward(torch.ones_like(out))
            for x in (*self.tokens, self.bias, self.share):
                x.grad = None


def timed(gradients: bool) -> tuple[str, ...]:
    """Cases of a pass: the (H, T, S) bias needs many seconds backward, and would tell nothing new."""
    return tuple(case for case in CASES if not (gradients and case == "materialised bias"))


def check() -> None:
    """Refuse to time what is wrong: every case agrees with the specification at L=256."""
    inputs = Inputs(256, gradients=False)
    for case in CASES:
        same = {"plain": "roles off", "materialised bias": "bias"}.get(case, case)
        torch.testing.assert_close(inputs.call(case), inputs.call(same, "reference"), rtol=1e-4, atol=1e-5)


def measure_time(length: int, rounds: int, gradients: bool) -> dict[str, dict[str, float]]:
    """Milliseconds (p20, p50, p80) and the ratio to plain attention of every case."""
    inputs = Inputs(length, gradients)
    times: dict[str, list[float]] = {case: [] for case in timed(gradients)}
    for turn in range(rounds + 1):
        for case in times:
            start = time.perf_counter()
            inputs.run(case)
            if turn:  # the first round warms up
                times[case].append((time.perf_counter() - start) * 1e3)
    found = {}
    for case, own in times.items():
        p20, p50, p80 = (float(x) for x in torch.tensor(own).quantile(torch.tensor([0.2, 0.5, 0.8])))
        ratios = [a / b for a, b in zip(own, times["plain"], strict=True)]
        found[case] = {"p20_ms": p20, "p50_ms": p50, "p80_ms": p80, "ratio": statistics.median(ratios)}
    return found


def measure_memory(case: str, length: int, gradients: bool) -> dict[str, float]:
    """MiB of this process: the rise of its peak over what it held with its inputs made, and the peak. Run it once."""
    inputs = Inputs(length, gradients)
    held = _resident()
    inputs.run(case)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024  # KiB on Linux
    return {"increase_mib": peak - held, "whole_mib": peak}


def _resident() -> float:
    """MiB that this process holds now. The peak so far may be higher: importing torch leaves one behind."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * resource.getpagesize() / 2**20


def memory_in_fresh_process(case: str, length: int, gradients: bool, threads: int) -> dict[str, float]:
    command = [sys.executable, __file__, "--memory-of", case, "--lengths", str(length), "--threads", str(threads)]
    done = subprocess.run(command + ["--gradients"] * gradients, check=True, capture_output=True, text=True)
    result: dict[str, float] = json.loads(done.stdout)
    return result


def environment(threads: int) -> dict[str, Any]:
    """What the numbers depend on."""
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False)
    changed = subprocess.run(
        ["git", "status", "--porcelain", "rolesafe"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    cpu = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())
    return {
        "torch": torch.__version__,
        "python": platform.python_version(),
        "cpu": cpu,
        "capability": torch.backends.cpu.get_cpu_capability(),
        "threads": threads,
        "commit": commit.stdout.strip() or None,
        "uncommitted_changes": bool(changed.stdout.strip()),
    }


def show(report: dict[str, Any]) -> None:
    """The results as tables, one per length and pass."""
    console = Console()
    where = report["environment"]
    console.print(f"torch {where['torch']}, {where['cpu']} ({where['capability']}), {where['threads']} threads")
    for part in report["results"]:
        table = Table(title=f"{part['pass']}, L={part['length']}, H={HEADS}, D={DIM}, fp32, causal")
        for column in ("case", "p20 ms", "p50 ms", "p80 ms", "x plain", "increase MiB", "whole MiB", "x plain whole"):
            table.add_column(column, justify="left" if column == "case" else "right")
        plain = part["cases"]["plain"]
        for case, x in part["cases"].items():
            table.add_row(
                case,
                *(f"{x[name]:.1f}" for name in ("p20_ms", "p50_ms", "p80_ms")),
                f"{x['ratio']:.2f}",
                f"{x['increase_mib']:.0f}",
                f"{x['whole_mib']:.0f}",
                f"{x['whole_mib'] / plain['whole_mib']:.2f}",
            )
        console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=RESULTS, help="JSON file (default: %(default)s)")
    parser.add_argument("--lengths", type=int, nargs="+", default=[2048, 4096])
    parser.add_argument("--rounds", type=int, default=11, help="rounds of the shortest length; fewer at longer ones")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--memory-of", choices=CASES, help=argparse.SUPPRESS)
    parser.add_argument("--gradients", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.memory_of:
        print(json.dumps(measure_memory(options.memory_of, options.lengths[0], options.gradients)))
        return
    check_writable(options.output, "--output")
    # Memory first: a process inherits the peak of the one that starts it, which is small as long as nothing was timed.
    runs = [(length, gradients) for length in options.lengths for gradients in (False, True)]
    memory = {
        run: {case: memory_in_fresh_process(case, *run, options.threads) for case in timed(run[1])} for run in runs
    }
    check()
    results = []
    for length, gradients in runs:
        fewer = min(options.lengths) / length * (0.5 if gradients else 1.0)
        times = measure_time(length, max(3, round(options.rounds * fewer)), gradients)
        cases = {case: {**found, **memory[length, gradients][case]} for case, found in times.items()}
        results.append({"length": length, "pass": "forward + backward" if gradients else "forward", "cases": cases})
    settings = {"heads": HEADS, "head_dim": DIM, "roles": ROLES, "batch": 1, "dtype": "float32", "causal": True}
    report = {"environment": environment(options.threads), "settings": settings, "results": results}
    write_whole(options.output, json.dumps(report, indent=1) + "\n")
    show(report)


if __name__ == "__main__":
    run_main(main)
