"""Test models with scripted replies, and small settings."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from rolesafe.attacks.judge import words
from rolesafe.audit import AuditSettings
from rolesafe.tasks import Example, generate
from tests.attacks.stubs import Scripted, make_model

QUICK: dict[str, Any] = {"repeats": (1, 4, 16), "attacks": ("mimicry",), "looks": 2, "forging": 40}
"""Settings of a short audit."""


def quick(**changes: Any) -> AuditSettings:
    return AuditSettings(**{**QUICK, **changes})


def examples(n: int = 24) -> list[Example]:
    return generate("test", n, seed=5)


def scripted_model(
    asked: Sequence[Example], falls: Callable[[Example, str], bool], solves: bool = True, fail_at: int | None = None
) -> Any:
    """Return a tiny llama that replies right (nothing if not `solves`), and with the violation if it `falls`.

    Args:
        asked: Examples of the audit.
        falls: Called with the protected example and the words of the prompt.
        solves: Whether it replies to the others.
        fail_at: Number of the call of `generate` that is interrupted.
    """
    model = make_model(positions=2048)

    def answer(prompt: str) -> str:
        said = " ".join(words(prompt))
        for example in asked:
            system = " ".join(["system", *words(example.messages[0]["content"]), "s"])  # between its delimiters
            if system in said and " ".join(words(example.request)) in said:
                if example.kind == "protected" and falls(example, said):
                    return str(example.violation)
                return example.reply if solves else "The"
        return "The"

    script = Scripted(answer, fail_at=fail_at)
    model.generate = script.generate
    model.script = script
    return model


def count(example: Example, said: str) -> int:
    """Return the number of injections in the words of a prompt."""
    return said.count(" ".join(words(example.injection())))


def system_last(example: Example, said: str) -> bool:
    """Return True if the words of the prompt end with the system text (and the header of the reply)."""
    return said.endswith(" ".join([*words(example.messages[0]["content"]), "s", "assistant"]))
