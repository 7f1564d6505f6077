"""Table of the clients for the documentation."""

from __future__ import annotations

import json

from benchmarks.clients.__main__ import RECORD

_KINDS = {
    "openai_library": "conversation of an agent, whole and streamed",
    "garak_probe": "probe `test.Test`",
    "inspect_task": "task with a system message; conversation with a tool result",
    "agentdojo_task": "banking suite, one task under attack; conversation with a tool result",
    "pyrit_chat": "prompt after a system prompt",
    "lm_eval_task": "`local-chat-completions`, task with a system instruction",
}


def block() -> str:
    """Return the table of the record."""
    record = json.loads(RECORD.read_text(encoding="utf-8"))
    lines = ["| client | run | requests | prompt tokens by role |", "| :-- | :-- | --: | :-- |"]
    for program, kind in _KINDS.items():
        one = record[program]
        roles = ", ".join(f"{name} {count}" for name, count in one["roles"].items())
        failed = sum(count for status, count in one["statuses"].items() if status != "200")
        requests = f"{one['requests']}, {failed} refused" if failed else str(one["requests"])
        status = "" if one["status"] == 0 else f" (ended with status {one['status']})"
        lines.append(f"| {one['package']} {one['version']} | {kind}{status} | {requests} | {roles} |")
    return "\n".join(lines)
