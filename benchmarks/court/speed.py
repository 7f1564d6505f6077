"""Time to compile many phrases, and time of a mask per step; llguidance in the same run."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from rolesafe.court import Court, ForbiddenPhrases, Vocabulary
from rolesafe.court.forms import Forms
from rolesafe.court.rules import PhraseRule

STEPS = 1500
PHRASES = (10, 100, 1000)


def draw_phrases(text: str, count: int, seed: int = 0) -> tuple[str, ...]:
    """Return `count` phrases of three words of a text that the text does not hold."""
    folded = " ".join(text.casefold().split())
    words = sorted({word for word in folded.split() if word.isalpha()})
    rng, out = random.Random(seed), {}
    while len(out) < count:
        phrase = " ".join(rng.choice(words) for _ in range(3))
        if phrase not in folded:
            out[phrase] = None
    return tuple(out)


def measure(tokenizer: Any, text: str, repeats: int) -> dict[str, Any]:
    """Return times of the court and of llguidance for several numbers of phrases."""
    start = time.perf_counter()
    vocabulary = Vocabulary.of(tokenizer)
    once = time.perf_counter() - start
    start = time.perf_counter()
    ends = Court.compile([], tokenizer).end_ids
    template = time.perf_counter() - start
    ids = tokenizer(text[: 12 * STEPS]).input_ids[:STEPS]
    rows = []
    for count in PHRASES:
        phrases = draw_phrases(text, count)
        article = ForbiddenPhrases(name="phrases", phrases=phrases)
        compiled, court = _median(lambda one=article: Court.compile([one], tokenizer, end_ids=ends), repeats)
        row = {"phrases": count, "compile_ms": compiled * 1e3, **_steps(court, ids)}
        row["llguidance"] = _llguidance(tokenizer, vocabulary, phrases, ids, ends[0])
        rows.append(row)
    return {
        "vocabulary": len(vocabulary),
        "steps": len(ids),
        "vocabulary_once_ms": once * 1e3,
        "template_once_ms": template * 1e3,
        "rows": rows,
    }


def _median(call: Callable[[], Any], repeats: int) -> tuple[float, Any]:
    times, found = [], None
    for _ in range(repeats):
        Forms.forget()  # every compilation reads the vocabulary
        start = time.perf_counter()
        found = call()
        times.append(time.perf_counter() - start)
    return statistics.median(times), found


def _percentiles(times: list[int], name: str) -> dict[str, float]:
    p50, p99, most = np.percentile(times, [50, 99, 100]) / 1e3
    return {f"{name}_p50_us": float(p50), f"{name}_p99_us": float(p99), f"{name}_max_us": float(most)}


def _steps(court: Court, ids: list[int]) -> dict[str, float]:
    """Return the times of a step (state after a token, then its forbidden tokens), all states cold at first."""
    (rule,) = court.rules
    assert isinstance(rule, PhraseRule)
    automaton, times = rule.automaton, []
    state = automaton.start
    for token in ids:
        start = time.perf_counter_ns()
        automaton.forbidden(state)
        after = automaton.step(state, token)
        times.append(time.perf_counter_ns() - start)
        assert after is not None
        state = after
    whole = []
    reply = court.start()
    for token in ids:
        start = time.perf_counter_ns()
        court.mask(reply)
        reply = court.step(reply, token)
        whole.append(time.perf_counter_ns() - start)
    return {**_percentiles(times, "automaton"), **_percentiles(whole, "court")}


def _llguidance(
    tokenizer: Any, vocabulary: Vocabulary, phrases: tuple[str, ...], ids: list[int], end: int
) -> dict[str, Any] | None:
    """Return the times of llguidance for the same phrases, exactly spelled; None without it."""
    try:
        from llguidance import LLMatcher, LLParserLimits
    except ImportError:
        return None
    from rolesafe.court.articles import Context
    from rolesafe.court.language import engine_tokenizer

    context = Context(vocabulary, lambda text: tokenizer(text, add_special_tokens=False).input_ids, end_ids=(end,))
    engine = engine_tokenizer(context)
    vetoes = " & ".join(f"~/(?s:.*){phrase}(?s:.*)/" for phrase in phrases)
    # its default limits end with an error at 1,000 phrases
    limits = LLParserLimits(initial_lexer_fuel=10**9, step_lexer_fuel=10**8, precompute_large_lexemes=False)
    start = time.perf_counter()
    matcher = LLMatcher(
        engine, LLMatcher.grammar_from_lark(f"start: TEXT\nTEXT: /(?s:.*)/ & {vetoes}"), log_level=0, limits=limits
    )
    compiled = time.perf_counter() - start
    times = []
    for token in ids:
        begin = time.perf_counter_ns()
        matcher.compute_bitmask()
        good = matcher.consume_token(token)
        times.append(time.perf_counter_ns() - begin)
        if matcher.is_error() or not good:
            return {"compile_ms": compiled * 1e3, "error": str(matcher.get_error())[:200], "steps": len(times)}
    return {"compile_ms": compiled * 1e3, **_percentiles(times, "mask")}
