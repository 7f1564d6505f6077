"""Speed of generation with many phrases against none, interleaved in one process; prefill of a frozen prompt."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from typing import Any

import torch
from transformers import AutoModelForCausalLM, LogitsProcessorList

import rolesafe
from rolesafe.court import Court, CourtProcessor, ForbiddenPhrases

TOKENS = 48
PROMPT = 512


def generation(directory: str, tokenizer: Any, phrases: tuple[str, ...], rounds: int) -> dict[str, Any]:
    """Return the times per token of greedy generation without a court and with one over `phrases`, in fp32.

    Both write `TOKENS` tokens after the same prompt, turn by turn, so that other programs slow both down alike; the
    quotients are medians over the pairs. The time of the CPU alone leaves out waiting for it.
    """
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    messages = [{"role": "user", "content": "Tell me a long story about a boy, a boat and a storm."}]
    batch = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    court = Court.compile([ForbiddenPhrases(name="phrases", phrases=phrases)], tokenizer)

    def write(processors: list[Any]) -> tuple[float, float, Any]:
        wall, cpu = time.perf_counter(), time.process_time()
        out = model.generate(
            **batch, max_new_tokens=TOKENS, min_new_tokens=TOKENS, do_sample=False, pad_token_id=0,
            logits_processor=LogitsProcessorList(processors),
        )  # fmt: skip
        return time.perf_counter() - wall, time.process_time() - cpu, out

    write([])
    pairs, same = [], True
    for i in range(rounds):
        order = (False, True) if i % 2 else (True, False)
        found = {with_: write([CourtProcessor(court, batch["input_ids"])] if with_ else []) for with_ in order}
        pairs.append((found[False], found[True]))
        same = same and torch.equal(found[False][2], found[True][2])
    return {
        "phrases": len(phrases),
        "tokens": TOKENS,
        "rounds": rounds,
        "same_text": same,
        "none_cpu_ms": statistics.median(a[1] for a, _ in pairs) * 1e3 / TOKENS,
        "court_cpu_ms": statistics.median(b[1] for _, b in pairs) * 1e3 / TOKENS,
        "none_wall_ms": statistics.median(a[0] for a, _ in pairs) * 1e3 / TOKENS,
        "court_wall_ms": statistics.median(b[0] for _, b in pairs) * 1e3 / TOKENS,
        "cpu_quotient": statistics.median(a[1] / b[1] for a, b in pairs),
        "wall_quotient": statistics.median(a[0] / b[0] for a, b in pairs),
    }


def frozen(directory: str, tokenizer: Any, text: str, rounds: int) -> list[dict[str, Any]]:
    """Return the times of the prefill of a system prompt of `PROMPT` tokens, computed and frozen, in fp32 and bf16."""
    return [_frozen(directory, tokenizer, text, rounds, dtype) for dtype in (torch.float32, torch.bfloat16)]


def _frozen(directory: str, tokenizer: Any, text: str, rounds: int, dtype: torch.dtype) -> dict[str, Any]:
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=dtype).eval()
    model = rolesafe.patch(model, rolesafe.RoleConfig.preset("channel"))
    messages = _prompt(tokenizer, text, model.rolesafe_config)
    prompt = rolesafe.freeze(model, tokenizer, messages)
    batch = {"input_ids": prompt.tokens[None], "role_ids": prompt.roles[None]}
    batch["attention_mask"] = torch.ones_like(batch["input_ids"])

    def compute() -> Any:
        with torch.no_grad():
            return model(**batch, use_cache=True, logits_to_keep=1)

    times = [(_cpu(compute), _cpu(prompt.cache)) for _ in range(rounds)]
    question = [{"role": "user", "content": "What did they see in the morning?"}]
    inputs = prompt.inputs(question, add_generation_prompt=True)
    plain = {name: value for name, value in inputs.items() if isinstance(value, torch.Tensor)}
    with torch.no_grad():
        whole = model(**plain, use_cache=True)
        first = compute()
        rest = {**plain, "input_ids": plain["input_ids"][:, len(prompt) :]}
        two_calls = model(**rest, **{_name(inputs): _cache(first)}).logits
        thawed = model(**rest, **{_name(inputs): prompt.cache()}).logits
    pairs = list(zip(_cache(whole).layers, prompt.cache().layers, strict=True))
    with tempfile.TemporaryDirectory() as folder:
        prompt.save(folder)
        load = _cpu(lambda: rolesafe.FrozenPrompt.load(folder, model, tokenizer))
    return {
        "dtype": str(dtype).removeprefix("torch."),
        "tokens": len(prompt),
        "rounds": rounds,
        "compute_cpu_ms": statistics.median(a for a, _ in times) * 1e3,
        "frozen_cpu_ms": statistics.median(b for _, b in times) * 1e3,
        "load_cpu_ms": load * 1e3,
        "states_equal_whole_conversation": all(
            torch.equal(getattr(a, kind)[:, :, : len(prompt)], getattr(b, kind)) for a, b in pairs
            for kind in ("keys", "values")
        ),
        "logits_equal_two_calls": torch.equal(two_calls, thawed),
        "logits_from_one_call": float((whole.logits[:, -1] - thawed[:, -1]).abs().max()),
    }  # fmt: skip


def _prompt(tokenizer: Any, text: str, config: Any) -> list[dict[str, str]]:
    """Return a system message whose frozen tokens are `PROMPT` in number: the template's are counted too."""
    ids = tokenizer(" ".join(text.split())).input_ids
    for size in range(PROMPT - 16, PROMPT):
        messages = [{"role": "system", "content": tokenizer.decode(ids[:size])}]
        whole = rolesafe.encode(tokenizer, [*messages, {"role": "user", "content": "a"}], config=config)
        if int((whole["role_ids"] == whole["role_ids"][0, 0]).sum()) == PROMPT:
            return messages
    raise ValueError(f"`text`: expected one whose first tokens give a prompt of {PROMPT} tokens, got none.")


def _cpu(call: Callable[[], Any]) -> float:
    start = time.process_time()
    call()
    return time.process_time() - start


def _name(inputs: Any) -> str:
    return next(name for name, value in inputs.items() if not isinstance(value, torch.Tensor))


def _cache(output: Any) -> Any:
    from rolesafe.patching.caches import output_cache

    return output_cache(output)
