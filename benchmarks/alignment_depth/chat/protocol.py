"""Settings that all arms share. A record or a checkpoint made with other ones is refused."""

from __future__ import annotations

from typing import Any, Final

SYSTEM: Final = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
"""System turn of every conversation, in training and test: the default text of SmolLM2's template.

Without a system turn no token is privileged, and added heads would see nothing: the template's default text counts as
part of the user's message.
"""
BATCH: Final = 8
"""Training rows of a step."""
SAFETY_SHARE: Final = 1 / 4
"""Share of the training rows that teach a refusal."""
NEAR_SHARE: Final = 1 / 2
"""Largest share of the benign training rows that is drawn for words of harmful prompts."""

RATIO: Final = {"safety_rows": round(SAFETY_SHARE * BATCH), "benign_rows": BATCH - round(SAFETY_SHARE * BATCH)}
"""Training rows of a step by kind."""
PROTOCOL: Final[dict[str, Any]] = {
    "system": SYSTEM,
    "batch": BATCH,
    "safety share": SAFETY_SHARE,
    "near share": NEAR_SHARE,
}
"""The same as an entry of records and checkpoints."""
