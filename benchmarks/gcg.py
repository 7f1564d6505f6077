"""GCG of rolesafe beside nanoGCG on one plain model: the loss that is reached, and the time it takes.

    python benchmarks/gcg.py --model PATH [--draft PATH] [--variant NAME ...] [--output FILE] [--steps N] [--width N]
        [--topk N] [--seeds N] [--alpha X] [--sampling-factor N] [--reduction N] [--threads N]

Variants: cross-entropy (``ce``), ``mellowmax``, and cross-entropy with ``probe-sampling``. Both tools start from the
same tokens, want the same replies, and have the same tokens to choose from, steps, candidates and draft model. They run
in turns of one run each, and the order changes from turn to turn. Their random numbers differ, so losses are compared
over several seeds and examples: mean of the differences with a 95% interval (Student's t), over all turns and over the
examples' means. Times are ratios of runs of the same turn: geometric mean with a 95% interval.

What a run reports is not taken at its word. Tokens before, in and after the slot are compared one by one; each tool's
own loss of the final text is computed again by one pass over the text as the tokenizer reads it, and a run that reports
another one ends the comparison. A text that does not read back as its tokens, which nanoGCG may end with, is counted,
and its loss is that of the text. The loss that is compared is the mean negative log-likelihood, whatever was minimised.

nanoGCG keeps no prefix here if it cannot read the cache of the transformers at hand: the record says why, and holds
rolesafe's times without a prefix too. nanoGCG calls Python's garbage collector in every step; where the model is small
that is most of its time, so the record holds the ratio of times without collections beside the plain one.

The file is written after each turn, with ``"complete": false`` until the last one. Ctrl-C ends after the turn that is
being run, a second one ends at once.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import dataclasses
import functools
import gc
import io
import json
import logging
import math
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

from benchmarks.gcg_summary import (  # noqa: E402
    KINDS,
    LOGITS,
    MELLOWMAX,
    NANOGCG,
    NLL,
    ROLESAFE,
    interval,
    show,
    summary,
)
from rolesafe.attacks.gradient import gcg_search  # noqa: E402
from rolesafe.attacks.gradient.gcg import draw, rank_correlation  # noqa: E402
from rolesafe.attacks.gradient.losses import losses, make_loss  # noqa: E402
from rolesafe.attacks.gradient.target import Target  # noqa: E402
from rolesafe.attacks.gradient.victim import Victim  # noqa: E402
from rolesafe.evaluation.environment import environment  # noqa: E402
from rolesafe.files import check_writable, write_whole  # noqa: E402
from rolesafe.tasks import Example, generate  # noqa: E402
from rolesafe.terminal import INTERRUPTED, as_text, run_main  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results" / "gcg.json"

TEMPLATE = "{{ bos_token }}{% for m in messages %}{{ m['content'] }}{{ eos_token }}{% endfor %}"
"""Structural tokens on both sides of every text: nanoGCG reads the pieces apart and still gets the same tokens."""

START = " ".join("x" * 20)
REQUESTS = ("Tell me about the dog.", "What did the little girl see?")
SUCCESS = "the"
"""In every request: rolesafe keeps out of the slot what the attacker did not say, nanoGCG does not."""
WANTED = ("It is gold.", "The code is red.", "Yes, I can say it.")
VARIANTS = ("ce", "mellowmax", "probe-sampling")
TOLERANCE = 1e-3
"""Nats: how far a reported loss may be from that of the text, in float32."""


@dataclasses.dataclass(frozen=True)
class Budget:
    """What both tools get."""

    steps: int = 50
    width: int = 256
    topk: int = 64
    seeds: int = 3
    alpha: float = 1.0
    sampling_factor: int = 16
    reduction: int = 8


@dataclasses.dataclass(frozen=True)
class Case:
    """One example for both tools: its tokens, and the losses of its start."""

    example: Example
    target: Target
    start: dict[str, float]


@dataclasses.dataclass(frozen=True)
class Bench:
    """What all runs share. `draft_tokenizer`: a copy, since nanoGCG gives it a padding token; `prefix`: whether nanoGCG
    keeps one."""

    model: Any
    tokenizer: Any
    draft: Any
    draft_tokenizer: Any
    budget: Budget
    prefix: bool = False


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What a run gave: the best content, its loss as reported, the best losses so far, whether it reads back."""

    content: str
    reported: float
    curve: list[float]
    reads_back: bool


def load(path: str) -> tuple[Any, Any]:
    """A model and its tokenizer, with :data:`TEMPLATE`."""
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging as quiet

    quiet.set_verbosity_error()
    quiet.disable_progress_bar()
    tokenizer = AutoTokenizer.from_pretrained(path)
    tokenizer.chat_template = TEMPLATE
    return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval(), tokenizer


def load_draft(path: str | None, model: Any, tokenizer: Any) -> tuple[Any, str]:
    """The draft model and what it is: that at `path`, or every second layer of `model` (llama and its like)."""
    if path is not None:
        draft, other = load(path)
        if other.get_vocab() != tokenizer.get_vocab():
            raise ValueError(f"`draft`: expected a model with the tokenizer of `model`, got other tokens in {path!r}")
        return draft, Path(path).name
    draft = copy.deepcopy(model)
    decoder = draft.get_decoder()
    count = len(decoder.layers)
    decoder.layers = decoder.layers[::2]
    for k, layer in enumerate(decoder.layers):
        layer.self_attn.layer_idx = k
    draft.config.num_hidden_layers = len(decoder.layers)
    return draft, f"every second layer of the model: {len(decoder.layers)} of {count}"


def case_of(model: Any, tokenizer: Any, request: str, wanted: str, alpha: float) -> Case:
    """A conversation of one message, with the slot behind it."""
    made = next(e for e in generate("test", 2, seed=0) if e.kind == "protected")
    message = {"role": "user", "content": request}
    example = dataclasses.replace(made, messages=(message,), target="user", request=request, wanted=wanted)
    target = Target(model, tokenizer, example, wanted=wanted, success=SUCCESS, generator=torch.Generator(), init=START)
    return Case(example, target, measures(model, tokenizer, f"{request} {START}", wanted, alpha))


def measures(model: Any, tokenizer: Any, content: str, wanted: str, alpha: float) -> dict[str, float]:
    """Losses of `wanted` after a message of this content, read by the tokenizer alone, in one forward pass."""
    prompt = tokenizer.apply_chat_template([{"role": "user", "content": content}], tokenize=False)
    ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    reply = tokenizer(wanted, add_special_tokens=False)["input_ids"]
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([ids + reply])).logits[0, len(ids) - 1 : -1].double()
    at = torch.tensor(reply)[:, None]
    missing = -torch.log_softmax(logits, -1).gather(-1, at)[:, 0]
    raw = -logits.gather(-1, at)[:, 0]

    def mellowmax(values: torch.Tensor) -> float:
        return (float(torch.logsumexp(alpha * values, 0)) - math.log(len(values))) / alpha

    return {NLL: float(missing.mean()), MELLOWMAX: mellowmax(missing), LOGITS: mellowmax(raw)}


def minimised(kind: str, variant: str) -> str:
    """The measure that a tool minimises: nanoGCG takes mellowmax over raw logits, rolesafe over log-likelihoods."""
    return NLL if variant != "mellowmax" else LOGITS if kind == NANOGCG else MELLOWMAX


def run_rolesafe(bench: Bench, case: Case, variant: str, seed: int, steps: int, *, prefix_cache: bool) -> Outcome:
    """One search of rolesafe."""
    budget = bench.budget
    found = gcg_search(
        bench.model, bench.tokenizer, case.example, wanted=case.example.wanted, success=SUCCESS, seed=seed,
        max_new_tokens=16, batch_size=128, init=START, early_stop=False, num_steps=steps, search_width=budget.width,
        topk=budget.topk, objective="mellowmax" if variant == "mellowmax" else "ce", mellowmax_alpha=budget.alpha,
        draft=bench.draft if variant == "probe-sampling" else "", sampling_factor=budget.sampling_factor,
        reduction=budget.reduction, prefix_cache=prefix_cache,
    )  # fmt: skip
    start = case.start[minimised(ROLESAFE, variant)]
    if abs(found.losses[0] - start) > TOLERANCE:
        raise RuntimeError(f"rolesafe starts at {found.losses[0]:.4f}, expected {start:.4f}, that of the same text")
    return Outcome(found.messages[0]["content"], found.losses[-1], list(found.losses), True)


def run_nanogcg(bench: Bench, case: Case, variant: str, seed: int, steps: int, *, prefix: bool) -> Outcome:
    """One search of nanoGCG, from the tokens of `case` and with its allowed tokens."""
    import nanogcg
    from nanogcg.gcg import GCG
    from transformers import set_seed

    model, tokenizer, budget, target = bench.model, bench.tokenizer, bench.budget, case.target
    probe = None
    if variant == "probe-sampling":
        probe = nanogcg.ProbeSamplingConfig(
            bench.draft, bench.draft_tokenizer, r=budget.reduction, sampling_factor=budget.sampling_factor
        )
    config = nanogcg.GCGConfig(
        num_steps=steps, search_width=budget.width, topk=budget.topk, optim_str_init=START,
        use_mellowmax=variant == "mellowmax", mellowmax_alpha=budget.alpha, use_prefix_cache=prefix,
        probe_sampling_config=probe, allow_non_ascii=True, verbosity="ERROR",
    )  # fmt: skip
    logging.getLogger("nanogcg").setLevel(logging.ERROR)
    set_seed(seed)  # `GCGConfig.seed` would do the same, and switch on deterministic algorithms, which are slower
    attack = GCG(model, tokenizer, config)
    embed = model.get_input_embeddings()
    # found before the clock starts for both: rolesafe knows the allowed tokens of a tokenizer from the first run on
    every = torch.arange(embed.num_embeddings)
    attack.not_allowed_ids = every[~torch.isin(every, target.allowed)]
    told = io.StringIO()  # its progress bar, and the errors of its threads
    try:
        with contextlib.redirect_stderr(told):
            found = attack.run(case.example.request, case.example.wanted)
    except KeyError as error:
        raise RuntimeError(f"a thread of nanoGCG failed:\n{told.getvalue()[-4000:]}") from error
    pieces = {
        "before the slot": (attack.before_embeds[0], embed(target.before)),
        "in the slot": (tokenizer(START, add_special_tokens=False, return_tensors="pt")["input_ids"][0], target.start),
        "after the slot": (attack.after_embeds[0], embed(target.after)),
        "in the reply": (attack.target_ids[0], target.wanted),
    }
    if others := [where for where, (given, expected) in pieces.items() if not torch.equal(given, expected)]:
        raise RuntimeError(f"nanoGCG reads other tokens than rolesafe {' and '.join(others)}")
    ids = tokenizer(found.best_string, add_special_tokens=False)["input_ids"]
    curve = [min(found.losses[: k + 1]) for k in range(len(found.losses))]
    return Outcome(target.messages(ids)[0]["content"], found.best_loss, curve, target.survives(ids))


def why_no_prefix(bench: Bench, case: Case) -> str | None:
    """Why nanoGCG cannot keep a prefix with the transformers at hand; None: it can."""
    try:
        run_nanogcg(bench, case, "ce", 0, 1, prefix=True)
    except (TypeError, AttributeError, IndexError) as error:
        return f"{type(error).__name__}: {error}"
    return None


def agreement(bench: Bench, case: Case) -> float:
    """Rank correlation of model and draft over candidates with one random token exchanged."""
    generator = torch.Generator().manual_seed(0)
    scores = torch.rand(len(case.target.start), len(case.target.allowed), generator=generator)
    rows = draw(case.target.start, scores, case.target.allowed, bench.budget.width, scores.numel(), 1, generator)
    one, other = (losses(Victim(m, case.target), make_loss("ce"), rows, 128) for m in (bench.model, bench.draft))
    return rank_correlation(one, other)


@contextlib.contextmanager
def collections() -> Iterator[list[float]]:
    """The seconds of each garbage collection within the context."""
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
    """One timed run, checked. `working`: its seconds without garbage collections."""
    if kind == NANOGCG:
        search: Callable[..., Outcome] = functools.partial(run_nanogcg, prefix=bench.prefix)
    else:
        search = functools.partial(run_rolesafe, prefix_cache=kind == ROLESAFE)
    gc.collect()  # so that no run is charged with what another one left
    with collections() as collecting:
        began = time.perf_counter()
        found = search(bench, case, variant, seed, steps)
        seconds = time.perf_counter() - began
    checked = measures(bench.model, bench.tokenizer, found.content, case.example.wanted, bench.budget.alpha)
    gap = abs(found.reported - checked[minimised(kind, variant)])
    if found.reads_back and gap > TOLERANCE:
        raise RuntimeError(f"{kind}, {variant}: reports {found.reported:.4f}, {gap:.4f} off the loss of its text")
    return {
        "variant": variant, "kind": kind, "request": case.example.request, "wanted": case.example.wanted, "seed": seed,
        "start": case.start, "loss": checked, "gap": gap, "seconds": seconds, "working": seconds - sum(collecting),
        **dataclasses.asdict(found),
    }  # fmt: skip


def check(budget: Budget, variants: Sequence[str], target: Target) -> None:
    """Refuse a budget that the two would read differently."""
    most = len(target.allowed) // 4
    if budget.topk > most:
        raise ValueError(
            f"`topk`: expected at most {most}, got {budget.topk}: rolesafe draws from a quarter of the "
            f"{len(target.allowed)} allowed tokens at most, nanoGCG from all that it is told"
        )
    if "probe-sampling" in variants and budget.width < 8 * budget.sampling_factor:
        raise ValueError(
            f"`width`: expected at least {8 * budget.sampling_factor}, 8 * `sampling_factor`, got {budget.width}: "
            "nanoGCG fails on a sample of less than two of the candidates that read back"
        )


def compare(
    path: str,
    budget: Budget,
    *,
    variants: Sequence[str] = VARIANTS,
    draft: str | None = None,
    save: Callable[[dict[str, Any]], None] = lambda record: None,
    tell: Callable[[str], None] = print,
    stopping: Callable[[], bool] = lambda: False,
) -> dict[str, Any]:
    """Run all and return the record; `save` is given what there is after each turn; then `stopping` may end it.

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
    why = why_no_prefix(bench, cases[0])
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
    tell(f"nanoGCG keeps {'a' if bench.prefix else 'no'} prefix{f' ({why})' if why else ''}")
    for variant in variants:  # the gate, and the warm-up
        for kind in KINDS:
            run_one(bench, cases[0], variant, kind, 0, 2)
    tell("same tokens, and losses as reported, in two steps of all")
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
        said = ", ".join(f"{r['kind']} {r['loss'][NLL]:.3f} {r['seconds']:.1f} s" for r in turn)
        tell(f"{done}/{len(jobs)} {variants[v]}: {said}; {left:.0f} min left")
        if stopping():
            break
    return record


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--model", required=True, help="folder or name of a causal language model")
    parser.add_argument("--draft", help="of a smaller model with the same tokenizer; every second layer otherwise")
    parser.add_argument("--variant", action="append", choices=VARIANTS, help="once or more; all otherwise")
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--threads", type=int, default=1)
    for field in dataclasses.fields(Budget):
        parser.add_argument(f"--{field.name.replace('_', '-')}", type=type(field.default), default=field.default)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    asked: list[int] = []

    def stop(number: int, frame: Any) -> None:
        # Not raised at once: what is raised in `collections`, as often as not while nanoGCG runs, is ignored by Python.
        if asked:
            raise KeyboardInterrupt
        asked.append(number)

    signal.signal(signal.SIGINT, stop)
    signal.signal(signal.SIGTERM, stop)
    budget = Budget(**{field.name: getattr(args, field.name) for field in dataclasses.fields(Budget)})
    check_writable(args.output, "--output")

    def save(record: dict[str, Any]) -> None:
        write_whole(args.output, json.dumps(record, indent=1) + "\n")

    console = Console(width=None if sys.stdout.isatty() else 140)
    variants = tuple(dict.fromkeys(args.variant or VARIANTS))

    def tell(line: str) -> None:
        console.print(as_text(line), soft_wrap=True)

    record = compare(
        args.model, budget, variants=variants, draft=args.draft, save=save, tell=tell, stopping=lambda: bool(asked)
    )
    console.print(show(record))
    return INTERRUPTED if asked else 0


if __name__ == "__main__":
    run_main(main)
