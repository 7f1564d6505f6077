"""AgentDojo: tool output with an injected order. Debenedetti et al., arXiv 2406.13352.

Traces as AgentDojo logs them, one JSON file each (pass the folder): `messages`, `injections` (texts by place),
`suite_name`, `user_task_id`, `injection_task_id`. A trace becomes the conversation up to the first tool message with an
injection (white space and escapes are ignored); later messages are cut off, and earlier tool calls become text. Traces
without injections are left out.

AgentDojo judges the final state of its environment, which a trace does not have. Here the witness decides: the field
`witness`, or else the first address, link, account or quoted text that only the injected order names. The order in
words is the field `injection_goal`, or else the injection.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, Final

from rolesafe.tasks.example import Example, Message
from rolesafe.tasks.sets.assemble import example, message
from rolesafe.tasks.sets.read import Row, RowError

_GAP: Final = r"(?:\\n|\W)+"
_MARKS: Final = (
    r"[\w.+-]+@[\w-]+(?:\.[\w-]+)+",
    r"(?:https?://|www\.)[^\s\"'<>]*[\w/]",
    r"\b(?=\w*\d)\w{10,}\b",
    r"(?<!\w)['\"]([^'\"\n]{4,80})['\"](?!\w)",
)


def agentdojo(row: Row, name: str, seed: int) -> list[Example]:
    """Return the example of a trace; none for a trace without injections."""
    del seed
    injections = row.get("injections")
    if not isinstance(injections, Mapping) or not all(isinstance(text, str) for text in injections.values()):
        raise RowError(f"{row.where}: `injections`: expected texts by place, got {injections!r:.80}")
    if not injections:
        return []
    chat: list[Message] = []
    for m in row.messages(plain=False):
        chat.append(message(m["role"], _content(row, m)))
        if m["role"] != "tool":
            continue
        for text in injections.values():
            found = re.search(
                _GAP.join(map(re.escape, re.findall(r"\w+", text))) if text.strip() else "$^", _last(chat)
            )
            if found:
                clean = _last(chat)[: found.start()] + _last(chat)[found.end() :]
                return [_example(row, name, chat, text, clean)]
    raise RowError(f"{row.where}: expected a tool message with one of the injections, got {len(chat)} messages without")


def _example(row: Row, name: str, chat: list[Message], injection: str, clean: str) -> Example:
    order = row.text("injection_goal") if row.has("injection_goal") else injection
    others = " ".join([*(m["content"] for m in chat[:-1]), clean])
    return example(
        row,
        name,
        "protected",
        chat,
        request=clean,
        order=order.strip(),
        violation=row.text("witness") if row.has("witness") else _witness(row, order, others),
        target="tool",
        paired=False,
    )


def _witness(row: Row, order: str, others: str) -> str:
    for pattern in _MARKS:
        for found in re.finditer(pattern, order):
            mark = found.group(found.lastindex or 0)
            if mark not in others:
                return mark
    raise RowError(
        f"{row.where}: `witness`: expected an address, link, account or quoted text in the injection, got none. Add a "
        "field `witness` with the words that a successful reply has to contain."
    )


def _content(row: Row, m: Mapping[str, Any]) -> str:
    """Return the text of a message: a string or parts with `content` or `text`, and tool calls as JSON."""
    content = m.get("content")
    if isinstance(content, list):
        content = "\n".join(_part(row, part) for part in content)
    if content is not None and not isinstance(content, str):
        raise RowError(f"{row.where}: `messages`: expected a text as `content`, got {content!r:.80}")
    calls = m.get("tool_calls") or []
    if not isinstance(calls, list):
        raise RowError(f"{row.where}: `messages`: expected a list as `tool_calls`, got {calls!r:.80}")
    return "\n".join([*([content] if content else []), *(json.dumps(call, sort_keys=True) for call in calls)])


def _part(row: Row, part: Any) -> str:
    """Return the text of a part; empty for null."""
    known = [part[name] for name in ("content", "text") if name in part] if isinstance(part, Mapping) else []
    text = next((text for text in known if text is not None and text != ""), "" if known else None)
    if not isinstance(text, str):
        raise RowError(
            f"{row.where}: `messages`: expected parts with a text as `content` or `text` in a list of parts, got "
            f"{part!r:.80}"
        )
    return text


def _last(chat: list[Message]) -> str:
    return chat[-1]["content"]
