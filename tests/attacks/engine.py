"""Examples, and short forms of calls, for the tests of the engine."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rolesafe.attacks import AttackConfig, AttackResult, Found, attack, attackable
from rolesafe.tasks import Example, generate
from tests.attacks.stubs import make_tokenizer

ALL = generate("test", 24, 0)
EXAMPLES = attackable(ALL)
TOKENIZER = make_tokenizer()


def found(example: Example, text: str = "Done.", **changes: Any) -> Found:
    messages = example.with_target(f"{example.request} {text}")
    return Found(
        **{"messages": messages, "reply": None, "n_queries": 7, "n_steps": 3, "losses": (2.0, 1.0, 0.5), **changes}
    )


def run(model: Any, config: AttackConfig, goal: str | None = None, **options: Any) -> AttackResult:
    return attack(model, TOKENIZER, ALL, config, goal=goal, **{"check_goal": False, **options})


def giving_in_to(text: str) -> Callable[[str], str]:
    def answer(prompt: str) -> str:
        example = next(e for e in EXAMPLES if e.messages[0]["content"].replace(".", " .") in prompt)
        return f"It is {example.violation}." if text in prompt else "Done."

    return answer
