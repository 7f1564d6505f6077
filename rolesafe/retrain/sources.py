"""Training data: rows of files, directories or the hub, in the common formats of chat data.

| format | fields |
| --- | --- |
| instructions (Alpaca, Dolly) | `instruction`; `input` or `context`, may be empty; `output` or `response` |
| conversations (OpenAI, ShareGPT) | `messages` or `conversations`: a list of `role` and `content`, or `from`, `value` |
| prompts | `prompt`, a text or messages; `completion` or `response`, a text or messages |

A file may mix them. No code of a file is executed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from rolesafe.roles.role import DEFAULT_ROLES
from rolesafe.tasks import Message
from rolesafe.tasks.sets.read import Row, RowError, read

_REPLIES: Final = ("output", "response", "completion", "answer")
_INPUTS: Final = ("input", "context")
_LISTS: Final = ("messages", "conversations")
_SHAREGPT: Final = {"human": "user", "gpt": "assistant", "observation": "tool", "function_call": "assistant"}
_FORMATS: Final = (
    "`instruction` with `input` and `output`, `messages` (a list of `role` and `content`), or `prompt` with "
    "`completion`"
)


@dataclass(frozen=True, kw_only=True)
class Source:
    """Row of training data.

    Attributes:
        where: Place of the row, such as ``"alpaca.json, row 12"``.
        instruction: Instruction; empty for a conversation.
        data: Input of the instruction; empty where it has none.
        messages: Conversation up to the reply; empty for an instruction.
        reply: Reply; ``None`` where the model is to generate it.
    """

    where: str
    instruction: str = ""
    data: str = ""
    messages: tuple[Message, ...] = ()
    reply: str | None = None


@dataclass(frozen=True, kw_only=True)
class Sources:
    """Training data.

    Attributes:
        rows: Rows in order.
        digest: SHA-256 of the content of all rows, including dropped ones, in hexadecimal.
        dropped: Reasons for the rows left out; each names its row.
    """

    rows: tuple[Source, ...]
    digest: str
    dropped: tuple[str, ...] = ()


def read_sources(data: str, *, need_replies: bool = True, drop_bad: bool = False) -> Sources:
    """Read training data and return its rows.

    Args:
        data: File, directory or hub id, as in :attr:`RetrainConfig.data`.
        need_replies: True to count rows without a reply as bad.
        drop_bad: True to leave bad rows out instead of raising.

    Raises:
        ValueError: The data cannot be read or have no rows, or a row is in no known format or has no reply. The error
            names the row.
        ImportError: `data` is a hub id and `datasets` is not installed.
    """
    try:
        rows = read(data)
    except (OSError, ValueError) as error:
        raise ValueError(str(error).replace("`path_or_hub`", "`data`")) from error
    digest = hashlib.sha256()
    found: list[Source] = []
    dropped: list[str] = []
    for row in rows:
        digest.update(json.dumps(row.fields, sort_keys=True, ensure_ascii=False, default=str).encode())
        digest.update(b"\n")
        try:
            found.append(_source(row, need_replies))
        except RowError as error:
            if not drop_bad:
                raise ValueError(f"`data`: {error} Or leave such rows out (bad_rows: drop).") from error
            dropped.append(str(error))
    if not found:
        raise ValueError(f"`data`: expected rows to train on, got none of {len(rows)}: {dropped[0]} Correct the rows.")
    return Sources(rows=tuple(found), digest=digest.hexdigest(), dropped=tuple(dropped))


def _source(row: Row, need_replies: bool) -> Source:
    if row.has("instruction"):
        data = row.text(*_INPUTS, empty=True) if any(row.has(name) for name in _INPUTS) else ""
        return Source(
            where=row.where,
            instruction=row.text("instruction").strip(),
            data=data.strip(),
            reply=_reply(row, _REPLIES, need_replies),
        )
    for name in _LISTS:
        if row.has(name):
            return _conversation(row, _messages(row, name), need_replies)
    if row.has("prompt"):
        prompt, names = row.get("prompt"), ("completion", *_REPLIES)
        if isinstance(prompt, str):
            messages = [{"role": "user", "content": row.text("prompt").strip()}]
            return Source(where=row.where, messages=tuple(messages), reply=_reply(row, names, need_replies))
        messages = _messages(row, "prompt")
        for name in names:
            if row.has(name):
                messages += _messages(row, name) if isinstance(row.get(name), list) else [_own(row.text(name))]
                break
        return _conversation(row, messages, need_replies)
    fields = sorted(map(str, row.fields))
    raise RowError(f"{row.where}: expected {_FORMATS}, got the fields {fields}. Rename the fields.")


def _reply(row: Row, names: Sequence[str], needed: bool) -> str | None:
    for name in names:
        if row.has(name):
            text = row.text(name, empty=True).strip()
            if text:
                return text
    if needed:
        raise RowError(
            f"{row.where}: expected a reply in {' or '.join(f'`{name}`' for name in names)}, got none. Remove the row, "
            "or let the model generate the replies (replies: self)."
        )
    return None


def _messages(row: Row, name: str) -> list[Message]:
    value = row.get(name)
    if isinstance(value, list) and value and all(isinstance(m, Mapping) and "from" in m for m in value):
        value = [{"role": _SHAREGPT.get(m["from"], m["from"]), "content": m.get("value")} for m in value]
    if not isinstance(value, list) or not value:
        raise RowError(f"{row.where}: `{name}`: expected a list of messages that is not empty, got {value!r:.80}.")
    return [_message(row, f"{name}[{i}]", message) for i, message in enumerate(value)]


def _message(row: Row, name: str, message: Any) -> Message:
    if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
        raise RowError(f"{row.where}: `{name}`: expected a message with `role` and `content`, got {message!r:.80}.")
    content, role = message.get("content"), message["role"].lower()
    if isinstance(content, list) and all(isinstance(p, Mapping) and isinstance(p.get("text"), str) for p in content):
        content = "".join(p["text"] for p in content)
    if not isinstance(content, str):
        raise RowError(f"{row.where}: `{name}`: expected a text as `content`, got {content!r:.80}.")
    if role not in DEFAULT_ROLES:
        raise RowError(f"{row.where}: `{name}`: expected a role of {DEFAULT_ROLES}, got {role!r:.80}.")
    return {"role": role, "content": content}


def _own(text: str) -> Message:
    return {"role": "assistant", "content": text}


def _conversation(row: Row, messages: list[Message], need_replies: bool) -> Source:
    reply = None
    if messages[-1]["role"] == "assistant":
        reply = messages.pop()["content"].strip() or None
    if reply is None and need_replies:
        raise RowError(
            f"{row.where}: expected a conversation that ends with a reply of the role 'assistant', got the roles "
            f"{[m['role'] for m in messages]}. Remove the row, or let the model generate the replies (replies: self)."
        )
    if not any(m["role"] in ("user", "tool") for m in messages):
        raise RowError(f"{row.where}: expected a message of the role 'user' before the reply, got none.")
    return Source(where=row.where, messages=tuple(messages), reply=reply)
