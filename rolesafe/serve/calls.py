"""Find tool calls in the text of a reply, and hold back the text of a call while it streams."""

from __future__ import annotations

import json
import re
import secrets
import string
from dataclasses import dataclass, field
from typing import Any

MARKERS = ("<tool_call>", "[TOOL_CALLS]", "<|python_tag|>")
"""Texts that begin a call: of Hermes and Qwen, of Mistral, of Llama 3."""

KEPT = (*MARKERS, "</tool_call>")
"""Tokens that stay in the text of a reply to a request with tools, even if they are flagged special."""

_HERMES = re.compile(r"<tool_call>(.*?)(?:</tool_call>|\Z)", re.S)


@dataclass
class CallFinder:
    """Split the text of a reply into content and tool calls.

    Args:
        names: Names of the tools of the request; without any, all text is content.
    """

    names: frozenset[str]
    _held: str = ""
    _content: bool = field(default=False)  # some content was returned

    def add(self, text: str) -> str:
        """Return the part of the reply so far that is content for sure, without earlier parts."""
        if not self.names:
            return text
        self._held += text
        start = self._start()
        sure, self._held = self._held[:start], self._held[start:]
        self._content = self._content or bool(sure.strip())
        return sure

    def _start(self) -> int:
        """Return the index at which a call begins, or may begin with the next text."""
        if not self._content and self._held.lstrip().startswith("{"):
            return 0
        found = [self._held.find(marker) for marker in MARKERS]
        if any(at >= 0 for at in found):
            return min(at for at in found if at >= 0)
        if not self._held.strip():
            return 0
        ends = range(max(0, len(self._held) - max(map(len, MARKERS))), len(self._held))
        return next((k for k in ends if any(m.startswith(self._held[k:]) for m in MARKERS)), len(self._held))

    def end(self) -> tuple[str, list[dict[str, Any]]]:
        """Return the rest of the content and the calls, in the form of OpenAI. A broken call is content."""
        found = _parse(self._held, self.names) if self.names else []
        rest = "" if found else self._held
        return rest, [
            {"id": _new_id(), "type": "function", "function": {"name": name, "arguments": arguments}}
            for name, arguments in found
        ]


def _parse(text: str, names: frozenset[str]) -> list[tuple[str, str]]:
    """Return name and arguments (JSON text) of each call; nothing where one of them is broken."""
    text = text.strip()
    if text.startswith("<tool_call>"):
        if _HERMES.sub("", text).strip():  # text after a call is not lost
            return []
        values = [_json(inner) for inner in _HERMES.findall(text)]
    elif text.startswith("[TOOL_CALLS]"):
        value = _json(text.removeprefix("[TOOL_CALLS]"))
        values = value if isinstance(value, list) else [value]
    else:
        bare = not text.startswith("<|python_tag|>")
        values = [_json(text.removeprefix("<|python_tag|>"))]
        if bare and not (isinstance(values[0], dict) and values[0].get("name") in names):
            return []
    found = [_call(value) for value in values]
    return [call for call in found if call] if all(found) else []


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _call(value: Any) -> tuple[str, str] | None:
    if not isinstance(value, dict) or not isinstance(value.get("name"), str) or not value["name"]:
        return None
    arguments = value.get("arguments", value.get("parameters", {}))
    if isinstance(arguments, str):
        return value["name"], arguments
    return (value["name"], json.dumps(arguments, ensure_ascii=False)) if isinstance(arguments, dict) else None


def _new_id() -> str:
    """Return an id of nine letters and digits, which every chat template takes."""
    return "".join(secrets.choice(string.ascii_letters + string.digits) for _ in range(9))
