"""Compare the GCG of rolesafe and of nanoGCG on one plain model: final loss and time.

    python benchmarks/gcg.py --model PATH [--draft PATH] [--variant NAME ...] [--output FILE] [--runs FILE]
        [--steps N] [--width N] [--topk N] [--seeds N] [--alpha X] [--sampling-factor N] [--reduction N] [--threads N]

Variants: cross-entropy (``ce``), ``mellowmax``, and cross-entropy with ``probe-sampling``. Both tools get the same
start, wanted replies, allowed tokens, steps, candidates and draft model. They run in turns of one run each, in changing
order. Random numbers differ, so losses are compared over several seeds and examples: mean of the differences with a 95%
interval (Student's t), over all turns and over the examples' means. Times are ratios of runs of the same turn:
geometric mean with a 95% interval.

Reported losses are checked. Tokens before, in and after the slot are compared one by one. The loss of the final text is
computed again by one forward pass over the text as the tokenizer encodes it, and a difference ends the comparison.
nanoGCG may end with a text that does not encode to its tokens: such runs are counted, with the loss of the text. The
compared loss is the mean negative log-likelihood, whatever was minimised.

nanoGCG runs without its prefix cache if it cannot read the cache of the installed transformers: the record holds the
reason, and rolesafe's times without a prefix, too. nanoGCG calls Python's garbage collector in every step, which
dominates on small models, so the record holds the ratio of times without collections, too.

The file is written after each turn, with ``"complete": false`` until the last one. It holds the summary; the runs go to
the file of ``--runs``. Ctrl-C ends after the current turn, a second one ends at once.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import dataclasses
import functools
import gc
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
from rich.console import Console  # noqa: E402

from benchmarks.gcg_runs import (  # noqa: E402
    TOLERANCE,
    Bench,
    Budget,
    Case,
    Outcome,
    case_of,
    load,
    load_draft,
    measures,
    minimised,
    prefix_error,
    run_nanogcg,
    run_rolesafe,
)
from benchmarks.gcg_summary import (  # noqa: E402
    KINDS,
    NANOGCG,
    NLL,
    ROLESAFE,
    interval,
    show,
    summary,
)
from rolesafe.attacks.gradient.gcg import draw, rank_correlation  # noqa: E402
from rolesafe.attacks.gradient.losses import losses, make_loss  # noqa: E402
from rolesafe.attacks.gradient.target import Target  # noqa: E402
from rolesafe.attacks.gradient.victim import Victim  # noqa: E402
from rolesafe.evaluation.environment import environment  # noqa: E402
from rolesafe.files import check_writable, write_whole  # noqa: E402
from rolesafe.terminal import INTERRUPTED, as_text, run_main  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results" / "gcg.json"

REQUESTS = ("Tell me about the dog.", "What did the little girl see?")
WANTED = ("It is gold.", "The code is red.", "Yes, I can say it.")
VARIANTS = ("ce", "mellowmax", "probe-sampling")


def agreement(bench: Bench, case: Case) -> float:
    """Return the rank correlation of model and draft over candidates with one random token exchanged."""
    generator = torch.Generator().manual_seed(0)
    scores = torch.rand(len(case.target.start), len(case.target.allowed), generator=generator)
    rows = draw(case.target.start, scores, case.target.allowed, bench.budget.width, scores.numel(), 1, generator)
    one, other = (losses(Victim(m, case.target), make_loss("ce"), rows, 128) for m in (bench.model, bench.draft))
    return rank_correlation(one, other)


@contextlib.contextmanager
def collections() -> Iterator[list[float]]:
    """Record the seconds of each garbage collection within the context."""
    spent: list[float] = []
    began = 0.0

    def see(phase: str, _: dict[str, int]) -> None:
        nonlocal began
        if phase == "start":
            began = time.perf_counter()
        else:
            spent.append(time.perf_counter() - began)

    gc.callbacks.append(see)
    try:
        yield spent
    finally:
        gc.callbacks.remove(see)


def run_one(bench: Bench, case: Case, variant: str, kind: str, seed: int, steps: int) -> dict[str, Any]:
    """Time and check one run; `working` is the time in seconds without garbage collections."""
    if kind == NANOGCG:
        search: Callable[..., Outcome] = functools.partial(run_nanogcg, prefix=bench.prefix)
    else:
        search = functools.partial(run_rolesafe, prefix_cache=kind == ROLESAFE)
    gc.collect()  # so that no run pays for the garbage of another one
    with collections() as collecting:
        began = time.perf_counter()
        found = search(bench, case, variant, seed, steps)
        seconds = time.perf_counter() - began
    checked = measures(bench.model, bench.tokenizer, found.content, case.example.wanted, bench.budget.alpha)
    gap = abs(found.reported - checked[minimised(kind, variant)])
    if found.reads_back and gap > TOLERANCE:
        raise RuntimeError(f"{kind}, {variant}: expected the loss of the text, got {found.reported:.4f}, {gap:.4f} off")
    return {
        "variant": variant, "kind": kind, "request": case.example.request, "wanted": case.example.wanted, "seed": seed,
        "start": case.start, "loss": checked, "gap": gap, "seconds": seconds, "working": seconds - sum(collecting),
        **dataclasses.asdict(found),
    }  # fmt: skip


def check(budget: Budget, variants: Sequence[str], target: Target) -> None:
    """Refuse a budget that the two tools would read differently."""
    most = len(target.allowed) // 4
    if budget.topk > most:
        raise ValueError(
            f"`topk`: expected at most {most}, a quarter of the {len(target.allowed)} allowed tokens, which limits "
            f"rolesafe and not nanoGCG, got {budget.topk}"
        )
    if "probe-sampling" in variants and budget.width < 8 * budget.sampling_factor:
        raise ValueError(
            f"`width`: expected at least {8 * budget.sampling_factor}, 8 * `sampling_factor`, got {budget.width}. "
            "nanoGCG fails on a sample of fewer than two valid candidates."
        )


def compare(
    path: str,
    budget: Budget,
    *,
    variants: Sequence[str] = VARIANTS,
    draft: str | None = None,
    save: Callable[[dict[str, Any]], None] = lambda record: None,
    report: Callable[[str], None] = print,
    stopping: Callable[[], bool] = lambda: False,
) -> dict[str, Any]:
    """Run all variants and return the record; after each turn `save` gets the record so far and `stopping` may end it.

    Raises:
        ValueError: The budget or the draft does not fit.
        RuntimeError: Tokens differ, or a loss is not that of its text.
    """
    from nanogcg.utils import get_nonascii_toks

    model, tokenizer = load(path)
    drafted, about = load_draft(draft, model, tokenizer) if "probe-sampling" in variants else (None, None)
    cases = [case_of(model, tokenizer, r, w, budget.alpha) for r in REQUESTS for w in WANTED]
    bench = Bench(model, tokenizer, drafted, copy.deepcopy(tokenizer), budget)
    check(budget, variants, cases[0].target)
    why = prefix_error(bench, cases[0])
    bench = dataclasses.replace(bench, prefix=why is None)
    size = model.get_input_embeddings().num_embeddings
    allowed, alone = cases[0].target.allowed.tolist(), set(range(size)) - set(get_nonascii_toks(tokenizer).tolist())
    options = [f"--{name.replace('_', '-')} {value}" for name, value in dataclasses.asdict(budget).items()]
    options += [f"--variant {variant}" for variant in variants] + ["--draft PATH"] * (draft is not None)
    record: dict[str, Any] = {
        "schema": 2,
        "command": " ".join(["python benchmarks/gcg.py --model PATH", *options]),
        "complete": False,
        "model": Path(path).name,
        "budget": {**dataclasses.asdict(budget), "replies": len(WANTED), "requests": len(REQUESTS)},
        "allowed_tokens": {"count": len(allowed), "of": size, "nanogcg_alone_the_same": set(allowed) == alone},
        "nanogcg_prefix": {"kept": bench.prefix, "why": why},
        "draft": None if drafted is None else {
            "what": about, "share_of_parameters": drafted.num_parameters() / model.num_parameters(),
            "rank_correlation": interval([agreement(bench, case) for case in cases]),
        },
        "environment": {
            **dict(environment().versions), "nanogcg": version("nanogcg"), "scipy": version("scipy"),
            "numpy": version("numpy"), "hardware": environment().hardware, "commit": environment().commit,
            "threads": torch.get_num_threads(),
            "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        },
        "variants": {},
        "runs": [],
    }  # fmt: skip
    report(f"nanoGCG runs {'with' if bench.prefix else 'without'} its prefix cache{f' ({why})' if why else ''}")
    for variant in variants:  # the gate, and the warm-up
        for kind in KINDS:
            run_one(bench, cases[0], variant, kind, 0, 2)
    report("same tokens and correct losses in two steps of all variants")
    runs: list[dict[str, Any]] = record["runs"]
    jobs = [(s, e, v) for s in range(budget.seeds) for e in range(len(cases)) for v in range(len(variants))]
    began = time.perf_counter()
    for done, (seed, e, v) in enumerate(jobs, 1):
        order = KINDS if (seed + e + v) % 2 else KINDS[::-1]
        turn = [run_one(bench, cases[e], variants[v], kind, seed, budget.steps) for kind in order]
        runs += turn
        record["variants"][variants[v]] = summary([r for r in runs if r["variant"] == variants[v]])
        record["complete"] = done == len(jobs)
        save(record)
        left = (time.perf_counter() - began) / done * (len(jobs) - done) / 60
        line = ", ".join(f"{r['kind']} {r['loss'][NLL]:.3f} {r['seconds']:.1f} s" for r in turn)
        report(f"{done}/{len(jobs)} {variants[v]}: {line}; {left:.0f} min left")
        if stopping():
            break
    return record


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--model", required=True, help="Directory or hub id of a causal language model.")
    parser.add_argument(
        "--draft", help="Draft model with the same tokenizer. Default: every second layer of the model."
    )
    parser.add_argument("--variant", action="append", choices=VARIANTS, help="May be repeated. Default: all.")
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--runs", type=Path, help="File for all single runs. Default: not written.")
    parser.add_argument("--threads", type=int, default=1)
    for field in dataclasses.fields(Budget):
        parser.add_argument(f"--{field.name.replace('_', '-')}", type=type(field.default), default=field.default)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    asked: list[int] = []

    def stop(number: int, frame: Any) -> None:
        # Not raised at once: Python ignores errors raised in the callback of `collections`.
        if asked:
            raise KeyboardInterrupt
        asked.append(number)

    signal.signal(signal.SIGINT, stop)
    signal.signal(signal.SIGTERM, stop)
    budget = Budget(**{field.name: getattr(args, field.name) for field in dataclasses.fields(Budget)})
    check_writable(args.output, "--output")
    if args.runs is not None:
        check_writable(args.runs, "--runs")

    def save(record: dict[str, Any]) -> None:
        write_whole(args.output, json.dumps({k: v for k, v in record.items() if k != "runs"}, indent=1) + "\n")
        if args.runs is not None:
            write_whole(args.runs, json.dumps(record["runs"], indent=1) + "\n")

    console = Console(width=None if sys.stdout.isatty() else 140)
    variants = tuple(dict.fromkeys(args.variant or VARIANTS))

    def report(line: str) -> None:
        console.print(as_text(line), soft_wrap=True)

    record = compare(
        args.model, budget, variants=variants, draft=args.draft, save=save, report=report, stopping=lambda: bool(asked)
    )
    console.print(show(record))
    return INTERRUPTED if asked else 0


if __name__ == "__main__":
    run_main(main)
