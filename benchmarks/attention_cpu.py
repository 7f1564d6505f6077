"""Speed and memory of role-aware attention on a CPU, compared with PyTorch's plain attention.

    python benchmarks/attention_cpu.py [--output FILE] [--lengths 2048 4096] [--rounds N] [--threads N]

Time: the cases take turns, so a change of clock or load meets all of them; a ratio is the median over rounds of the
time of a case by that of plain attention in the same round. The bias as a (H, T, S) tensor is timed forward only.
Memory: every case runs in a fresh process, before anything is timed. Its increase is the rise of the peak resident size
over the size with its inputs made; its whole is that peak.
A case is timed only after it agreed with the specification (`impl="reference"`) on a short input.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any, Literal

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "kernels")]

import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402
from rich.console import Console  # noqa: E402
from rich.table import Table  # noqa: E402
from torch import Tensor  # noqa: E402

from rolesafe import role_attention  # noqa: E402
from rolesafe.evaluation.environment import environment  # noqa: E402
from rolesafe.files import check_writable, write_whole  # noqa: E402
from rolesafe.terminal import run_main  # noqa: E402
from tools.inputs import Features, Inputs, Shape, make_inputs  # noqa: E402
from tools.timing import Plan, interleave, quantiles, ratio, wall_timer  # noqa: E402

HEADS, DIM, ROLES = 8, 64, 5
RESULTS = ROOT / "benchmarks" / "results" / "attention_cpu.json"

FEATURES = {
    "roles off": Features(),
    "bias": Features(bias=True),
    "bias + share": Features(bias=True, share=True),
    "half dedicated": Features(dedicated=0.5),
    "channel": Features(bias=True, share=True, dedicated=0.5, integrity=True),
}
CASES = ("plain", "materialised bias", *FEATURES)


def inputs(length: int, gradients: bool) -> Inputs:
    """Draw q, k, v (1, H, L, D), roles, table and share of one length, in fp32."""
    shape = Shape(1, HEADS, HEADS, length, length, DIM)
    return make_inputs(shape, torch.float32, torch.device("cpu"), gradients=gradients, transposed=False)


def attend(x: Inputs, case: str, impl: Literal["sdpa", "reference"] = "sdpa") -> Tensor:
    """Return the output of one case, (1, H, L, D)."""
    if case == "plain":
        return F.scaled_dot_product_attention(x.q, x.k, x.v, is_causal=True)
    if case == "materialised bias":
        pairs = x.bias[:, x.q_roles[0].unsqueeze(1), x.k_roles[0].unsqueeze(0)].unsqueeze(0)
        future = torch.ones(pairs.shape[2:], dtype=torch.bool).triu(1)
        return F.scaled_dot_product_attention(x.q, x.k, x.v, pairs.masked_fill(future, float("-inf")))
    return role_attention(x.q, x.k, x.v, x.q_roles, x.k_roles, **x.tables(FEATURES[case]), impl=impl)


def step(x: Inputs, case: str) -> None:
    """Run forward, and backward where gradients are on."""
    out = attend(x, case)
    if out.requires_grad:
        leaves = x.leaves(FEATURES.get(case, Features(bias=case != "plain")))
        torch.autograd.grad(out, list(leaves.values()), x.grad)


def timed(gradients: bool) -> tuple[str, ...]:
    """Return the cases of a pass: the (H, T, S) bias needs many seconds backward."""
    return tuple(case for case in CASES if not (gradients and case == "materialised bias"))


def check() -> None:
    """Raise AssertionError unless every case agrees with the specification at L=256."""
    x = inputs(256, gradients=False)
    for case in CASES:
        same = {"plain": "roles off", "materialised bias": "bias"}.get(case, case)
        torch.testing.assert_close(attend(x, case), attend(x, same, "reference"), rtol=1e-4, atol=1e-5)


def measure_time(length: int, rounds: int, gradients: bool) -> dict[str, dict[str, float]]:
    """Return milliseconds (p20, p50, p80) and the ratio to plain attention of every case."""
    x = inputs(length, gradients)
    calls = {case: partial(step, x, case) for case in timed(gradients)}
    for call in calls.values():
        call()
    times = interleave(calls, dict.fromkeys(calls, 0.0), wall_timer, Plan().fixed(rounds))
    return {
        case: quantiles(list(own.values())) | {"ratio": (ratio(own, times["plain"]) or {})["median"]}
        for case, own in times.items()
    }


def measure_memory(case: str, length: int, gradients: bool) -> dict[str, float]:
    """Return MiB of this process: the rise of its peak over the size with inputs made, and the peak. Run it once."""
    x = inputs(length, gradients)
    held = _resident()
    step(x, case)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024  # KiB on Linux
    return {"increase_mib": peak - held, "whole_mib": peak}


def _resident() -> float:
    """Return the MiB that this process holds. Its peak so far may be higher, from the import of torch."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * resource.getpagesize() / 2**20


def memory_in_fresh_process(case: str, length: int, gradients: bool, threads: int) -> dict[str, float]:
    command = [sys.executable, __file__, "--memory-of", case, "--lengths", str(length), "--threads", str(threads)]
    done = subprocess.run(command + ["--gradients"] * gradients, check=True, capture_output=True, text=True)
    result: dict[str, float] = json.loads(done.stdout)
    return result


def machine(threads: int) -> dict[str, Any]:
    """Return versions, processor, threads and commit."""
    about, info = environment(), Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    cpu = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), about.hardware)
    capability = torch.backends.cpu.get_cpu_capability()
    return {**dict(about.versions), "cpu": cpu, "capability": capability, "threads": threads, "commit": about.commit}


def show(report: dict[str, Any]) -> None:
    """Print the results as tables, one per length and pass."""
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
    report = {"environment": machine(options.threads), "settings": settings, "results": results}
    write_whole(options.output, json.dumps(report, indent=1) + "\n")
    show(report)


if __name__ == "__main__":
    run_main(main)
