"""Speed and memory, alternating with the untouched model of `--base`, for ratios within each round.

Rows are `[round, case, value]`, and with a base `[round, case, value, value of the base]`.
"""

from __future__ import annotations

import resource
import sys
import time
from typing import Any

import torch

from benchmarks.pretrained import texts
from benchmarks.pretrained.bench import Bench
from rolesafe.attacks.replies import end_ids, prompts, role_config
from rolesafe.config import RoleConfig
from rolesafe.roles.encoding import collate, padding_id

NAME = "cost"
ROUNDS = 5
BATCH = 8
NEW_TOKENS = 32
SENTENCES = 6
"""Length of the prompts in sentences of 20 words."""


def run(bench: Bench) -> None:
    """Measure prefill, generation, memory and parameters; the first round is a warm-up and not kept."""
    part = bench.part(NAME, ("dtype",), ("value", "base"), base=bench.base is not None)
    models = [bench.model] + ([bench.base_model] if bench.base else [])
    cases = ("prefill tokens/s", "generation tokens/s", "peak memory, MiB", "parameters")
    # the peak of a process with both models is not that of either, except on a GPU, where it is reset
    has_peak = len(models) == 1 or bench.model.device.type == "cuda"
    total = 2 * ROUNDS + 1 + has_peak
    if part.complete:
        return
    part.rows.clear()  # rounds of different runs are not comparable
    with bench.filling(NAME, part, total) as add:
        for number in range(ROUNDS + 1):
            found = [measure(model, bench.tokenizer) for model in models]
            if number:
                add([[str(number), case, *(values[i] for values in found)] for i, case in enumerate(cases[:2])])
        if has_peak:
            add([["1", cases[2], *(peak(model, bench.tokenizer) for model in models)]])
        add([["1", cases[3], *(sum(p.numel() for p in model.parameters()) for model in models)]])


def measure(model: Any, tokenizer: Any) -> tuple[float, float]:
    """Return the tokens per second of prefill, and of generation after it."""
    inputs = _inputs(model, tokenizer)
    length = inputs["input_ids"].numel()
    first = _seconds(model, tokenizer, inputs, 1)
    whole = _seconds(model, tokenizer, inputs, 1 + NEW_TOKENS)
    return round(length / first, 2), round(BATCH * NEW_TOKENS / max(whole - first, 1e-9), 2)


def peak(model: Any, tokenizer: Any) -> float:
    """Return the peak memory of generation in MiB; on a CPU, the peak of the process so far."""
    if model.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(model.device)
        _seconds(model, tokenizer, _inputs(model, tokenizer), 1 + NEW_TOKENS)
        return round(torch.cuda.max_memory_allocated(model.device) / 2**20, 1)
    unit = 1 if sys.platform == "darwin" else 1024
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20, 1)


def _inputs(model: Any, tokenizer: Any) -> dict[str, Any]:
    config = role_config(model)
    messages = [
        {"role": "system", "content": texts.SYSTEMS[1]},
        {"role": "user", "content": (texts.FILLER * SENTENCES).strip()},
    ]
    encoded = prompts(model, tokenizer, [messages] * BATCH)
    inputs = dict(collate(tokenizer, encoded, config or RoleConfig(), padding_side="left"))
    if config is None:
        inputs.pop("role_ids")
    return {name: value.to(model.device) for name, value in inputs.items()}


def _seconds(model: Any, tokenizer: Any, inputs: dict[str, Any], new_tokens: int) -> float:
    if model.device.type == "cuda":
        torch.cuda.synchronize(model.device)
    start = time.perf_counter()
    with torch.no_grad():
        model.generate(
            **inputs,
            do_sample=False,
            use_cache=True,
            min_new_tokens=new_tokens,
            max_new_tokens=new_tokens,
            eos_token_id=end_ids(model, tokenizer) or None,
            pad_token_id=padding_id(tokenizer),
        )
    if model.device.type == "cuda":
        torch.cuda.synchronize(model.device)
    return time.perf_counter() - start
