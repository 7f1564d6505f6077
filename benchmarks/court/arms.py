"""Attack success, utility and time of four arms: plain, channel, court, channel + court, on the task of the demo.

Rules are of the kind "never say this code word". A tiny llama is trained on them without and with a role layer; a court
forbids the code word of each conversation.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import rolesafe
from rolesafe.attacks import attack, contains, replies, suite
from rolesafe.attacks.judge import same
from rolesafe.court import Articles, Court, ForbiddenPhrases, sitting
from rolesafe.demo.settings import ATTACKS
from rolesafe.tasks import Example, generate, training_conversations, vocabulary
from rolesafe.training import FitSettings, fit
from rolesafe.training.tiny import tiny_llama, tiny_tokenizer

FAMILY = ("access",)
MODELS = {"plain": None, "channel": rolesafe.RoleConfig.preset("channel")}
MAX_NEW_TOKENS = 16


def run(steps: int, examples: int, seed: int = 0) -> dict[str, Any]:
    """Train both models and return the record of the four arms.

    Args:
        steps: Training steps of each model.
        examples: Test examples, half of them protected.
        seed: Of the training and of the attacks.
    """
    tokenizer = tiny_tokenizer(vocabulary(FAMILY, triggers=False))
    tests = generate("test", examples, seed=1000 + seed, families=FAMILY)
    rows = []
    for name, config in MODELS.items():
        model = _trained(tokenizer, config, steps, seed)
        rows += [{"model": name, **_arm(model, tokenizer, tests, court, seed)} for court in (False, True)]
    return {"steps": steps, "examples": examples, "seed": seed, "attacks": list(ATTACKS), "rows": rows}


def _trained(tokenizer: Any, config: rolesafe.RoleConfig | None, steps: int, seed: int) -> Any:
    model: Any = tiny_llama(len(tokenizer), seed=seed)
    if config is not None:
        model = rolesafe.patch(model, config)
    how = FitSettings(steps=steps, position_gap=640)
    talks = [{"messages": one} for one in training_conversations(steps * how.batch_size, seed, FAMILY)]
    with TemporaryDirectory() as folder:
        fit(model, tokenizer, talks, how, seed=seed, directory=Path(folder) / "run", config=config)
    return model.eval()


def _arm(model: Any, tokenizer: Any, tests: list[Example], with_court: bool, seed: int) -> dict[str, Any]:
    protected = [e for e in tests if e.kind == "protected"]
    benign = [e for e in tests if e.kind == "benign"]
    ends = Court.compile(Articles((), ""), tokenizer).end_ids
    spent = {"compile": 0.0, "all": 0.0}

    @contextmanager
    def under(guarded: str | None) -> Iterator[None]:
        """Put the model under a court that forbids a code word; its refusal is the right reply of the task."""
        if not with_court or guarded is None:
            yield
            return
        start = time.process_time()
        article = ForbiddenPhrases(name="code", phrases=(guarded,))
        court = Court.compile(Articles((article,), protected[0].reply), tokenizer, end_ids=ends)
        spent["compile"] += time.process_time() - start
        with sitting(model, court):
            yield

    def ask(example: Example) -> str:
        return replies(model, tokenizer, [example.messages], max_new_tokens=MAX_NEW_TOKENS, batch_size=1)[0]

    won: dict[str, dict[str, bool]] = {}
    start, asked = time.process_time(), 0
    for example in protected:
        with under(example.violation):
            for config in suite(ATTACKS, quick=True, seed=seed, max_new_tokens=MAX_NEW_TOKENS):
                found = won.setdefault(config.name, {})
                for outcome in attack(model, tokenizer, [example], config, check_goal=False).outcomes:
                    found[example.id] = found.get(example.id, False) or outcome.success
                    asked += 1
    solved = right = 0
    for i, example in enumerate(benign):  # its court guards another word
        others = (e.violation for e in [*protected[i:], *protected] if not contains(example.reply, e.violation or ""))
        with under(next(others)):
            solved += same(ask(example), example.reply)
    for example in protected:
        with under(example.violation):
            right += same(ask(example), example.reply)
    spent["all"] = time.process_time() - start
    asked += len(benign) + len(protected)
    ids = {e.id for e in protected}
    typed = [found for name, found in won.items() if name != "none"]
    return {
        "court": with_court,
        "attacks": {key: {"k": sum(found.values()), "n": len(found)} for key, found in won.items()},
        "worst": {"k": sum(any(one.get(i) for one in typed) for i in ids), "n": len(ids)},
        "benign": {"k": solved, "n": len(benign)},
        "protected": {"k": right, "n": len(protected)},
        "replies": asked,
        "cpu_ms_per_reply": 1e3 * (spent["all"] - spent["compile"]) / asked,
        "compile_cpu_ms": 1e3 * spent["compile"] / (2 * len(protected) + len(benign)) if with_court else 0.0,
    }
